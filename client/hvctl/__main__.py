"""python -m hvctl, and the program hvctl"""

import gc
import sys

from hvctl import lazily


def main() -> int:
    # Imports make hundreds of thousands of objects that stay: looking for garbage among them finds none.
    gc.set_threshold(50_000)
    lazily.install()
    from hvctl import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
