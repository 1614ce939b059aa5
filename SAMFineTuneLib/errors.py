"""Errors that users read, and those of a model's runtime turned into them."""

from __future__ import annotations

import logging


class UserError(ValueError):
    """Wrong file, prompt, checkpoint, adapter, address or setting.

    Its text is one sentence that says what is wrong and what to do. The command line prints it and exits
    with code 2, the panel shows it; neither shows a stack trace.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch or ONNX Runtime ran out of memory, in RAM or on the GPU."""
    said = f"{type(error).__name__} {error}".lower()
    signs = ("outofmemory", "out of memory", "failed to allocate", "bad_alloc", "not enough memory", "alloc_failed",
             "memoryallocation", "unable to allocate", "is killed by signal: killed")  # fmt: skip
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)


def model_error(error: Exception, task: str) -> UserError:
    """An error of a model's runtime as a sentence; the trace goes to the log.

    Args:
        error: the exception.
        task: what the model was to do, such as "propagate the segment".
    """
    if isinstance(error, UserError):
        return error
    logging.getLogger(__name__).error("The model failed to %s", task, exc_info=error)
    if is_out_of_memory(error):
        return UserError(
            f"There is too little memory to {task}; close other programs, or choose a smaller model or another device."
        )
    return UserError(f"The model could not {task} ({error}); try again, or choose another model or device.")


def cause_of(error: BaseException) -> str:
    """The cause of an error, for the log; "" without one."""
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else ""
