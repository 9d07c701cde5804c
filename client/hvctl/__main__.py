"""python -m hvctl"""

import sys

from hvctl.cli import main

sys.exit(main())
