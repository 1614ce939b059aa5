"""How a client reaches a server: what every connection offers, and the connection to a server on another computer.

`worker` has the connection to a worker that the client itself starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.link import Address, HttpLink, parse_address
from SAMFineTuneLib.service.protocol import Buffer, Response

_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 5.0  # seconds between two tries
_PATIENCE = 120.0  # seconds for which a server that answered before is tried again


class Broken(Exception):
    """The request failed; another try may succeed. The text is a sentence."""


class Unusable(UserError):
    """The request failed, and trying again does not help until the user changes what the sentence says."""


class Connection:
    """A connection to one server, over an HttpLink."""

    is_local: ClassVar[bool]
    """Whether the client started the server itself, and may restart it."""
    waiting: str
    """What the client waits for until it is `ready`, as a sentence."""
    encrypted = True
    """Whether nobody in the network can read what is sent."""

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


class RemoteServer(Connection):
    """The connection to a server that runs independently of this client.

    It does not use the proxy variables of the environment: images of patients go to the server directly.

    Args:
        address: such as `https://gpu.hospital:8443` or `10.0.0.5:8443`.
        token: the server's token.
        ca_file: certificate (PEM) to trust besides those that the computer knows.

    Raises:
        UserError: for an address that cannot be used.
    """

    is_local = False

    def __init__(self, address: str | Address, token: str, ca_file: str | None = None) -> None:
        self.address = address if isinstance(address, Address) else parse_address(address)
        self.waiting = f"Connecting to {self.address}."
        self.encrypted = self.address.tls or self.address.is_loopback
        super().__init__(HttpLink(self.address, token, ca_file))
        self._answered = False
        self.retry()

    def retry(self) -> None:
        self._failures = 0
        self._next_try = 0.0
        self._failing_since: float | None = None

    def ready(self) -> bool:
        return time.monotonic() >= self._next_try

    def receive(self, wait: float) -> Response | None:
        try:
            answer = self._link.step(wait)
        except OSError as error:
            self._link.close()
            self._failed(str(error), getattr(error, "permanent", False))
        if answer is not None:
            self._answered = True
            self.retry()
        return answer

    def _failed(self, sentence: str, permanent: bool) -> None:
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if permanent or not self._answered or now - self._failing_since > _PATIENCE:
            raise Unusable(sentence)
        self._next_try = now + min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        raise Broken(sentence)
