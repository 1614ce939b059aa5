"""How a client reaches a server: a protocol, and the ways that need no process of their own.

Nothing here waits: `ready` and `receive` look, do what can be done at once, and return.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.link import Address, HttpLink, parse_address
from SAMFineTuneLib.service.protocol import Buffer, Response


class Broken(Exception):
    """The exchange under way came to nothing; another try may do better. The text is a sentence."""


class Unusable(UserError):
    """Trying again is of no use until somebody changes something; a sentence says what."""


class Connection(Protocol):
    """One way to one server."""

    is_local: bool
    """Whether the server is this client's own, which may be restarted."""
    waiting: str
    """What is waited for before `ready`, as a sentence."""

    def ready(self) -> bool:
        """Whether a request can be sent; does what leads there. Raises Unusable."""
        ...

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        """Begin a request; there is one at a time."""
        ...

    def receive(self, wait: float) -> Response | None:
        """Go on with it, waiting for the network at most `wait` seconds. Raises Broken or Unusable."""
        ...

    def drop(self, unresponsive: bool = False) -> None:
        """Give up the request and the line it is on; `ready` finds a new one."""
        ...

    def retry(self) -> None:
        """Somebody changed something: be as willing as at first."""
        ...

    def close(self) -> None:
        """End it; a server that belongs to this client ends too."""
        ...


_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 5.0
_PATIENCE = 120.0  # seconds for which a server that answered before is tried again


class RemoteServer:
    """A server that somebody else runs, by its address (`https://gpu.hospital:8443`, `10.0.0.5:8443`) and token.

    `ca_file` is the certificate that vouches for it, where the computer's own list does not. Proxy variables of the
    environment are not used: a server that holds patients' images is reached directly.
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
        """Whether nobody on the way can read along."""
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

    def drop(self, unresponsive: bool = False) -> None:
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
