"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Wrong file, prompt, checkpoint, adapter, address or setting.

    Its text is one sentence that says what is wrong and what to do. The command line prints it and exits
    with code 2, the panel shows it; neither shows a stack trace.
    """
