"""Servers whose model is the region engine, and hosts that pump a client until something is true."""

from __future__ import annotations

import time
from collections.abc import Callable

from in_process import InProcess
from region_engine import RegionEngine

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.open_models import Engines
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.session.events import Event

TOKEN = "a token for tests"


class RegionEngines(Engines):
    """Opens the region engine under the names "compact" and "region"; nothing else is there."""

    def _load(self, model, adapter, device):
        if model not in ("compact", "region"):
            raise UserError(f"There is no model {model!r}.")
        return RegionEngine()


class Host:
    """Stands for a window: pumps a client again and again, and keeps the events.

    `longest` is the longest work of one pump in seconds of the processor, which a busy machine does not make longer.
    """

    def __init__(self, client: SessionClient) -> None:
        self.client = client
        self.told: list[Event] = []
        self.longest = 0.0

    def until(self, wanted: Callable[[list[Event]], bool], seconds: float = 60.0) -> list[Event]:
        """Pump until `wanted` of the events since the last call; returns those."""
        new: list[Event] = []
        end = time.monotonic() + seconds
        while not wanted(new):
            assert time.monotonic() < end, f"in vain; last heard {new[-5:]}, {self.client.status}"
            begun = time.thread_time()
            new += self.client.pump()
            self.longest = max(self.longest, time.thread_time() - begun)
            time.sleep(0.001)
        self.told += new
        return new

    def until_told(self, kind: type, seconds: float = 60.0, **values) -> Event:
        """Pump until an event of this kind with these values; returns it."""

        def matches(event: Event) -> bool:
            return isinstance(event, kind) and all(getattr(event, name) == value for name, value in values.items())

        new = self.until(lambda events: any(map(matches, events)), seconds)
        return next(event for event in reversed(new) if matches(event))


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
