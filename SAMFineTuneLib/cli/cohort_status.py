"""What every `samfinetune cohort` command prints: the cohort's state, and what to do next."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.cohort_on_server import running_now, server_options
from SAMFineTuneLib.cli.describe import print_facts
from SAMFineTuneLib.wording import counted, within_sentence

if TYPE_CHECKING:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort
    from SAMFineTuneLib.cohort.cohort_state import CohortCase


def print_status(cohort: Cohort) -> None:
    """Counts by state, the adapter in use with its evidence, what to do next."""
    state = cohort.state
    counts = {name: len(state.those(name)) for name in ("accepted", "corrected", "proposed", "untouched", "refused")}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    adapter, busy, advice = state.adapter, running_now(cohort), next_step(cohort)
    facts = [("cases", f"{len(state.cases)}: {words}"), ("labels", ", ".join(state.labels.values()))]
    if adapter is not None:
        learned = f"adapter {adapter.number} of {adapter.date}, learned from {counted(len(adapter.learned), 'case')}"
        facts.append(("adapter", f"{learned}; {within_sentence(adapter.reason)}"))
        if (last := state.adapters[-1]) != adapter:
            facts.append(("not used", f"adapter {last.number} of {last.date}; {within_sentence(last.reason)}"))
    elif state.adapters:
        facts.append(("adapter", f"none in use; {within_sentence(state.adapters[-1].reason)}"))
    if wrong := [case for case in state.cases if case.trouble]:
        facts.append(("images", _about_images(cohort, wrong)))
    facts += [("running", sentence) for sentence in busy.values()]
    print_facts([*facts, ("next", advice)])
    console.document(
        cohort=cohort.folder, model=state.model, labels={str(value): name for value, name in state.labels.items()},
        counts=counts, adapter=adapter.number if adapter else None, running=busy, advice=advice,
    )  # fmt: skip


def _about_images(cohort: Cohort, wrong: Sequence[CohortCase]) -> str:
    """Which images were moved, changed or lost, and what to do, as a sentence."""
    from SAMFineTuneLib.cohort.image_check import TROUBLES
    from SAMFineTuneLib.service.cohort_client import place_of

    counts = Counter(case.trouble for case in wrong)
    said = ", ".join(f"{counts[trouble]} {trouble}" for trouble in TROUBLES if counts[trouble])
    if place_of(cohort.folder):
        return f"{said}; ask the server's administrator"
    advice = []
    if counts["moved"] + counts["gone"]:
        where = "FOLDER" if counts["gone"] else _quoted(cohort.images)
        advice.append(f"find what was moved: samfinetune cohort locate {cohort_word(cohort)} {where}")
    if counts["changed"] + counts["unreadable"]:
        advice.append("put the old files back")
    if counts["unreadable"]:
        advice.append("or ask for permission to read them")
    return f"{said}; {', '.join(advice)}"


def next_step(cohort: Cohort) -> str:
    """What to do next, as a sentence."""
    from SAMFineTuneLib.cohort.judges import FIRST, is_due

    state, command = cohort.state, f"samfinetune cohort {{}} {cohort_word(cohort)}"
    adapter, busy = state.adapter, running_now(cohort)
    if is_due(state) and not busy:
        return f"Enough is accepted for a training: {command.format('train')}"
    waiting, untouched = state.those("proposed", "corrected"), state.those("untouched")
    free = [case for case in untouched if not case.problem and not case.taken()]
    if adapter is not None and free and not busy:
        return f"{counted(len(free), 'case')} can be proposed: {command.format('propose')}"
    earlier = [case for case in state.those("proposed")
               if adapter and case.proposal and case.proposal.adapter != adapter.number]  # fmt: skip
    if earlier and not busy:
        return f"Earlier adapters made some of the proposals: {command.format('propose')} --again"
    if waiting:
        return f"{counted(len(waiting), 'case')} to review: {command.format('next')}"
    if busy:
        work = {"train": "the training", "propose": "the proposals"}.get(next(iter(busy)), "the server")
        return f"Wait for {work}; this shows its progress: {command.format('status')}"
    if untouched:
        more = f", until {FIRST} are accepted and a training can begin" if not state.adapters else ""
        return (
            f"Segment a case with prompts, in Slicer or with “samfinetune segment”, and accept it{more}: "
            f"{command.format('accept')} {case_word(cohort, untouched[0])} --labels FILE"
        )
    if state.accepted:
        return f"All cases are reviewed: {command.format('report')}, {command.format('export')} -o FOLDER"
    return f"All cases are refused; add others: {command.format('add')} IMAGES"


def print_case(cohort: Cohort, case: CohortCase) -> None:
    """Print what to do next, and give a program the facts of a case."""
    print(f"next        {next_step(cohort)}")
    console.document(case=case_facts(cohort, case), advice=next_step(cohort))


def case_facts(cohort: Cohort, case: CohortCase) -> dict[str, Any]:
    """A case for a program."""
    proposal, review = case.proposal, case.review
    return {
        "key": case.key, "name": case.name, "image": str(cohort.path(case)), "state": case.state,
        "taken": case.taken(), "problem": case.problem, "trouble": case.trouble,
        "proposal": proposal and {"adapter": proposal.adapter, "confidence": dict(proposal.confidence),
                                  "doubtful_slices": proposal.doubtful},
        "review": review and {"order": review.order, "seconds": review.seconds, "prompts": review.prompts,
                              "dice_of_proposal": dict(review.dice)},
    }  # fmt: skip


def cohort_word(cohort: Cohort) -> str:
    """A cohort as an argument of commands."""
    from SAMFineTuneLib.service.cohort_client import place_of

    place = place_of(cohort.folder)
    if place is None:
        return _quoted(cohort.folder)
    return " ".join(map(_quoted, (place.cohort, *server_options(cohort.folder))))


def case_word(cohort: Cohort, case: CohortCase) -> str:
    """A case as an argument of commands: its name, or its key if the name has a meaning for a shell or belongs to
    another case, too.
    """
    plain = re.fullmatch(r"\w[\w.-]*", case.name)
    return case.name if plain and [one.name for one in cohort.state.cases].count(case.name) == 1 else case.key


def _quoted(word: object) -> str:
    """A word of a command, quoted for shells."""
    if re.fullmatch(r"[\w./\\:~-]+", str(word)):
        return str(word)
    return f'"{word}"' if os.name == "nt" else shlex.quote(str(word))
