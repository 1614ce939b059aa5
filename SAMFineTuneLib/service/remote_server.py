"""The connection to a server on another computer."""

from __future__ import annotations

import time

from SAMFineTuneLib.service.connection import Broken, Connection, Unusable
from SAMFineTuneLib.service.link import HttpLink
from SAMFineTuneLib.service.protocol import Response
from SAMFineTuneLib.service.server_address import Address, parse_address

_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 5.0  # seconds between two tries
_PATIENCE = 120.0  # seconds for which to retry a server that answered before


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
        self.encrypted = self.address.tls or self.address.is_loopback
        super().__init__(HttpLink(self.address, token, ca_file))
        self._answered = False
        self.retry()

    @property
    def waiting(self) -> str:
        if self._failing_since is None:
            return f"Connecting to {self.address}."
        return f"{self.address} does not answer and is tried again; your changes are kept meanwhile."

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
