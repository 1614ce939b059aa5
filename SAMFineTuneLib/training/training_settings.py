"""How a fine-tuning runs: every number of it, and the three presets. No PyTorch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from SAMFineTuneLib.cases.labelled_case import LabelChoice
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.tuning_method import HEADS, Method

PROMPTS = ("mixed", "points", "boxes")
ORIENTATIONS = ("auto", "all", "axial", "coronal", "sagittal")
CHECKPOINTING = ("auto", "on", "off")
PRECISIONS = ("auto", "fp32", "bf16")

# A preset is a number of steps and how much is asked of each picture; the rest is the same for all.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 250, "batch": 4, "objects": 2, "rounds": 2, "test_slices": 8, "fold_limit": 3},
    "balanced": {"steps": 800, "batch": 6, "objects": 3, "rounds": 4, "test_slices": 16, "fold_limit": 5},
    "thorough": {"steps": 2000, "batch": 8, "objects": 5, "rounds": 8, "test_slices": 1000, "fold_limit": 10},
}


# The recipes' learning rates, and those of the bundled model's architecture, which takes larger steps.
_RATES = {"lora": 3e-4, "adapter": 1e-4, "vanilla": 1e-4}
_SMALL_RATES = {"lora": 4e-3, "adapter": 2e-3, "vanilla": 1e-3}
_FULL_STRENGTH = 30  # times that a training shows each slice, from which on it is augmented in full
_LEAST_STRENGTH = 0.3


@dataclass(frozen=True)
class Settings:
    """Every instance is valid: a wrong value raises `UserError`. The defaults are those of the preset `quick`."""

    preset: str = "quick"
    method: Method = field(default_factory=Method)
    """What is trained; its heads and classes follow from `heads` and the labels, see `for_labels`."""
    heads: tuple[str, ...] = HEADS
    labels: LabelChoice = field(default_factory=LabelChoice)
    steps: int = PRESETS["quick"]["steps"]
    """Optimiser steps of each training; warm-up and decay are parts of it."""
    most_shown: int | None = 200
    """Times that each labelled slice is shown at most: a training of a few slices is shorter. None: no limit."""
    batch: int = PRESETS["quick"]["batch"]
    """Pictures a step, of all processes together."""
    objects: int = PRESETS["quick"]["objects"]
    """Up to how many objects a picture."""
    rounds: int = PRESETS["quick"]["rounds"]
    """Sub-iterations: the first prompt and rounds - 1 corrections (MedicoSAM: 8)."""
    prompts: str = "mixed"
    """What a training session on an object begins with."""
    feedback: float = 0.5
    """Probability that a correction comes with the previous logits as mask prompt."""
    learning_rate: float | None = None
    """None: what suits the method and the base: the recipes' rates, for the bundled model larger ones."""
    small_base: bool = True
    """Whether the base is the bundled model's architecture, which takes larger steps; filled in by the run."""
    weight_decay: float = 0.1
    warm_up: float = 0.05
    """Part of the steps in which the learning rate rises."""
    decay_power: float = 0.9
    augment: float | None = None
    """Strength of the augmentations: 0 none, 1 those of finetune-SAM. None: 1 with a few labelled slices, less with
    more, which a short training sees less often."""
    window: str | None = None
    orientation: str = "auto"
    """Slices to learn from: auto takes the acquired ones."""
    shots: int | None = None
    folds: int | None = None
    fold_limit: int = PRESETS["quick"]["fold_limit"]
    """Most folds that are made when `folds` does not say how many."""
    validation: int | None = None
    """Patients set aside from the training cases for early stopping; None: a tenth when there are ten or more."""
    validations: int = 8
    """How often a training is validated."""
    patience: int = 3
    """Validations without gain after which a training ends."""
    test_slices: int = PRESETS["quick"]["test_slices"]
    """Labelled slices of a held-out case on which Dice is measured, evenly spread; prompts only, not automatic."""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    micro_batch: int | None = None
    """Pictures in memory at once; None: what fits. The result does not depend on it but for rounding."""
    checkpointing: str = "auto"
    """Whether encoder blocks are computed twice to save memory."""
    variants: int = 4
    """Augmented versions of a slice whose embeddings are kept when the encoder does not learn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        if problem := _problem(self):
            raise UserError(problem)

    @classmethod
    def of_preset(cls, preset: str, **changes: Any) -> Settings:
        """The preset's settings, changed where `changes` says something (None: nothing)."""
        if preset not in PRESETS:
            raise UserError(f"Unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
        given = {name: value for name, value in changes.items() if value is not None}
        limit = {"most_shown": None} if "steps" in given else {}  # who says how many steps means it
        return cls(preset=preset, **{**PRESETS[preset], **limit, **given})

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self._rates[self.method.method] if self.learning_rate is None else self.learning_rate

    @property
    def whole_share(self) -> float:
        """Learning rate of the base's own modules that are trained whole beside LoRA or Adapters, in rates: what suits
        whole weights, or they would be the first to forget."""
        return self._rates["vanilla"] / self._rates[self.method.method]

    @property
    def _rates(self) -> dict[str, float]:
        return _SMALL_RATES if self.small_base else _RATES

    def for_slices(self, slices: int) -> Settings:
        """With the steps that so many labelled slices allow."""
        if self.most_shown is None:
            return self
        return replace(self, steps=min(self.steps, max(1, -(-self.most_shown * slices // self.batch))))

    def strength(self, slices: int) -> float:
        """Strength of the augmentations for so many labelled slices."""
        if self.augment is not None:
            return self.augment
        shown = self.steps * self.batch / max(1, slices)  # times that each is
        return min(1.0, max(_LEAST_STRENGTH, shown / _FULL_STRENGTH))

    def for_labels(self, names: tuple[str, ...], choice: LabelChoice) -> Settings:
        """With what a look at the cases settled: the labels, and the classes of an automatic head."""
        classes = ("background", *names) if "automatic" in self.heads else ()
        return replace(self, method=replace(self.method, heads=self.heads, classes=classes), labels=choice)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        labels = {"wanted": list(self.labels.wanted), "merged": self.labels.merged}
        return {**_plain(values), "method": _plain(self.method.to_dict()), "labels": labels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The settings of `to_dict`; UserError when they are none."""
        try:
            labels = LabelChoice(tuple(values["labels"]["wanted"]), bool(values["labels"]["merged"]))
            return cls(**{**values, "method": Method.from_dict(values["method"]), "labels": labels})
        except (KeyError, TypeError) as error:
            raise UserError(f"The stored settings of the training are damaged ({error}); start it anew.") from error

    def recipe(self) -> dict[str, Any]:
        """What the adapter's card tells of it: nothing about this computer."""
        hidden = {"small_base", "method", "labels", "device", "micro_batch", "checkpointing", "fold_limit"}
        kept = {name: value for name, value in self.to_dict().items() if name not in hidden and value is not None}
        return {**kept, "learning_rate": self.rate}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _problem(settings: Settings) -> str | None:
    """What is wrong, as a sentence."""
    if not settings.heads or not set(settings.heads) <= set(HEADS) or len(set(settings.heads)) < len(settings.heads):
        return f"The heads are {', '.join(settings.heads) or 'none'}; choose {', '.join(HEADS)}, or both."
    for name in ("steps", "batch", "objects", "rounds", "validations", "patience", "test_slices", "variants"):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"The setting {name} is {value!r}; choose a whole number from 1."
    for name in ("shots", "micro_batch", "most_shown"):
        value = getattr(settings, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            return f"The setting {name} is {value!r}; choose a whole number from 1."
    for name in ("seed", "folds", "validation"):
        value = getattr(settings, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            return f"The setting {name} is {value!r}; choose a whole number from 0."
    for name in ("feedback", "warm_up"):
        if not 0 <= getattr(settings, name) <= 1:
            return f"The setting {name} is {getattr(settings, name)!r}; choose a number from 0 to 1."
    if settings.augment is not None and not 0 <= settings.augment <= 2:
        return f"The strength of augmentation is {settings.augment!r}; choose a number from 0 to 2."
    if settings.learning_rate is not None and not 0 < settings.learning_rate <= 1:
        return f"The learning rate is {settings.learning_rate!r}; choose a number such as 0.001."
    choices = {"prompts": PROMPTS, "orientation": ORIENTATIONS, "checkpointing": CHECKPOINTING, "precision": PRECISIONS}
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            return f"Unknown {name} {getattr(settings, name)!r}; choose one of {', '.join(allowed)}."
    return None
