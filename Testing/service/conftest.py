"""Workers in this process and of their own, and hosts that pump a client until something is true."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "inference"))  # region_engine

from region_engine import RegionEngine  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.service.app import ServerApp  # noqa: E402
from SAMFineTuneLib.service.client import SessionClient  # noqa: E402
from SAMFineTuneLib.service.connection import InProcess  # noqa: E402
from SAMFineTuneLib.service.engines import Engines  # noqa: E402
from SAMFineTuneLib.service.events import Event  # noqa: E402

TOKEN = "a token for tests"


class RegionEngines(Engines):
    """Opens the region engine under the names "compact" and "region"; nothing else is there."""

    def _load(self, model, adapter, device):
        if model not in ("compact", "region"):
            raise UserError(f"There is no model {model!r}.")
        return RegionEngine()


class Host:
    """What a window does: pumps a client again and again, and keeps what it was told."""

    def __init__(self, client: SessionClient) -> None:
        self.client = client
        self.told: list[Event] = []
        self.longest = 0.0

    def until(self, wanted: Callable[[list[Event]], bool], seconds: float = 20.0) -> list[Event]:
        """Pump until `wanted` of the events since the last call; returns those."""
        new: list[Event] = []
        end = time.monotonic() + seconds
        while not wanted(new):
            assert time.monotonic() < end, f"in vain; last heard {new[-5:]}, {self.client.status}"
            begun = time.monotonic()
            new += self.client.pump()
            self.longest = max(self.longest, time.monotonic() - begun)
            time.sleep(0.001)
        self.told += new
        return new

    def until_told(self, kind: type, seconds: float = 20.0, **values) -> Event:
        """Pump until an event of this kind with these values; returns it."""

        def matches(event: Event) -> bool:
            return isinstance(event, kind) and all(getattr(event, name) == value for name, value in values.items())

        new = self.until(lambda events: any(map(matches, events)), seconds)
        return next(event for event in reversed(new) if matches(event))


@pytest.fixture
def app():
    """A server whose model is the region engine."""
    app = ServerApp(TOKEN, engines=RegionEngines())
    yield app
    app.close()


@pytest.fixture
def host(app):
    """A client of that server, in this process."""
    client = SessionClient(InProcess(app, TOKEN))
    yield Host(client)
    client.close()


class Crashing(InProcess):
    """A connection whose server can be replaced by a new one that knows nothing."""

    def __init__(self) -> None:
        super().__init__(ServerApp(TOKEN, engines=RegionEngines()), TOKEN)
        self.gone: list[ServerApp] = []

    def crash(self) -> None:
        self._app.close()
        self.gone.append(self._app)
        self._app = ServerApp(TOKEN, engines=RegionEngines())

    def close(self) -> None:
        super().close()
        self._app.close()


@pytest.fixture
def crashing():
    """A host whose worker crashes when told: `host.client._connection.crash()`."""
    client = SessionClient(Crashing())
    yield Host(client)
    client.close()
