"""Opens the cohort that a command is about: a folder here, or the cohort of that name on the server of --server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli.arguments import server_access
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort
    from SAMFineTuneLib.cohort.cohort_state import CohortState
    from SAMFineTuneLib.service.cohort_client import ServedCohort

_opened: dict[Path, tuple[ServedCohort, tuple[str, ...]]] = {}
_PATIENCE = 120.0  # s for which to retry a server that answered before


def open_cohort(args: argparse.Namespace) -> Cohort:
    """The cohort of a command, here or as a copy of a server's."""
    return open_served(args).cohort if args.server else open_here(args)


def open_here(args: argparse.Namespace) -> Cohort:
    """Open the cohort that the command names, in a folder of this computer."""
    from SAMFineTuneLib.cohort.cohort_folder import Cohort

    return Cohort(args.cohort)


def open_served(args: argparse.Namespace) -> ServedCohort:
    """The cohort on the server of --server, in its present state."""
    from SAMFineTuneLib.service.cohort_client import CohortPlace, ServedCohort, mirror

    token, certificate = server_access(args)
    served = ServedCohort(mirror(CohortPlace(args.server, args.cohort, certificate or "")), token, _PATIENCE)
    options = [("--server", args.server), ("--token-file", args.token_file), ("--tls-ca", args.tls_ca)]
    _opened[served.folder] = served, tuple(word for option, value in options if value for word in (option, value))
    served.follow()
    return served


def server_options(folder: Path) -> tuple[str, ...]:
    """The options with which this command reached the cohort's server, for the commands that it suggests."""
    return _opened[folder][1] if folder in _opened else ()


def running_now(cohort: Cohort) -> dict[str, str]:
    """The work running for a cohort, here or on its server, see `running_work.running`."""
    from SAMFineTuneLib.cohort.running_work import running

    return _opened[cohort.folder][0].running if cohort.folder in _opened else running(cohort.folder)


def case_names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Names of the cases, for the completion of CASE in a shell."""
    try:
        state: CohortState = (open_cohort if hasattr(parsed_args, "token_file") else open_here)(parsed_args).state
    except (UserError, AttributeError):
        return []
    return [case.name for case in state.cases]
