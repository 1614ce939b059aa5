"""How a client reaches a server: `Connection`, the base of `LocalWorker` and `RemoteServer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.link import HttpLink
from SAMFineTuneLib.service.protocol import Buffer, Response


class Broken(Exception):
    """The request failed; another try may succeed. The text is a sentence."""


class Unusable(UserError):
    """The request failed, and will fail again until the user follows the sentence."""


class Connection:
    """A connection to one server, over an HttpLink."""

    is_local: ClassVar[bool]
    """Whether the client started the server itself, and may restart it."""
    waiting: str
    """What the client waits for until it is `ready`, as a sentence."""
    encrypted = True
    """Whether connections are encrypted, or do not leave this computer."""

    def __init__(self, link: HttpLink | None) -> None:
        self._link = link

    def ready(self) -> bool:
        """Whether a request can be sent; takes the next step towards that. Raises Unusable."""
        raise NotImplementedError

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        """Begin a request. There is one at a time."""
        self._link.send(path, body)

    def receive(self, wait: float) -> Response | None:
        """Advance the request, waiting for the network at most `wait` seconds.

        Returns:
            The answer once it is complete, None before.

        Raises:
            Broken, Unusable: when the request failed.
        """
        raise NotImplementedError

    def drop(self) -> None:
        """Drop the request and close the connection it uses; `ready` opens a new one."""
        if self._link is not None:
            self._link.close()

    def retry(self) -> None:
        """Forget earlier failures, because the user changed something."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection, and end a server that the client started."""
        self.drop()
