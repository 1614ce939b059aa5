"""Opens the cohort that a command is about: a folder here, or the cohort of that name on the server of --server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli.arguments import server_access
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort, CohortState
    from SAMFineTuneLib.service.cohort_client import ServedCohort

_PATIENCE = 120.0  # s for which a server that answered before is asked again


def open_cohort(args: argparse.Namespace) -> Cohort:
    """The cohort of a command that may be about one on a server."""
    return open_served(args).cohort if args.server else open_here(args)


def open_here(args: argparse.Namespace) -> Cohort:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort

    return Cohort(args.cohort)


def open_served(args: argparse.Namespace) -> ServedCohort:
    """The cohort on the server of --server, as it stands now."""
    from SAMFineTuneLib.service.cohort_client import CohortPlace, ServedCohort, mirror

    token, certificate = server_access(args)
    served = ServedCohort(mirror(CohortPlace(args.server, args.cohort, certificate or "")), token, _PATIENCE)
    served.follow()
    return served


def case_names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """For the completion of CASE in a shell."""
    try:
        state: CohortState = (open_cohort if hasattr(parsed_args, "token_file") else open_here)(parsed_args).state
    except (UserError, AttributeError):
        return []
    return [case.name for case in state.cases]
