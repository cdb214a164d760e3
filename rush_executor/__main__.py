"""`python -m rush_executor`: the same as the command `rush-executor`."""

import sys

from rush_executor._cli import main

if __name__ == "__main__":
    sys.exit(main())
