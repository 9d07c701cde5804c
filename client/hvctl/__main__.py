"""python -m hvctl, and the program hvctl"""

import sys

from hvctl import lazily


def main() -> int:
    lazily.install()
    from hvctl import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
