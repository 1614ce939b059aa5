"""The description of a model: the content of its `model.json`, and the folder with its files.

Preprocessing, engines and store use only this; nothing here needs PyTorch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PureWindowsPath
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of, write_text
from SAMFineTuneLib.typed_json import loaded

FORMAT = 1
"""The format of `model.json`, and of an adapter's `card.json`."""
SPEC_FILE = "model.json"

ARCHITECTURES = {
    "sam_vit_b": "SAM ViT-B",
    "sam_vit_l": "SAM ViT-L",
    "sam_vit_h": "SAM ViT-H",
    "sam_vit": "a SAM with a ViT of its own size",
    "mobile_sam": "MobileSAM",
    "lite_medsam": "LiteMedSAM",
    "sam_med2d": "SAM-Med2D",
    "finetune_sam": "a model trained with finetune-SAM",
    "compact": "SAMFineTune's compact model",
}
"""The name of each architecture in sentences."""
FILE_ROLES = ("weights", "encoder", "decoder", "classes", "memory", "memory_weights")
_CHOICES = {
    "architecture": ARCHITECTURES,
    "resize": ("longest_side_pad", "squash"),
    "interpolation": ("bilinear", "cubic", "area", "nearest"),
    "pixel_range": ("0-255", "minmax", "percentiles"),
    "coordinates": ("scaled", "centred"),
    "channels": (1, 3),
}

CALIBRATED_KINDS = ("point", "box", "clicks")
"""Kinds of prompts whose predicted IoU is calibrated, each in its own way."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def fields_of(kind: type, content: Any, where: str, advice: str) -> dict[str, Any]:
    """The fields of a dataclass in the JSON object that describes it. UserError when it is not this version's.

    Args:
        kind: the dataclass.
        content: the object read from the file.
        where: names the file in the sentence.
        advice: what to do when it cannot be used.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold a JSON object: {advice}.")
    values = dict(content)
    version = values.pop("format", None)
    if version != FORMAT:
        raise UserError(
            f"{where} has format {version!r}, but this version reads format {FORMAT}: update SAMFineTune, or {advice}."
        )
    if unknown := sorted(values.keys() - {item.name for item in fields(kind)}):
        names = ", ".join(unknown)
        raise UserError(f"{where} has fields that are not known: {names}; update SAMFineTune, or {advice}.")
    return values


@dataclass(frozen=True)
class ModelSpec:
    """A model as `model.json` describes it. Every instance is valid: a wrong value raises `UserError`.

    The defaults are Segment Anything's. `input_size` is the side of the network's square input, `embedding_size` that
    of its image embedding, `low_res_size` that of its mask logits.
    """

    id: str
    name: str
    architecture: str
    input_size: int = 1024
    resize: str = "longest_side_pad"
    """`longest_side_pad` keeps the aspect and pads right and bottom with zeros; `squash` fills the square."""
    interpolation: str = "bilinear"
    """How pixels are resampled, see `preprocess`: `bilinear` (antialiased), `cubic`, `area` or `nearest`."""
    pixel_range: str = "0-255"
    """How pictures are scaled before `pixel_mean` and `pixel_std`: not at all (`0-255`), each to 0..1 (`minmax`), or
    each to 0..255 with 0.5 % clipped at either end (`percentiles`)."""
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    coordinates: str = "scaled"
    """Where a prompt at pixel x lies in an input scaled by s: `scaled` x * s (SAM), `centred` (x + 0.5) * s - 0.5."""
    embedding_size: int = 64
    low_res_size: int = 256
    zoom: bool = False
    """Whether the predictor should crop to the prompt's surroundings, because the input is small."""
    ranks_all: bool = False
    """Whether predicted IoU ranks all four masks for any prompt; SAM's ranks masks 1 to 3 of a lone point only. The
    answer is then the mean of the best masks, and for a lone point the best reading of several views."""
    one_piece: bool = False
    """Whether the model was trained on objects of one piece within their box, so that other pieces of a mask are
    removed, and pixels outside the box need larger logits."""
    calibration: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Four weights by kind of prompt that turn predicted IoU into the IoU to expect, see `inference.expected_iou`."""
    licence: str = ""
    source: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Names of the files that exist, by role: `weights`, the ONNX `encoder`, `decoder` and automatic head (`classes`),
    the ONNX volume memory (`memory`) and its weights (`memory_weights`)."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Hex digests by file name."""
    classes: tuple[str, ...] = ()
    """Names of the classes of an automatic (prompt-free) head, background first; else empty."""
    heads: tuple[str, ...] = ()
    """`promptable`, `automatic` or both; by default automatic with `classes`, else promptable."""

    def __post_init__(self) -> None:
        for name in ("pixel_mean", "pixel_std", "classes", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.heads:
            object.__setattr__(self, "heads", ("automatic",) if self.classes else ("promptable",))
        if problem := _problem(self):
            raise UserError(f"The description of model {self.id!r} is not usable: {problem}.")

    @property
    def input_rule(self) -> str:
        """Identifies how pictures become the network's input; with the encoder's weights, it identifies embeddings."""
        rule = (self.input_size, self.resize, self.interpolation, self.pixel_range, self.pixel_mean, self.pixel_std)
        return "|".join(map(str, (*rule, self.channels)))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object `from_dict` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Any, where: str = SPEC_FILE) -> ModelSpec:
        """Read a JSON object; `where` names it in the sentence of a `UserError`."""
        content = fields_of(cls, content, where, "import the model again")
        if missing := [name for name in ("id", "name", "architecture") if name not in content]:
            raise UserError(f"{where} lacks: {', '.join(missing)}.")
        try:
            return cls(**content)
        except TypeError as error:
            raise UserError(f"{where} is not usable: {error}.") from error


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: its description and the folder its files lie in."""

    spec: ModelSpec
    path: Path

    def has(self, role: str) -> bool:
        """Whether the file of a role (`weights`, `encoder`, `decoder`) exists."""
        return role in self.spec.files and (self.path / self.spec.files[role]).is_file()

    def file(self, role: str) -> Path:
        """Path of the file of a role; `UserError` when the model has none."""
        if role == "weights" and role not in self.spec.files:
            raise UserError(
                f"The model {self.spec.id!r} has only ONNX files, which can be run, but neither trained nor used in "
                "PyTorch: import the checkpoint that they were exported from."
            )
        if not self.has(role):
            raise UserError(
                f"The model {self.spec.id!r} has no {role} file in {self.path}: import or download it again."
            )
        return self.path / self.spec.files[role]

    def digest(self, role: str) -> str:
        """SHA-256 of the file of a role: the one that the description states, or else computed."""
        return self.spec.sha256.get(self.spec.files.get(role)) or sha256_of(self.file(role))

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())

    def verify(self) -> None:
        """Raise UserError when a file is missing or has another digest than `model.json` states. Reads all files."""
        for role in self.spec.files:
            self.file(role)
        for name, expected in self.spec.sha256.items():
            file = self.path / name
            found = sha256_of(file) if file.is_file() else "none, as it is missing"
            if expected != found:
                raise UserError(
                    f"{file} is damaged or was replaced: its SHA-256 is {found}, not {expected}; "
                    "copy its folder, import it or download it again."
                )


def read_model_folder(path: str | Path) -> ModelFolder:
    """The model in a folder with a `model.json`."""
    path = Path(path)
    file = path / SPEC_FILE
    try:
        content = loaded(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not a model folder: it has no {SPEC_FILE}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): import the model again.") from error
    return ModelFolder(ModelSpec.from_dict(content, str(file)), path)


def write_spec(spec: ModelSpec, folder: str | Path) -> Path:
    """Write `model.json` into a folder, completely or not at all; return its path."""
    file = Path(folder) / SPEC_FILE
    write_text(file, json.dumps(spec.to_dict(), indent=2) + "\n")
    return file


def plain_id(text: str) -> str:
    """A model id from the name of a file or folder."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"


def _problem(spec: ModelSpec) -> str | None:
    """The first wrong field of a description, as a clause, or None."""
    for name in ("id", "name", "licence", "source"):
        if not isinstance(getattr(spec, name), str):
            return f"{name} must be text"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", spec.id):
        return "its id must consist of letters, digits, '-', '_' and '.'"
    for name, allowed in _CHOICES.items():
        if getattr(spec, name) not in allowed:
            return f"{name} is {getattr(spec, name)!r}, but must be one of {', '.join(map(str, allowed))}"
    for name in ("input_size", "embedding_size", "low_res_size"):
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 8192:
            return f"{name} must be a whole number of pixels, not {value!r}"
    for name in ("pixel_mean", "pixel_std"):
        values = getattr(spec, name)
        if len(values) != spec.channels or not all(isinstance(v, int | float) for v in values):
            return f"{name} must hold {spec.channels} number(s), one a channel"
    if min(spec.pixel_std) <= 0:
        return "pixel_std must be positive"
    for name in ("files", "sha256"):
        values = getattr(spec, name)
        if not isinstance(values, Mapping) or not all(isinstance(v, str) for v in values.values()):
            return f"{name} must map names to text"
    for role in spec.files:
        if role not in FILE_ROLES:
            return f"files names the role {role!r}, but knows only {', '.join(FILE_ROLES)}"
    for file in (*spec.files.values(), *spec.sha256):
        if PureWindowsPath(file).name != file or file in ("", ".", ".."):
            return f"the file {file!r} must lie in the model's own folder"
    known = isinstance(spec.calibration, Mapping) and set(spec.calibration) <= set(CALIBRATED_KINDS)
    if not known or not all(_are_weights(values) for values in spec.calibration.values()):
        return f"calibration must hold four numbers for each of {', '.join(CALIBRATED_KINDS)}"
    if not all(isinstance(name, str) for name in spec.classes):
        return "classes must be names"
    if not set(spec.heads) <= {"promptable", "automatic"} or ("automatic" in spec.heads) != bool(spec.classes):
        return "heads must be promptable, or automatic with classes, or both"
    return None


def _are_weights(values: Any) -> bool:
    """Whether these are the four weights of a calibration; all but the first must not be negative."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values) and min(values[1:]) >= 0
