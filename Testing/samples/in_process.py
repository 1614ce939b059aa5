"""A connection to a server application in this process, which gets the same bytes as over a network."""

from __future__ import annotations

from collections.abc import Sequence

from SAMFineTuneLib.service.protocol import Buffer, Request, Response
from SAMFineTuneLib.service.server_app import ServerApp


class InProcess:
    """Answers at once, in the thread that asks."""

    is_local = encrypted = True
    waiting = "The worker starts."

    def __init__(self, app: ServerApp, token: str) -> None:
        self._app, self._token = app, token
        self._answer: Response | None = None

    def ready(self) -> bool:
        return True

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        headers = {"authorization": f"Bearer {self._token}"}
        self._answer = self._app.handle(Request("POST", path, headers, b"".join(body)))

    def receive(self, wait: float) -> Response | None:
        answer, self._answer = self._answer, None
        return answer

    def drop(self, unresponsive: bool = False) -> None:
        self._answer = None

    def retry(self) -> None:
        pass

    def close(self) -> None:
        self._answer = None
