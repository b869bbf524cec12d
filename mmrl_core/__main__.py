"""`python -m mmrl_core` is `mmrl`."""

import sys

from mmrl_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
