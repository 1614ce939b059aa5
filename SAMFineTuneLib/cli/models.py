"""`samfinetune models`: lists, shows, adds, exports and removes models."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console, outputs
from SAMFineTuneLib.cli.arguments import add_command_with_actions
from SAMFineTuneLib.cli.describe import print_facts, print_table
from SAMFineTuneLib.cli.long_work import on_interrupt
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import only_new, staged_folder
from SAMFineTuneLib.wording import readable_size

if TYPE_CHECKING:
    from SAMFineTuneLib.models.download.manifest import PublishedModel
    from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec
    from SAMFineTuneLib.models.store import Store

_EPILOG = """examples:
  samfinetune models list
  samfinetune models show medsam                                   terms, size, what computer it needs
  samfinetune models download sam-vit-b                            shows the licence and asks
  samfinetune models import sam_vit_b_01ec64.pth                   a file you have already; no network
  samfinetune models import best.pth --id my-liver --like medsam   weights of your own, trained on MedSAM's pixels
  samfinetune models import encoder.pth --id sslsam --base sam_vit_b_01ec64.pth
  samfinetune models export my-liver -o my-liver-onnx --int8       runs without PyTorch
  samfinetune models import my-liver-onnx                          ... on another computer
  samfinetune models remove my-liver

Models are kept in one folder, set by the variable SAMFINETUNE_MODELS. Downloads go through the proxy that
HTTPS_PROXY names, except to the hosts in NO_PROXY.
"""


def add_parser(subparsers) -> None:
    """Add `models` and its actions."""
    action = add_command_with_actions(subparsers, "models", "list, download, import, export and remove models", _EPILOG)
    console.add_json(action("list", _list, "list the models on this computer and those that can be added"))
    added = action("show", _show, "show everything known about a model")
    added.add_argument("id", metavar="ID", help="as `samfinetune models list` prints it")
    added = action("import", _import, "add a model from a checkpoint file, or from a folder that `export` wrote")
    added.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors; it is copied and stays where it is")
    added.add_argument("--id", help="what to call it (default: after the file, or the published model that it is)")
    added.add_argument("--like", metavar="ID", help="published model whose image preparation it was trained with")
    added.add_argument("--base", metavar="FILE", help="complete checkpoint, for a file with an image encoder only (a "
                                                      "file, or the id of an installed model)")
    added.add_argument("--yes", action="store_true", help="agree to the terms without being asked")
    added = action("download", _download, "download a published model, after showing its licence")
    added.add_argument("id", metavar="ID", help="as `samfinetune models list` prints it")
    added.add_argument("--yes", action="store_true", help="agree to the licence without being asked, for scripts")
    added = action("remove", _remove, "remove a model that was added, or the files of an interrupted download")
    added.add_argument("id", metavar="ID")
    added = action("export", _export, "write a model as ONNX files, which run without PyTorch, into a folder")
    added.add_argument("id", metavar="ID")
    added.add_argument("-o", "--output", metavar="FOLDER", required=True, help="new folder for the exported model")
    added.add_argument("--int8", action="store_true", help="8-bit weights in the encoder: a quarter of the size")


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    from SAMFineTuneLib.models.store import Store

    args.act(Store(), args)
    return 0


def _list(store: Store, args: argparse.Namespace) -> None:
    listed = ("id", "name", "bytes", "where", "licence")
    models = [{name: row[name] for name in listed} for row in store.overview()]
    problems = store.problems()
    console.document(folder=store.folder, models=models, problems=problems)
    rows = [("ID", "MODEL", "SIZE", "WHERE", "LICENCE")]
    for model in models:
        size = readable_size(model["bytes"]) if model["bytes"] else "-"
        rows.append((model["id"], model["name"], size, model["where"], model["licence"] or "-"))
    print_table(rows)
    print(f"\nInstalled models are in {store.folder}; `samfinetune models show ID` tells more.")
    for problem in problems:
        print(f"Not usable: {problem}")


def _show(store: Store, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.models.download.manifest import known_models

    entry = known_models().get(args.id)
    try:
        model = store.get(args.id)
    except UserError:
        if entry is None:
            raise
        model = None
    print_facts(_facts(store, model, entry))


def _facts(store: Store, model: ModelFolder | None, entry: PublishedModel | None) -> list[tuple[str, str]]:
    """The facts about a model, from its folder on this computer and the list of published models."""
    from SAMFineTuneLib.models.spec import ModelSpec

    runtime, facts = "PyTorch", []
    if model:
        spec = model.spec
        facts += [("status", "bundled with SAMFineTune" if store.is_bundled(model) else "installed"),
                  ("folder", str(model.path))]
        for role, name in spec.files.items():
            size = readable_size(model.file(role).stat().st_size) if model.has(role) else "MISSING"
            facts.append((role, f"{name}, {size}, sha256 {spec.sha256.get(name, 'not recorded')}"))
        if model.has("encoder"):
            runtime = "ONNX Runtime, which is installed with SAMFineTune"
    else:
        spec = ModelSpec(entry.id, entry.name, entry.architecture, entry.input_size, licence=entry.licence,
                         source=entry.source, **entry.preparation)
        facts.append(("status", "not on this computer"))
    facts += [("runs with", runtime), ("architecture", spec.architecture), ("input", _input(spec))]
    if spec.classes:
        alone = "" if "promptable" in spec.heads else "; it takes no prompts"
        facts.append(("automatic", ", ".join(spec.classes[1:]) + alone))
    facts += [("licence", spec.licence or "not stated"), ("source", spec.source or "not stated")]
    if entry:
        facts += [("what", entry.description), ("needs", entry.needs), ("terms", entry.licence_note)]
    if not model:
        if entry.file:
            digests = ", ".join(f"{kind} {value}" for kind, value in entry.digests.items()) or "no digest published"
            facts.append(("file", f"{entry.file}, {_size(entry)}, {digests}"))
        how = f"samfinetune models download {entry.id}" if entry.downloadable else entry.how_to_get
        facts += [*(("address", url) for url in entry.urls), ("get it", how)]
    return [("id", spec.id), ("name", spec.name), *facts]


def _size(entry: PublishedModel) -> str:
    return readable_size(entry.bytes) if entry.bytes else "size not stated"


def _input(spec: ModelSpec) -> str:
    resize = {"longest_side_pad": "longest side resized, the rest padded", "squash": "both sides resized"}[spec.resize]
    values = {
        "0-255": "grey values 0-255",
        "minmax": "each picture stretched to 0-1",
        "percentiles": "each picture stretched to 0-255 with 0.5 % cut at either end",
    }[spec.pixel_range]
    numbers = [", ".join(f"{value:g}" for value in values) for values in (spec.pixel_mean, spec.pixel_std)]
    return (f"{spec.input_size} x {spec.input_size} pixels, {resize} ({spec.interpolation}); {values}, "
            f"less {numbers[0]}, over {numbers[1]}")


def _import(store: Store, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.models.formats.import_model import examine

    proposal = examine(args.file, args.id, args.like, _base(store, args.base))
    store.check_new(proposal.spec.id)
    if Path(args.file).is_dir():
        _require_running(Path(args.file))
    print(args.file)
    _print_lines(proposal.findings)
    if proposal.terms:
        _print_lines([f"terms: {proposal.terms}"])
    if proposal.ask_terms and not _agreed(args.yes, "May you use this model under its terms?"):
        return
    _say_installed(store.add(proposal.spec, proposal.sources))


def _require_running(folder: Path) -> None:
    """Raise UserError when the ONNX files in a folder do not run, or their answers do not fit the description."""
    from SAMFineTuneLib.inference.engine import open_engine, try_once
    from SAMFineTuneLib.models.spec import read_model_folder

    model = read_model_folder(folder)
    if model.has("encoder") and model.has("decoder"):
        try_once(open_engine(model, "cpu", engine="onnx"))


def _base(store: Store, base: str | None) -> Path | None:
    """The file that --base names: a file, or the weights of a model on this computer."""
    if base is None or Path(base).exists():
        return base and Path(base)
    try:
        return store.get(base).file("weights")
    except UserError as error:
        raise UserError(f"--base {base} is neither a file nor a model with weights: {error}") from error


def _download(store: Store, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from SAMFineTuneLib.models.download.manifest import find_entry
    from SAMFineTuneLib.models.download.published_models import check_possible, fetch

    store.check_new(args.id)
    entry = find_entry(args.id)
    check_possible(store, entry)
    print(f"{entry.name}, {_size(entry)}")
    _print_lines([*(f"from {url}" for url in entry.urls), f"into {store.folder}",
                  f"terms: {entry.licence}. {entry.licence_note}", f"more at {entry.source}"])
    if not _agreed(args.yes, "Download it under these terms?"):
        return
    with tqdm(desc=entry.file, unit="B", unit_scale=True, disable=console.is_quiet()) as bar:

        def show(received: int, total: int | None) -> None:
            bar.total = total
            bar.update(received - bar.n)

        with on_interrupt("interrupted; what has arrived is kept, run the same command again to continue or "
                          f"`samfinetune models remove {entry.id}` to delete it."):
            model, findings = fetch(store, entry, show)
    _print_lines(findings)
    _say_installed(model)


def _remove(store: Store, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.models.download.manifest import known_models
    from SAMFineTuneLib.models.download.published_models import forget

    leftover = args.id in known_models() and forget(store, known_models()[args.id])
    if leftover:
        print(f"Removed an unfinished download of {args.id}.")
    if leftover and args.id not in (model.spec.id for model in store.list()):
        return
    store.remove(args.id)
    print(f"Removed {args.id} from {store.folder}.")


def _export(store: Store, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.models.onnx_export import export_model

    output = outputs.require_new_folder(args.output)
    with only_new(), staged_folder(output) as building:
        model = export_model(store.get(args.id), building, int8=args.int8)
    print_graphs(output)
    print_importable(output, model.spec.id)


def print_graphs(folder: Path) -> None:
    """Print the graphs that were written into a folder."""
    sizes = [f"{path.name} ({readable_size(path.stat().st_size)})" for path in sorted(folder.glob("*.onnx*"))]
    print(f"Wrote {', '.join(sizes)} to {folder}.")


def print_importable(folder: Path, model_id: str) -> None:
    """Print how to use a model that was exported into a folder."""
    print(f"`samfinetune models import {folder}` adds it on any computer, where --model {model_id} runs it "
          "without PyTorch.")


def _agreed(yes: bool, question: str) -> bool:
    if yes or console.confirmed(question):
        return True
    print("Nothing was changed.")
    return False


def _say_installed(model: ModelFolder) -> None:
    print(f"Installed {model.spec.id} ({readable_size(model.bytes)}) in {model.path}; "
          f"use it with --model {model.spec.id}.")


def _print_lines(lines) -> None:
    for line in lines:
        print(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    ",
                            break_long_words=False, break_on_hyphens=False))
