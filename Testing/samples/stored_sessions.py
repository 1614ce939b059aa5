"""Opens the document of a session in a session of its own."""

from __future__ import annotations

from typing import Any

from SAMFineTuneLib.images import Volume
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import read_document, restore


def restored(values: Any, volume: Volume, predictor=None, listener=None) -> Session:
    """The session of a document; a `listener` hears all that the session tells."""
    window, *_ = read_document(values, volume)
    session = Session()
    if listener is not None:
        session.listen(listener)
    if predictor is not None:
        session.set_model(predictor)
    session.set_volume(volume, window)
    restore(session, values)
    return session
