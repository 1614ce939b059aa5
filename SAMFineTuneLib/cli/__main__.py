"""`python -m SAMFineTuneLib.cli`, for when the script `samfinetune` is not on the path."""

import sys

from SAMFineTuneLib.cli.main import main

sys.exit(main())
