"""What a training is asked to do, and the files through which it and those who watch it speak.

A training has a folder: `job.json` says what is wanted, `events.jsonl` what happened, `log.txt` what was printed.
`lock` is held by the process as long as it lives, and by the system's hand let go of when it does not, so that anyone
can see whether it runs; `stop` asks it to stop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write

JOB, EVENTS, LOG, LOCK, STOP, CASES, OUTPUT = (
    "job.json", "events.jsonl", "log.txt", "lock", "stop", "cases", "adapter",
)  # fmt: skip
ENDS = ("done", "failed", "stopped", "checked")
"""Events that are a training's last word."""
_FORMAT = 1


@dataclass(frozen=True)
class TrainingJob:
    """`name` is that of the adapter to be, `settings` those of `Settings.to_dict`."""

    name: str
    model: str = "compact"
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    """A folder or list of cases; empty: cases that lie in the training's own folder."""
    only_check: bool = False
    """Look at the cases, and do no more."""

    def write(self, folder: Path) -> None:
        """Into a training's folder."""
        with atomic_write(folder / JOB) as temporary:
            temporary.write_text(json.dumps({"format": _FORMAT, **asdict(self)}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TrainingJob:
        """From a training's folder; UserError when it holds none."""
        try:
            values = json.loads((folder / JOB).read_text(encoding="utf-8"))
            if values.pop("format", None) != _FORMAT:
                raise UserError(f"The training in {folder} is of another version of SAMFineTune; delete that folder.")
            return cls(**values)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"There is no usable training in {folder}; delete that folder.") from error
