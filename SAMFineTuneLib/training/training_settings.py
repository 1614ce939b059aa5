"""The settings of a fine-tuning and its three presets. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from SAMFineTuneLib.cases.labelled_case import LabelChoice
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.tuning_method import HEADS, Method

PROMPTS = ("mixed", "points", "boxes")
ORIENTATIONS = ("auto", "all", "axial", "coronal", "sagittal")
CHECKPOINTING = ("auto", "on", "off")
PRECISIONS = ("auto", "fp32", "bf16")
MOST = 2**31 - 1
"""Of numbers of steps and others, and of a seed: PyTorch takes no larger ones everywhere."""

# A preset sets the number of steps and how much each picture is used; everything else is the same for all.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 250, "batch": 4, "objects": 2, "rounds": 2, "test_slices": 8, "fold_limit": 3},
    "balanced": {"steps": 800, "batch": 6, "objects": 3, "rounds": 4, "test_slices": 16, "fold_limit": 5},
    "thorough": {"steps": 2000, "batch": 8, "objects": 5, "rounds": 8, "test_slices": 1000, "fold_limit": 10},
}


# The recipes' learning rates, and those of the bundled model's architecture, which takes larger steps.
_RATES = {"lora": 3e-4, "adapter": 1e-4, "vanilla": 1e-4}
_SMALL_RATES = {"lora": 4e-3, "adapter": 2e-3, "vanilla": 1e-3}
_SHOWN = 4  # times that a preset shows each labelled slice at least, as long as ...
_LONGEST = 4  # ... that needs at most so many times its steps
_FULL_STRENGTH = 30  # times that a training shows each slice, from which on it is augmented in full
_LEAST_STRENGTH = 0.3


@dataclass(frozen=True)
class TrainingSettings:
    """Every instance is valid: a wrong value raises `UserError`. The defaults are those of the preset
    `quick`, but for `least_shown`."""

    preset: str = "quick"
    method: Method = field(default_factory=Method)
    """The fine-tuning method; `for_labels` fills in its heads and classes."""
    heads: tuple[str, ...] = HEADS
    labels: LabelChoice = field(default_factory=LabelChoice)
    steps: int = PRESETS["quick"]["steps"]
    """Optimiser steps of each training; warm-up and decay are parts of it."""
    most_shown: int | None = 200
    """How often each labelled slice is shown at most: a training of a few slices is shorter. None: no limit."""
    least_shown: int | None = None
    """How often each labelled slice is shown at least: a training of many slices is longer, up to four times. None: no
    such rule. Presets show each four times.
    """
    batch: int = PRESETS["quick"]["batch"]
    """Pictures a step, of all processes together."""
    objects: int = PRESETS["quick"]["objects"]
    """Objects on a picture at most."""
    rounds: int = PRESETS["quick"]["rounds"]
    """Sub-iterations: the first prompt and rounds - 1 corrections (MedicoSAM: 8)."""
    prompts: str = "mixed"
    """First prompts: one of PROMPTS."""
    feedback: float = 0.5
    """Probability that a correction comes with the previous logits as mask prompt."""
    learning_rate: float | None = None
    """None: as suits the method and the base, larger for the bundled model."""
    small_base: bool = True
    """Whether the base has the bundled model's architecture, which takes larger steps; the plan fills this in."""
    weight_decay: float = 0.1
    warm_up: float = 0.05
    """Part of the steps during which the learning rate rises."""
    decay_power: float = 0.9
    augment: float | None = None
    """Strength of the augmentations: 0 none, 1 those of finetune-SAM. None: 1 for a few labelled slices, less for
    more of them, which a short training sees less often."""
    window: str | None = None
    orientation: str = "auto"
    """Slices to learn from; auto: as they were acquired."""
    shots: int | None = None
    folds: int | None = None
    fold_limit: int = PRESETS["quick"]["fold_limit"]
    """Folds at most when `folds` is None."""
    validation: int | None = None
    """Patients set aside from the training cases for early stopping; None: a tenth when there are ten or more."""
    validations: int = 8
    """Number of validations of a training."""
    patience: int = 3
    """Validations without gain after which a training ends."""
    test_slices: int = PRESETS["quick"]["test_slices"]
    """Labelled slices of a held-out case that are prompted, evenly spread; the automatic head sees all."""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    micro_batch: int | None = None
    """Pictures in memory at once; None: as many as fit. Only rounding depends on it."""
    checkpointing: str = "auto"
    """Whether encoder blocks are computed twice to save memory: one of CHECKPOINTING."""
    variants: int = 4
    """Augmented versions of a slice whose embeddings are kept when the encoder does not learn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        if problem := _problem(self):
            raise UserError(problem)

    @classmethod
    def of_preset(cls, preset: str, **changes: Any) -> TrainingSettings:
        """The preset's settings with `changes`; a change to None is left out."""
        if preset not in PRESETS:
            raise UserError(f"Unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
        given = {name: value for name, value in changes.items() if value is not None}
        free = {"most_shown": None, "least_shown": None} if "steps" in given else {}  # given steps stay as they are
        return cls(preset=preset, **{"least_shown": _SHOWN, **PRESETS[preset], **free, **given})

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self._rates[self.method.method] if self.learning_rate is None else self.learning_rate

    @property
    def whole_share(self) -> float:
        """Share of the rate for modules of the base that are trained whole beside LoRA or Adapters: it gives them the
        rate that suits whole weights, or they would forget first."""
        return self._rates["vanilla"] / self._rates[self.method.method]

    @property
    def _rates(self) -> dict[str, float]:
        return _SMALL_RATES if self.small_base else _RATES

    def for_slices(self, slices: int) -> TrainingSettings:
        """With the steps that `least_shown` and `most_shown` ask for with so many labelled slices."""
        steps = self.steps
        if self.least_shown is not None:
            steps = max(steps, min(_LONGEST * steps, -(-self.least_shown * slices // self.batch)))
        if self.most_shown is not None:
            steps = min(steps, max(1, -(-self.most_shown * slices // self.batch)))
        return replace(self, steps=steps)

    def strength(self, slices: int) -> float:
        """Strength of the augmentations for so many labelled slices."""
        if self.augment is not None:
            return self.augment
        shown = self.steps * self.batch / max(1, slices)  # times that each is
        return min(1.0, max(_LEAST_STRENGTH, shown / _FULL_STRENGTH))

    def for_labels(self, names: tuple[str, ...], choice: LabelChoice) -> TrainingSettings:
        """With the labels that the survey of the cases found, and the classes of an automatic head."""
        classes = ("background", *names) if "automatic" in self.heads else ()
        return replace(self, method=replace(self.method, heads=self.heads, classes=classes), labels=choice)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        labels = {"wanted": list(self.labels.wanted), "merged": self.labels.merged}
        return {**_plain(vars(self)), "method": _plain(asdict(self.method)), "labels": labels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The settings that `to_dict` wrote; UserError when they are damaged."""
        try:
            labels = LabelChoice(tuple(values["labels"]["wanted"]), bool(values["labels"]["merged"]))
            return cls(**{**values, "method": Method(**values["method"]), "labels": labels})
        except (KeyError, TypeError) as error:
            raise UserError(f"The stored settings of the training are damaged ({error}); start it again.") from error

    def recipe(self) -> dict[str, Any]:
        """The settings for the adapter's card, without those that concern this computer."""
        hidden = {"small_base", "method", "labels", "device", "micro_batch", "checkpointing", "fold_limit"}
        kept = {name: value for name, value in self.to_dict().items() if name not in hidden and value is not None}
        return {**kept, "learning_rate": self.rate}


_COUNTS = ("steps", "batch", "objects", "rounds", "validations", "patience", "test_slices", "variants", "shots",
           "micro_batch", "most_shown", "least_shown")  # fmt: skip
_LEAST = {**dict.fromkeys(_COUNTS, 1), "seed": 0, "folds": 0, "validation": 0}
_OPTIONAL = ("shots", "micro_batch", "most_shown", "least_shown", "folds", "validation")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _problem(settings: TrainingSettings) -> str | None:
    """The first wrong setting, as a sentence."""
    if not settings.heads or not set(settings.heads) <= set(HEADS) or len(set(settings.heads)) < len(settings.heads):
        return f"The heads are {', '.join(settings.heads) or 'none'}; choose {', '.join(HEADS)}, or both."
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if (value is not None or name not in _OPTIONAL) and (type(value) is not int or not least <= value <= MOST):
            return f"The setting {name} is {value!r}; choose a whole number from {least} to {MOST}."
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
