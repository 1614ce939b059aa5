"""An adapter on disk: a folder in PEFT's format, with a card. Reading it needs no PyTorch.

| file | content |
|---|---|
| `adapter_config.json` | PEFT's own for LoRA; else the name of the method |
| `adapter_model.safetensors` | the trained tensors; LoRA's matrices have PEFT's names |
| `class_head.safetensors` | the automatic head, if any: the base has no layer to which PEFT could attach it |
| `card.json`, `card.md` | see `adapter_card` |
| `onnx` | a model folder with the adapter merged into its base, after an export |

`card.json` has the digests of the other files. It is written last and removed first, so a folder with it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, sha256_of
from SAMFineTuneLib.models.adapters.adapter_card import Card, as_markdown
from SAMFineTuneLib.models.formats.safetensors_file import first_not_finite
from SAMFineTuneLib.models.spec import SPEC_FILE, ModelFolder, ModelSpec, read_model_folder
from SAMFineTuneLib.typed_json import loaded

CARD, CARD_TEXT = "card.json", "card.md"
CONFIG, TENSORS, CLASS_HEAD = "adapter_config.json", "adapter_model.safetensors", "class_head.safetensors"
ONNX = "onnx"
"""Folder inside the adapter's, for the graphs that `merged_export` writes."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter whose files all have the digests in its card."""

    path: Path
    card: Card

    @property
    def name(self) -> str:
        """The folder's name, which is the adapter's in the store."""
        return self.path.name

    @property
    def digest(self) -> str:
        """Identifies the adapter's effect on its base: 64 hexadecimal digits."""
        files = "|".join(f"{name}:{self.card.files[name]}" for name in sorted(self.card.files))
        return hashlib.sha256(files.encode()).hexdigest()

    @property
    def exported(self) -> ModelFolder | None:
        """The base with this adapter merged into it as ONNX graphs, if it was exported; see `merged_export`."""
        try:
            model = read_model_folder(self.path / ONNX)
        except UserError:
            return None
        spec = model.spec
        whole = all((model.path / name).is_file() for name in (*spec.files.values(), *spec.sha256))
        runs = whole and {"encoder", "decoder"} <= set(spec.files)
        return model if runs and self.digest in spec.source else None

    @property
    def bytes(self) -> int:
        """Size of its files on disk, without exported graphs."""
        return sum((self.path / name).stat().st_size for name in (*self.card.files, CARD))


def read_adapter_folder(path: str | Path) -> AdapterFolder:
    """Read and check the adapter in a folder. UserError says what is missing or damaged."""
    path = Path(path).expanduser().resolve()
    if not (path / CARD).is_file():
        raise UserError(_no_adapter(path))
    try:
        content = loaded((path / CARD).read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise UserError(f"{path / CARD} cannot be read ({error}): use another copy of the adapter.") from error
    card = Card.from_dict(content, str(path / CARD))
    if not {CONFIG, TENSORS} <= set(card.files):
        raise UserError(f"{path / CARD} does not name {TENSORS}: use another copy of the adapter.")
    for name, expected in card.files.items():
        if Path(name).name != name or not (path / name).is_file():
            raise UserError(f"The adapter {path} lacks its file {name}: copy the whole folder again.")
        if sha256_of(path / name) != expected:
            raise UserError(
                f"{path / name} is damaged or was replaced: its SHA-256 is not the one in {CARD}; use another copy."
            )
        if name in (TENSORS, CLASS_HEAD) and (bad := first_not_finite(path / name)):
            raise UserError(
                f"The adapter {path} holds values that are not numbers, in {bad}: its training failed; train it again."
            )
    return AdapterFolder(path, card)


def write_adapter_folder(
    folder: str | Path, config: Mapping[str, Any], tensors: bytes, class_head: bytes | None, card: Card
) -> Card:
    """Write an adapter's files into a folder, in an order that never leaves a mixture of old and new.

    Other files in the folder stay.

    Args:
        folder: made if needed.
        config: PEFT's configuration.
        tensors: content of the weights' file, in the format safetensors.
        class_head: the same of the class head, None without one.
        card: the adapter's card; its `files` are replaced.

    Returns:
        The card with the files' digests.
    """
    folder = Path(folder)
    files = {CONFIG: _json(dict(sorted(config.items()))), TENSORS: tensors}
    if class_head is not None:
        files[CLASS_HEAD] = class_head
    card = replace(card, files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    about = _about(folder, card)  # before anything is deleted
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    shutil.rmtree(folder / ONNX, ignore_errors=True)  # an export of the previous adapter
    for name in {TENSORS, CLASS_HEAD} - set(files):
        (folder / name).unlink(missing_ok=True)
    _write_all(folder, files | about)
    return card


def write_card(folder: Path, card: Card) -> None:
    """Write the card of the adapter in a folder, for people and for programs."""
    _write_all(folder, _about(folder, card))


def _about(folder: Path, card: Card) -> dict[str, bytes]:
    """The files of a card; the one that makes a folder an adapter comes last."""
    return {CARD_TEXT: as_markdown(card, folder.resolve().name).encode(), CARD: _json(card.to_dict())}


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)


def _no_adapter(path: Path) -> str:
    """The sentence about a path that is not an adapter's folder: what it is instead, and what to do."""
    if not path.exists():
        return f"There is no adapter folder {path}."
    if not path.is_dir():
        if path.name in (CARD, CARD_TEXT, CONFIG, TENSORS, CLASS_HEAD):
            return f"{path} is one file of an adapter: give its folder, {path.parent}."
        return f"{path} is a file, not an adapter: give a folder that `samfinetune train` wrote."
    if path.name == ONNX and (path.parent / CARD).is_file():
        return f"{path} is a part of the adapter {path.parent}: give that folder."
    if (path / SPEC_FILE).is_file():
        return (f"{path} is a model, not an adapter: use it with `samfinetune segment --model`, or import it with "
                "`samfinetune models import`.")
    if (path / CONFIG).is_file():
        return (f"The folder {path} has no {CARD}, without which its base is not known: choose a folder that "
                "`samfinetune train` wrote.")  # fmt: skip
    if (path / "run.json").is_file():
        return (f"{path} holds an unfinished training, not an adapter: continue with the same `samfinetune train` "
                "command and --resume.")  # fmt: skip
    if inside := sorted(file.parent.name for file in path.glob(f"*/{CARD}")):
        return f"{path} is not an adapter, but holds {', '.join(inside)}: give one of those folders."
    if any(file.suffix.lower() in (".pth", ".pt", ".safetensors") for file in path.iterdir()):
        return (f"{path} holds a checkpoint, not an adapter: add the checkpoint as a model with `samfinetune models "
                "import FILE`, and use that with `samfinetune segment --model`.")  # fmt: skip
    return f"The folder {path} has no adapter: choose a folder that `samfinetune train` wrote."


def tuned_spec(base: ModelSpec, adapter: AdapterFolder) -> ModelSpec:
    """The description of a base with an adapter in it: the base's, with the adapter's heads."""
    method = adapter.card.method
    return replace(base, heads=method.heads, classes=method.classes)


def is_base(adapter: AdapterFolder, model: ModelFolder) -> bool:
    """Whether an adapter was trained on this model, or this model is its own export."""
    if model.path == adapter.path / ONNX:
        return True
    return "weights" in model.spec.files and model.digest("weights") == adapter.card.base_digest


def require_base(adapter: AdapterFolder, base: ModelFolder) -> None:
    """Raise UserError when an adapter was trained on another model."""
    if is_base(adapter, base):
        return
    card = adapter.card
    if "weights" in base.spec.files and card.base == base.spec.id:
        here = base.digest("weights")
        raise UserError(
            f"The adapter {adapter.name} was trained on other weights of {card.base!r} than those here (SHA-256 "
            f"{card.base_digest[:12]}… instead of {here[:12]}…): install the weights it was trained on."
        )
    which = "" if "weights" in base.spec.files else ", which has only ONNX files"
    raise UserError(
        f"The adapter {adapter.name} was trained on the model {card.base!r}, and does not fit {base.spec.id!r}{which}: "
        f"choose the model {card.base!r}."
    )


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
