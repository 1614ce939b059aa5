"""How a client reaches a server: what every connection offers, and the connection to a server on another computer.

Nothing here waits: `ready` and `receive` do what can be done at once, and return. `worker` has the connection to a
worker that the client itself starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.link import Address, HttpLink, parse_address
from SAMFineTuneLib.service.protocol import Buffer, Response


class Broken(Exception):
    """The request failed; another try may succeed. The text is a sentence."""


class Unusable(UserError):
    """The request failed, and trying again does not help until the user changes what the sentence says."""


class Connection(Protocol):
    """A connection to one server."""

    is_local: bool
    """Whether the client started the server itself, and may restart it."""
    waiting: str
    """What the client waits for until it is `ready`, as a sentence."""

    def ready(self) -> bool:
        """Whether a request can be sent; takes the next step towards that. Raises Unusable."""
        ...

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        """Begin a request. There is one at a time."""
        ...

    def receive(self, wait: float) -> Response | None:
        """Advance the request, waiting for the network at most `wait` seconds.

        Returns:
            The answer once it is complete, None before.

        Raises:
            Broken, Unusable: when the request failed.
        """
        ...

    def drop(self) -> None:
        """Drop the request and close the connection it uses; `ready` opens a new one."""
        ...

    def retry(self) -> None:
        """Forget earlier failures, because the user changed something."""
        ...

    def close(self) -> None:
        """Close the connection, and end a server that the client started."""
        ...


_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 5.0
_PATIENCE = 120.0  # seconds for which a server that answered before is tried again


class RemoteServer:
    """The connection to a server that runs independently of this client.

    It does not use the proxy variables of the environment: images of patients go to the server directly.

    Args:
        address: such as `https://gpu.hospital:8443` or `10.0.0.5:8443`.
        token: the server's token.
        ca_file: certificate (PEM) to trust besides those that the computer knows.
        clock: seconds, never going back.

    Raises:
        UserError: for an address that cannot be used.
    """

    is_local = False

    def __init__(
        self,
        address: str | Address,
        token: str,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address if isinstance(address, Address) else parse_address(address)
        self.waiting = f"Connecting to {self.address}."
        self._link = HttpLink(self.address, token, ca_file)
        self._clock = clock
        self._answered = False
        self.retry()

    @property
    def encrypted(self) -> bool:
        """Whether nobody in the network can read what is sent."""
        return self.address.tls or self.address.is_loopback

    def retry(self) -> None:
        self._failures = 0
        self._next_try = 0.0
        self._failing_since: float | None = None

    def ready(self) -> bool:
        return self._clock() >= self._next_try

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        self._link.send(path, body)

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

    def drop(self) -> None:
        self._link.close()

    def close(self) -> None:
        self._link.close()

    def _failed(self, sentence: str, permanent: bool) -> None:
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if permanent or not self._answered or now - self._failing_since > _PATIENCE:
            raise Unusable(sentence)
        self._next_try = now + min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        raise Broken(sentence)
