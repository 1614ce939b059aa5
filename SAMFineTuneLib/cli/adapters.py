"""`samfinetune adapters`: lists, compares, merges, exports, imports and removes adapters."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console, outputs
from SAMFineTuneLib.cli.arguments import add_command_with_actions
from SAMFineTuneLib.cli.describe import print_facts, print_table
from SAMFineTuneLib.cli.models import print_graphs, print_importable
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import only_new, staged_folder
from SAMFineTuneLib.wording import counted, duration, readable_size

if TYPE_CHECKING:
    from SAMFineTuneLib.models.adapters.adapter_card import Card
    from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
    from SAMFineTuneLib.models.spec import ModelFolder

_EPILOG = """examples:
  samfinetune adapters import liver-adapter          keep what `samfinetune train` wrote under the name liver-adapter
  samfinetune adapters list
  samfinetune adapters show liver-adapter            base, recipe, Dice before and after
  samfinetune adapters compare liver-a liver-b       the same side by side
  samfinetune adapters export liver-adapter          lets it run without PyTorch, on this computer ...
  samfinetune adapters export liver-adapter -o liver-onnx --int8
  samfinetune models import liver-onnx               ... and on any other
  samfinetune adapters merge liver-adapter --id my-liver
  samfinetune adapters remove liver-adapter

Use an adapter with `samfinetune segment --adapter NAME`. Instead of a name you can give an adapter's folder (./NAME
when there are both). Adapters are kept in one folder, set by the variable SAMFINETUNE_ADAPTERS.
"""


def add_parser(subparsers) -> None:
    """Add `adapters` and its actions."""
    text = "list, compare, merge, export, import and remove adapters"
    action = add_command_with_actions(subparsers, "adapters", text, _EPILOG)
    console.add_json(action("list", _list, "list the adapters on this computer"))
    added = action("show", _show, "show an adapter's card")
    added.add_argument("name", metavar="NAME", help="as `samfinetune adapters list` prints it, or an adapter's folder")
    added = action("compare", _compare, "show several adapters side by side")
    added.add_argument("names", metavar="NAME", nargs="+", help="names or folders")
    added = action("import", _import, "copy an adapter's folder into those of this computer")
    added.add_argument("folder", metavar="FOLDER", help="as `samfinetune train` wrote it; it stays where it is")
    added.add_argument("--name", help="what to call it (default: the folder's name)")
    added = action("export", _export, "merge an adapter into its base as ONNX files, which run without PyTorch")
    added.add_argument("name", metavar="NAME", help="name or folder")
    added.add_argument("-o", "--output", metavar="FOLDER",
                       help="new folder for a model that any computer can import (default: into the adapter's own, "
                       "where --adapter finds it)")  # fmt: skip
    added.add_argument("--int8", action="store_true", help="with -o: 8-bit weights in the encoder, a quarter as large")
    added = action("merge", _merge, "merge an adapter into its base as a model of its own")
    added.add_argument("name", metavar="NAME", help="name or folder")
    added.add_argument("--id", metavar="ID", required=True, help="what to call the model")
    added = action("remove", _remove, "delete an adapter")
    added.add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    args.act(AdapterStore(), args)
    return 0


def _list(store: AdapterStore, args: argparse.Namespace) -> None:
    adapters, problems = store.list(), store.problems()
    rows = [("NAME", "BASE", "LABELS", "METHOD", "SIZE", "PROMPT", "DICE BEFORE", "AFTER")]
    listed = []
    for adapter in adapters:
        card, method = adapter.card, str(adapter.card.method)
        gains = [{"prompt": gain.prompt, "label": gain.label, "cases": len(gain.cases), "dice_before": gain.means[0],
                  "dice_after": gain.means[1]} for gain in card.gains]  # fmt: skip
        listed.append({"name": adapter.name, "base": card.base, "labels": list(card.labels), "method": method,
                       "bytes": adapter.bytes, "gains": gains})  # fmt: skip
        rows.append((adapter.name, card.base, ", ".join(card.labels) or "-", method, readable_size(adapter.bytes),
                     *_gain(card)))  # fmt: skip
    console.document(folder=store.folder, adapters=listed, problems=problems)
    if len(rows) > 1:
        print_table(rows)
    else:
        print("There are no adapters yet; `samfinetune train` makes one.")
    print(f"\nAdapters are in {store.folder}; `samfinetune adapters show NAME` tells more.")
    for problem in problems:
        print(f"Not usable: {problem}")


def _show(store: AdapterStore, args: argparse.Namespace) -> None:
    print_facts(_facts(store.find(args.name)))


def _compare(store: AdapterStore, args: argparse.Namespace) -> None:
    adapters = [store.find(name) for name in args.names]
    columns = [dict(_facts(adapter)) for adapter in adapters]
    labels = dict.fromkeys(label for column in columns for label in column)
    hidden = ("folder", "base SHA-256", "files")
    print_table([(label, *(column.get(label, "-") for column in columns)) for label in labels if label not in hidden])
    if len({frozenset(case for gain in adapter.card.gains for case in gain.cases) for adapter in adapters}) > 1:
        console.note("these adapters were not tested on the same cases, so their Dice cannot be compared; “samfinetune "
                     "evaluate” with --adapter for each of them tests them on the same ones")  # fmt: skip


def _import(store: AdapterStore, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.inference.engine import open_engine, try_once
    from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
    from SAMFineTuneLib.models.adapters.apply_adapter import Misfit
    from SAMFineTuneLib.models.adapters.merged_export import make_ready

    given = read_adapter_folder(args.folder)
    if given.exported is not None:
        try_once(open_engine(given.exported, "cpu", engine="onnx"))
    adapter = store.add(args.folder, args.name)
    try:
        note = make_ready(adapter.path, _base(adapter))
    except Misfit:
        store.remove(adapter.name)
        raise
    except UserError as error:  # the base may be added later
        note = str(error)
    print(f"Added {adapter.name} to {store.folder}; use it with --adapter {adapter.name}.")
    if note:
        print(f"note: {note}", file=sys.stderr)
    elif store.get(adapter.name).exported is not None:
        print("It runs without PyTorch.")


def _export(store: AdapterStore, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.models.adapters.merged_export import export_adapter, export_merged
    adapter = store.find(args.name)
    base = _base(adapter)
    if args.output is None:
        if args.int8:
            raise UserError("--int8 is for a model of its own: give its folder with -o.")
        print_graphs(export_adapter(adapter, base).path)
        print(f"--adapter {args.name} now runs without PyTorch.")
        return
    output = outputs.require_new_folder(args.output)
    with only_new(), staged_folder(output) as building:
        model = export_merged(adapter, base, building, adapter.name, args.int8)
    print_graphs(output)
    print_importable(output, model.spec.id)


def _merge(store: AdapterStore, args: argparse.Namespace) -> None:
    from SAMFineTuneLib.models.adapters.merged_export import add_merged
    from SAMFineTuneLib.models.store import Store

    adapter = store.find(args.name)
    model = add_merged(adapter, _base(adapter), Store(), args.id)
    print(f"Installed {model.spec.id} in {model.path}; use it with --model {model.spec.id}.")


def _remove(store: AdapterStore, args: argparse.Namespace) -> None:
    store.remove(args.name)
    print(f"Removed {args.name} from {store.folder}.")


def _base(adapter: AdapterFolder) -> ModelFolder:
    from SAMFineTuneLib.models.store import Store

    return Store().trained_on(adapter)


def _facts(adapter: AdapterFolder) -> list[tuple[str, str]]:
    """The facts of a card, a line each; a gain's label is its kind of prompt."""
    from SAMFineTuneLib.models.adapters.adapter_card import dice_text
    card, method = adapter.card, adapter.card.method
    facts = [
        ("name", adapter.name),
        ("folder", str(adapter.path)),
        ("base", f"{card.base} ({card.base_architecture})"),
        ("base SHA-256", card.base_digest),
        ("labels", ", ".join(card.labels) or "not named"),
        ("method", str(method)),
        ("answers", "points and boxes" if "promptable" in method.heads else "no prompts"),
        ("automatic", ", ".join(method.classes[1:]) or "nothing"),
        ("runs with", "ONNX Runtime, which is installed with SAMFineTune" if adapter.exported else "PyTorch"),
        ("size", readable_size(adapter.bytes)),
        ("cases", str(len(card.cases))),
        ("trained", " ".join(filter(None, (card.date, f"in {duration(card.seconds)}" if card.seconds else "",
                                           f"on {card.hardware}" if card.hardware else "")))),
        *((str(key), ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
          for key, value in card.recipe.items()),
    ]  # fmt: skip
    for gain in card.gains:
        before = "no answer" if gain.means[0] is None else f"Dice {dice_text(gain.means[0], gain.interval_before)}"
        after = dice_text(gain.means[1], gain.interval_after)
        what = ", ".join(filter(None, (gain.prompt, gain.label)))
        facts.append((what, f"{before} before, {after} after, on {counted(len(gain.cases), 'held-out case')}"))
    return facts


def _gain(card: Card) -> tuple[str, str, str]:
    """A kind of prompt, and the mean Dice over all labels before and after, for the first kind that the base answers
    too.
    """
    from SAMFineTuneLib.models.adapters.adapter_card import dice_text

    overall = {gain.prompt: gain for gain in card.gains}.values()  # the last of each kind: all labels together
    gain = min(overall, key=lambda gain: None in gain.means, default=None)
    return (gain.prompt, *map(dice_text, gain.means)) if gain else ("-", "-", "-")
