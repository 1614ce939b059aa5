"""Examines a file to import: which model it is, its terms, and how its pictures are prepared.

Nothing is changed here: `Store.add` installs the proposal once the user has seen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.download.file_digests import check_file
from SAMFineTuneLib.models.download.manifest import PublishedModel, find_entry, known_models
from SAMFineTuneLib.models.spec import SPEC_FILE, ModelSpec, plain_id, read_model_folder
from SAMFineTuneLib.models.store import Source

if TYPE_CHECKING:
    from SAMFineTuneLib.models.formats.recognise_checkpoint import Recognition

_SETTINGS = "args.json"  # finetune-SAM's, read from beside its checkpoint


@dataclass(frozen=True)
class ImportProposal:
    """A model to install."""

    spec: ModelSpec
    sources: Mapping[str, Source]
    """Where each file of the model comes from, by its name in the model's folder."""
    findings: tuple[str, ...]
    """What was recognised and what is assumed, a line each."""
    terms: str
    """The licence and its conditions, a sentence; empty when they are not known."""
    ask_terms: bool
    """Whether the user must confirm the terms before the model is installed."""


def examine(
    path: str | Path, model_id: str | None = None, like: str | None = None, base: str | Path | None = None
) -> ImportProposal:
    """Examine a checkpoint file, or a model folder that `export` wrote.

    Args:
        path: the file or folder.
        model_id: the new model's id. A published model's id is refused for a file with another digest.
        like: id of the published model whose pixel rule the file was trained with.
        base: a complete checkpoint for a file that holds an image encoder only.

    Raises:
        UserError: when the file is not a known model, or does not fit.
    """
    path = Path(path)
    if path.is_dir():
        if like or base:
            raise UserError(f"{path} is a folder described by its {SPEC_FILE}; --like and --base are for files.")
        return _examine_folder(path, model_id)
    from SAMFineTuneLib.models.formats.checkpoint import require_undamaged
    from SAMFineTuneLib.models.formats.recognise_checkpoint import recognise

    recognition = recognise(path, base)
    for file in (path, base) if base else (path,):
        require_undamaged(file)
    recognition.require_fit()
    entry, notes = _identify(path, model_id, recognition)
    pixels, preparation = _preparation(recognition, like, entry)
    spec = ModelSpec(
        id=model_id or (entry.id if entry else plain_id(path.stem)),
        name=entry.name if entry else model_id or path.stem,
        licence=entry.licence if entry else "",
        source=entry.source if entry else path.name,
        files={"weights": "weights.safetensors" if base else f"weights{path.suffix.lower()}"},
        **recognition.spec_fields() | pixels,
    )
    sources: dict[str, Source] = {spec.files["weights"]: path}
    if base:  # written as one complete file, so that the model does not depend on another
        sources = {spec.files["weights"]: lambda target: _save(recognition, target)}
        notes.append(f"completed by the prompt encoder and mask decoder of {base}")
    if recognition.settings is not None:
        sources[_SETTINGS] = path.with_name(_SETTINGS)
    findings = (*recognition.summary().splitlines(), *notes, preparation)
    if entry:
        return ImportProposal(spec, sources, findings, f"{entry.licence}. {entry.licence_note}", entry.ask_terms)
    # The user confirms the terms of an encoder alone, which others have pre-trained; an unpublished complete file is
    # the user's.
    return ImportProposal(spec, sources, findings, "not known; ask the file's authors." if base else "", bool(base))


def _examine_folder(path: Path, model_id: str | None) -> ImportProposal:
    model = read_model_folder(path)
    model.verify()
    spec = replace(model.spec, id=model_id or model.spec.id)
    names = {*spec.files.values(), *spec.sha256}
    unchecked = ", ".join(sorted(names - spec.sha256.keys()))
    findings = (
        f"a model folder with {', '.join(spec.files)}",
        f"its {SPEC_FILE} has no digest of {unchecked}" if unchecked else f"every file has the digest in {SPEC_FILE}",
    )
    sources = {name: path / name for name in names}
    return ImportProposal(spec, sources, findings, spec.licence and f"{spec.licence}.", ask_terms=False)


def _identify(path: Path, model_id: str | None, recognition: Recognition) -> tuple[PublishedModel | None, list[str]]:
    """The published model that a file is, if any, and what was checked.

    The digest decides; when none is published, the id that the user gave, or the file's name.
    """
    if model_id in known_models():
        entry = known_models()[model_id]
        if (entry.architecture, entry.input_size) != (recognition.architecture, recognition.input_size):
            raise UserError(f"{path} is {_kind(recognition)}, but {entry.name} is {_kind(entry)}; import it "
                            "as another one, with `samfinetune models import --id`.")
        try:
            return entry, [check_file(path, "it", entry.bytes, entry.digests)]
        except UserError as error:
            raise UserError(f"{path} is not the published {entry.name}: {error} Weights of your own are imported "
                            f"with `samfinetune models import --like {entry.id}` and another --id.") from error
    notes = []
    size = path.stat().st_size
    for entry in known_models().values():
        named = path.name.lower() == entry.file.lower()
        if _kind(entry) != _kind(recognition) or not (named or entry.bytes == size):
            continue
        try:
            checked = check_file(path, "it", entry.bytes, entry.digests)
            return entry, [f"the published {entry.name}: {checked}"]
        except UserError as error:
            if named:
                notes.append(f"has the name of the published {entry.name}, but is not that file: {error}")
    return None, notes or ["not one of the published files, so taken for your own"]


def _kind(thing: PublishedModel | Recognition) -> str:
    return f"{thing.architecture} with {thing.input_size} pixels"


def _family(thing: PublishedModel | Recognition) -> str:
    """The architecture, whatever the size of its ViT."""
    return "sam_vit" if thing.architecture.startswith("sam_vit") else thing.architecture


def _preparation(
    recognition: Recognition, like: str | None, entry: PublishedModel | None
) -> tuple[Mapping[str, Any], str]:
    """The preprocessing of pictures for a checkpoint, as fields of ModelSpec, and a sentence about it.

    As for the published model `like`, for the published model that the file is, or as is usual for its architecture.
    finetune-SAM's files have a rule of their own, which `args.json` completes, and always resize by it.
    """
    own_rule = recognition.architecture == "finetune_sam"
    if like:
        teacher = find_entry(like)
        if _family(teacher) != _family(recognition) and not own_rule:
            raise UserError(f"{recognition.path} is {recognition.architecture}, and {teacher.name} is "
                            f"{teacher.architecture}; --like needs a published model of the same architecture.")
    elif own_rule:
        teacher = None
    else:
        usual = (published for published in known_models().values() if _kind(published) == _kind(recognition))
        teacher = entry or next(usual, None)
    if teacher is None:
        return {}, "pictures are prepared " + (
            "as its args.json says" if recognition.settings else
            "as is usual for its architecture, because nothing beside the file says how")  # fmt: skip
    fields = ("pixel_range", "pixel_mean", "pixel_std") if own_rule else teacher.preparation
    known = like or entry
    doubt = "" if known else (
        ", because the file does not say how; if that is wrong, import it with `samfinetune models import --like`"
    )
    return {name: teacher.preparation[name] for name in fields}, f"pictures are prepared as for {teacher.name}{doubt}"


def _save(recognition: Recognition, target: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.clone() for name, tensor in recognition.state_dict.items()}, target)
