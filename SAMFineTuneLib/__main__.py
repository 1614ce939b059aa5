"""`python -m SAMFineTuneLib`, for where the script `samfinetune` is not on the path."""

import sys

from SAMFineTuneLib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
