"""`samfinetune`, and `python -m SAMFineTuneLib` where that script is not on the path."""

import sys


def main() -> int:
    """Run the process's command; returns the exit code. Ctrl-C while modules are loaded also prints only one line."""
    try:
        from SAMFineTuneLib.cli import main as command

        return command.main()
    except KeyboardInterrupt:
        print("samfinetune: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
