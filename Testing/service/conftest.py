"""Workers in this process, each with a client that a host pumps."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from in_process import InProcess
from pumped_clients import TOKEN, Crashing, Host, RegionEngines

from SAMFineTuneLib.service import link as http_link
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.server_app import ServerApp

LONGEST_WAIT = 0.05  # s


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of the test's own, for this process and those that it starts, each on one core."""
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def the_window_never_waits(monkeypatch):
    """Whatever happens on the line, a client neither blocks on it nor sleeps for long."""
    ready, sleep, window = http_link._ready, time.sleep, threading.current_thread()

    def watched_ready(place, read=False, write=False, seconds=0.0):
        if threading.current_thread() is window:
            assert seconds <= LONGEST_WAIT and not place.getblocking()
        return ready(place, read, write, seconds)

    def watched_sleep(seconds):
        assert seconds <= LONGEST_WAIT or sys._getframe(1).f_globals["__name__"].partition(".")[0] != "SAMFineTuneLib"
        sleep(seconds)

    monkeypatch.setattr(http_link, "_ready", watched_ready)
    monkeypatch.setattr(time, "sleep", watched_sleep)


@pytest.fixture(autouse=True)
def own_embeddings(monkeypatch, tmp_path):
    """No test finds slices that another one embedded."""
    monkeypatch.setenv("SAMFINETUNE_CACHE", str(tmp_path / "embeddings"))


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


@pytest.fixture
def crashing():
    """A host whose worker crashes on demand: `host.client._connection.crash()`."""
    client = SessionClient(Crashing())
    yield Host(client)
    client.close()
