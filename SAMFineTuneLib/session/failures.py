"""Errors of a model's runtime, as sentences for the user and details for the log."""

from __future__ import annotations

import logging

from SAMFineTuneLib.errors import UserError, is_out_of_memory


def as_sentence(error: Exception, task: str) -> UserError:
    """An error of the model's runtime as a sentence; the trace goes to the log."""
    if isinstance(error, UserError):
        return error
    logging.getLogger(__name__).error("The model failed to %s", task, exc_info=error)
    if is_out_of_memory(error):
        return UserError(
            f"There is too little memory to {task}; close other programs, or choose a smaller model or another device."
        )
    return UserError(f"The model could not {task} ({error}); try again, or choose another model or device.")


def details_of(error: BaseException) -> str:
    """The cause of an error, for the log."""
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else ""
