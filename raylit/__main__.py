"""`python -m raylit` is the command `raylit`."""

import sys

from raylit.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
