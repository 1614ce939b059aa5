"""Errors that users read, and how running out of memory is recognised."""


class UserError(ValueError):
    """Wrong file, prompt, checkpoint, adapter, address or setting.

    Its text is one sentence that says what is wrong and what to do. The command line prints it and exits
    with code 2, the panel shows it; neither shows a stack trace.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch or ONNX Runtime ran out of memory, in RAM or on the GPU."""
    said = f"{type(error).__name__} {error}".lower()
    signs = ("outofmemory", "out of memory", "failed to allocate", "bad_alloc", "not enough memory", "alloc_failed",
             "memoryallocation")  # fmt: skip
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)
