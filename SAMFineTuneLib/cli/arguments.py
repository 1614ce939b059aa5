"""Options that several sub-commands share, and functions that open what they name."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.evaluation.executors import Engine
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder
    from SAMFineTuneLib.service.remote_server import RemoteServer

ORIENTATIONS = ("axial", "coronal", "sagittal")


class Parser(argparse.ArgumentParser):
    """A parser, and the class of all its sub-commands' parsers, that prints epilogs as they are written.

    It reads `--window -160,240` as `--window=-160,240`: argparse takes a word that begins with a dash for an option
    unless this pattern matches it, and its own pattern (before Python 3.14) matches single numbers only.
    """

    def __init__(self, *args, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs):
        super().__init__(*args, formatter_class=formatter_class, **kwargs)
        self._negative_number_matcher = re.compile(r"^-\.?\d")


def add_command_with_actions(subparsers, name: str, text: str, epilog: str) -> Callable:
    """Add a command that consists of actions, such as `models list`.

    Args:
        subparsers: those of the program.
        name: the command's name.
        text: what it does, for the program's help.
        epilog: examples, at the end of the command's help.

    Returns:
        The function that adds the parser of an action; it takes the action's name, the function that does it, and its
        description.
    """
    parser = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, function: Callable, text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(act=function)
        return added

    return action


def add_match_labels(parser: argparse.ArgumentParser) -> None:
    """--match-labels."""
    parser.add_argument(
        "--match-labels",
        metavar="HOW",
        choices=("index", "position"),
        default="",
        help="where files of images and labels disagree about where they lie: index takes labels voxel by voxel, "
        "position where their files say; default: such cases are refused",
    )


def add_volume(parser: argparse.ArgumentParser) -> None:
    """VOLUME, --series and --window."""
    parser.add_argument("volume", metavar="VOLUME", help="DICOM folder or file, NIfTI, NRRD, MetaImage, PNG or JPEG")
    parser.add_argument("--series", metavar="UID",
                        help="which series of a folder, or volume of one (echo, b-value, phase): its UID, or its "
                        "number in the list")  # fmt: skip
    parser.add_argument(
        "--window",
        metavar="WINDOW",
        help="grey values that become black and white: auto (default), dicom, ct-abdomen, ct-lung, ct-bone, …, "
        "percentiles, percentiles:1,99, minmax, or LOW,HIGH",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, --adapter, --device, --precision and --no-cache."""
    parser.add_argument(
        "--model", metavar="ID", help="as `samfinetune models list` prints it, or a model's folder (default: the "
        "adapter's base, else compact)"
    ).completer = _model_ids
    parser.add_argument(
        "--adapter", metavar="NAME", help="as `samfinetune adapters list` prints it, or an adapter's folder"
    ).completer = adapter_names
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps, directml or coreml")
    parser.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write embeddings on disk")


def add_server(
    parser: argparse.ArgumentParser, title: str = "another computer's model",
    meaning: str = "let a server of `samfinetune serve` do the work, as in https://gpu.hospital:8577; --model and "
    "--adapter are then its own",
) -> None:  # fmt: skip
    """--server, --token-file and --tls-ca, in a group of options with a `title`; `meaning` is the help of --server."""
    group = parser.add_argument_group(title)
    group.add_argument("--server", metavar="URL", help=meaning)
    group.add_argument("--token-file", metavar="FILE", help="file with the server's token (default: the variable "
                       "SAMFINETUNE_TOKEN)")  # fmt: skip
    add_certificate(group)


def add_certificate(parser: argparse._ActionsContainer) -> None:
    """--tls-ca."""
    parser.add_argument("--tls-ca", metavar="FILE", help="certificate (.pem) of the authority that signed the "
                       "server's, if this computer does not know it")  # fmt: skip


def add_engine(parser: argparse._ActionsContainer, default: str) -> None:
    """--jobs, --engine and --scheduler; `default` describes the number of processes without --jobs."""
    parser.add_argument("--jobs", type=int, metavar="N", help=f"processes at once (default: {default})")
    parser.add_argument("--engine", choices=("local", "dask"), default="local", help="processes here (default), or a "
                        "Dask cluster, whose computers see the files at the same paths")  # fmt: skip
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster; without one a cluster is started "
                        "here")  # fmt: skip


def chosen_engine(args: argparse.Namespace) -> Engine:
    """The engine that spreads the work, from the options of `add_engine`; UserError for options that contradict each
    other.
    """
    from SAMFineTuneLib.evaluation import executors

    if args.scheduler and args.jobs is not None:
        raise UserError("--jobs counts processes of this computer; leave it out with --scheduler.")
    if args.engine == "dask":
        return executors.dask(args.scheduler, args.jobs)
    if args.scheduler:
        raise UserError("--scheduler is an address of a Dask cluster; add --engine dask.")
    return executors.local(args.jobs)


def connection(args: argparse.Namespace) -> RemoteServer:
    """The connection to the server of --server; UserError for an address, token or options that cannot be used."""
    from SAMFineTuneLib.service.remote_server import RemoteServer

    if args.no_cache or args.precision != "auto":
        raise UserError("The server chooses precision and cache: leave out --precision and --no-cache.")
    return RemoteServer(args.server, *server_access(args))


def server_access(args: argparse.Namespace) -> tuple[str, str | None]:
    """Token and certificate for the server of --server, with a note about an unencrypted connection; UserError without
    a token.
    """
    from SAMFineTuneLib.service.server_address import parse_address
    from SAMFineTuneLib.service.worker import TOKEN_VARIABLE

    if args.token_file:
        token = read_token(Path(args.token_file).expanduser())
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UserError(f"The server asks for its token: give --token-file FILE, or set {TOKEN_VARIABLE}.")
    address = parse_address(args.server)
    if not (address.tls or address.is_loopback):
        print(f"note: images and the token travel to {address} without encryption; use https:// where the server has "
              "a certificate", file=sys.stderr)  # fmt: skip
    return token, args.tls_ca and str(Path(args.tls_ca).expanduser())


def read_token(path: Path) -> str:
    """The token in a file; UserError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"The token file {path} cannot be read: {reason}.") from error


def find_adapter(args: argparse.Namespace) -> AdapterFolder | None:
    """The adapter of --adapter, if given."""
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    return None if args.adapter is None else AdapterStore().find(args.adapter)


def open_predictor(args: argparse.Namespace, adapter: AdapterFolder | None = None) -> Predictor:
    """The model of --model with its adapter, over the embedding cache."""
    from SAMFineTuneLib.inference.open_predictor import open_predictor as opened

    adapter = adapter or find_adapter(args)
    return opened(
        args.model, adapter, args.device, args.precision, disk_cache=not args.no_cache,
        tell=lambda notice: print(f"note: {notice}", file=sys.stderr),
    )  # fmt: skip


def _model_ids(**_) -> list[str]:
    """Ids of the models in the store, for the completion of --model in a shell."""
    from SAMFineTuneLib.models.store import Store

    return [model.spec.id for model in Store().list()]


def adapter_names(**_) -> list[str]:
    """Names of the adapters in the store, for completion in a shell."""
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    return [adapter.name for adapter in AdapterStore().list()]
