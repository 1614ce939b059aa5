"""`samfinetune cache`: shows and clears the disk cache of image embeddings."""

from __future__ import annotations

import argparse

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import counted

_EPILOG = """examples:
  samfinetune cache info           where the embeddings are, how many and how large
  samfinetune cache clear          remove them, after asking
  samfinetune cache clear --yes    remove them without asking, for scripts

Embeddings are computed again when they are needed: clearing costs time, never results. The variable
SAMFINETUNE_CACHE sets the folder, SAMFINETUNE_CACHE_GB its largest size in gigabytes (default: 8).
"""


def add_parser(subparsers) -> None:
    """Add `cache` and its two actions."""
    parser = subparsers.add_parser(
        "cache",
        help="show or clear the cache of image embeddings",
        description="Show or clear the cache of image embeddings.",
        epilog=_EPILOG,
    )
    parser.add_argument("action", choices=("info", "clear"), help="what to do")
    parser.add_argument("--yes", action="store_true", help="clear without asking")


def run(args: argparse.Namespace) -> int:
    """Print the cache's figures, or clear it."""
    from SAMFineTuneLib.inference.embedding_cache import open_cache

    cache = open_cache()
    info = cache.info()
    held = f"{counted(info.entries, 'embedding')}, {info.size / 1e6:.1f} MB"
    if args.action == "info":
        print(f"folder    {info.folder}")
        print(f"holds     {held}")
        print(f"at most   {info.limit / (1 << 30):.3g} GB, then the least recently used go first")
        return 0
    if not args.yes and info.entries and not console.confirmed(f"Remove {held} from {info.folder}?"):
        print("Nothing was removed.")
        return 0
    freed = cache.clear()
    if left := cache.info().entries:
        raise UserError(
            f"{counted(left, 'embedding')} in {info.folder} cannot be removed; end what uses them, or check "
            "permissions."
        )
    print(f"Removed {counted(info.entries, 'embedding')}, {freed / 1e6:.1f} MB, from {info.folder}.")
    return 0
