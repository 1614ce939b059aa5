"""An adapter's card: its base, its training and its gain, as `card.json` for programs and `card.md` for people.

A card names cases by digests only; nothing in it identifies a patient. Needs no PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.tuning_method import Method
from SAMFineTuneLib.models.spec import FORMAT, fields_of
from SAMFineTuneLib.typed_json import made
from SAMFineTuneLib.wording import duration, in_brackets


@dataclass(frozen=True)
class Gain:
    """Dice of one kind of prompt on the held-out cases, before and after training, a value for each of `cases`."""

    prompt: str
    """`1 box`, `1 point`, `automatic`, …"""
    cases: tuple[str, ...]
    """Digests of the held-out cases."""
    before: tuple[float | None, ...]
    """Dice of each case with the base; None where the base has no answer, for example without prompts."""
    after: tuple[float | None, ...]
    label: str = ""
    interval_before: tuple[float, float] | None = None
    """95 % interval of the mean over cases."""
    interval_after: tuple[float, float] | None = None
    interval_gain: tuple[float, float] | None = None
    """95 % interval of the mean difference between after and before; None where there is no before."""

    def __post_init__(self) -> None:
        for name in ("cases", "before", "after", "interval_before", "interval_after", "interval_gain"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        if not len(self.cases) == len(self.before) == len(self.after):
            raise UserError("A gain needs one Dice before and one after for each of its cases.")

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Mean Dice before and after, over the cases that have a value."""
        return _mean(self.before), _mean(self.after)

    def summary(self) -> dict[str, Any]:
        """The figures over all cases as plain values, for programs."""
        before, after = self.means
        return {"prompt": self.prompt, "label": self.label, "cases": len(self.cases), "before": before, "after": after,
                "interval_before": self.interval_before, "interval_after": self.interval_after,
                "interval_gain": self.interval_gain}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """The facts about an adapter. `save_adapter` fills in base, method, date and version."""

    labels: tuple[str, ...] = ()
    """Names of the structures it segments, without background."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training, as plain values."""
    cases: tuple[str, ...] = ()
    """Digests of its training cases."""
    gains: tuple[Gain, ...] = ()
    curves: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """`steps`, `loss`, `dice`, …: the course of the training."""
    seconds: float | None = None
    """Duration of the training in seconds."""
    hardware: str = ""
    base: str = ""
    base_digest: str = ""
    """SHA-256 of the base's weights."""
    base_architecture: str = ""
    method: Method = field(default_factory=Method)
    date: str = ""
    """Date of the training: ISO 8601, UTC."""
    version: str = ""
    """The version of SAMFineTune that trained it."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the adapter's other files by name."""

    def __post_init__(self) -> None:
        for name in ("labels", "cases", "gains"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "curves", {name: tuple(values) for name, values in self.curves.items()})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `from_dict` reads. NaN and infinite numbers become null."""
        return {"format": FORMAT, **_plain(asdict(self))}

    @classmethod
    def from_dict(cls, content: Any, where: str) -> Card:
        """Read a JSON object; `where` names it in the sentence of a `UserError`."""
        content = fields_of(cls, content, where, "train the adapter again")
        try:
            return made(cls, {"method": None, **content})
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} is damaged ({error}): use another copy of the adapter.") from error


def as_markdown(card: Card, name: str) -> str:
    """The card for people."""
    method = card.method
    lines = [
        f"# {name}",
        "",
        f"An adapter of the model `{card.base}` for {', '.join(card.labels) or 'labels that were not named'}: "
        f"{method}. {_heads(method)}",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{card.base}` ({card.base_architecture}), SHA-256 `{card.base_digest}` |",
        f"| trained | {card.date or 'date not recorded'} with SAMFineTune {card.version}"
        f"{f', on {card.hardware}' if card.hardware else ''}"
        f"{f', in {duration(card.seconds)}' if card.seconds is not None else ''} |",
        f"| cases | {len(card.cases)} |",
        *(f"| {key} | {value} |" for key, value in card.recipe.items()),
        "",
    ]
    if card.gains:
        lines += ["## Dice on cases the training did not see", "", "| prompt | label | cases | before | after |",
                  "|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {gain.prompt} | {gain.label} | {len(gain.cases)} | {dice_text(gain.means[0], gain.interval_before)} | "
            f"{dice_text(gain.means[1], gain.interval_after)} |"
            for gain in card.gains
        ]
        lines += ["", "Mean over cases, with its 95 % interval."]
    else:
        lines += ["No case was held out, so its gain is not known."]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or PyTorch number
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def _heads(method: Method) -> str:
    parts = []
    if "promptable" in method.heads:
        parts.append("It answers points and boxes.")
    if "automatic" in method.heads:
        parts.append(f"It finds {', '.join(method.classes[1:])} without a prompt.")
    return " ".join(parts)


def dice_text(mean: float | None, interval: tuple[float, float] | None = None) -> str:
    """`0.912 (0.893 to 0.931)`, without an interval `0.912`, and `-` without a mean."""
    return "-" if mean is None else f"{mean:.3f}{in_brackets(interval)}"


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
