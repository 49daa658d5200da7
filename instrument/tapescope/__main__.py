"""`python -m tapescope`: the same as the command `tapescope`, where the directory of commands is not on the path."""

import sys

from tapescope.cli import main

if __name__ == "__main__":
    sys.exit(main())
