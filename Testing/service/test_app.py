from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from conftest import TOKEN, RegionEngines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from region_engine import RegionEngine, phantom

from SAMFineTuneLib import __version__
from SAMFineTuneLib.service.codec import decode, encode
from SAMFineTuneLib.service.host import INTENTS
from SAMFineTuneLib.service.protocol import MARK, PROTOCOL, Limits, Request
from SAMFineTuneLib.service.sending import SendingVolume
from SAMFineTuneLib.service.server_app import ServerApp


class Asker:
    """Asks an application as a client would, one request at a time."""

    def __init__(self, app: ServerApp, token: str = TOKEN) -> None:
        self.app, self.token = app, token
        self.number = 0

    def raw(self, path: str, body: bytes, method: str = "POST"):
        response = self.app.handle(Request(method, path, {"authorization": f"Bearer {self.token}"}, body))
        assert response.headers[MARK] == str(PROTOCOL)
        return response.status, *decode(response.read())

    def ask(self, path: str, message, arrays=None):
        return self.raw(path, b"".join(encode(message, arrays)))

    def session(self) -> str:
        status, message, _ = self.ask("/v1/sessions", {})
        assert status == 200, message
        return f"/v1/sessions/{message['session']}"

    def send(self, session: str, volume, upload=1):
        """Upload a volume; returns the last answer."""
        sending = SendingVolume(volume)
        answer = self.ask(f"{session}/upload", {"upload": upload, **sending.announcement()})
        offset = 0
        while answer[0] == 200 and offset < sending.size:
            part = sending.part(offset)
            answer = self.ask(f"{session}/part", {"upload": upload, "offset": offset}, {"part": part})
            offset += len(part)
        if answer[0] == 200:
            answer = self.ask(f"{session}/uploaded", {"upload": upload, **sending.conclusion(None)})
        return answer

    def intend(self, session: str, **intent):
        self.number += 1
        return self.sync(session, [{"number": self.number, **intent}])

    def sync(self, session: str, intents=(), after=0):
        status, message, _ = self.ask(f"{session}/sync", {"intents": list(intents), "after": after})
        assert status == 200, message
        return message

    def until(self, session: str, event: str, seconds=10.0) -> dict:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for told in self.sync(session)["events"]:
                if told["event"] == event:
                    return told
            time.sleep(0.005)
        raise AssertionError(f"no {event} came")


@pytest.fixture
def asker(app):
    return Asker(app)


@pytest.fixture
def volume():
    return phantom()[0]


def test_hello_tells_versions(asker):
    status, message, _ = asker.ask("/v1/hello", {"protocol": PROTOCOL, "version": __version__})
    assert status == 200 and (message["protocol"], message["version"]) == (PROTOCOL, __version__)


def test_another_protocol_is_refused(asker):
    status, message, _ = asker.ask("/v1/hello", {"protocol": PROTOCOL + 1, "version": "9"})
    assert (status, message["kind"], message["version"]) == (409, "protocol", __version__)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + " ", TOKEN[:-1], "ä€"])
def test_without_the_token_nothing_is_answered(app, token):
    status, message, _ = Asker(app, token).ask("/v1/sessions", {})
    assert (status, message["kind"]) == (401, "token") and app.sessions == 0


def test_a_volume_arrives_whole_and_a_session_answers(asker, volume):
    session = asker.session()
    assert asker.send(session, volume)[0] == 200
    asker.intend(session, do="set_model", model="compact", adapter="", device="auto")
    assert asker.until(session, "model")["model"] == "region"
    state = asker.until(session, "state")
    assert state["volume"] == 1 and state["window"]["low"] < state["window"]["high"]


def test_a_part_that_comes_twice_is_taken_once(asker, volume):
    session, sending = asker.session(), SendingVolume(volume)
    asker.ask(f"{session}/upload", {"upload": 1, **sending.announcement()})
    part = bytes(sending.part(0))
    for _ in range(2):
        status, message, _ = asker.ask(f"{session}/part", {"upload": 1, "offset": 0}, {"part": part})
        assert status == 200 and message["received"] == len(part)
    done = {"upload": 1, **sending.conclusion(None)}
    assert [asker.ask(f"{session}/uploaded", done)[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("offset", [-1, 5, 1 << 60])
def test_parts_out_of_turn_are_refused(asker, volume, offset):
    session = asker.session()
    asker.ask(f"{session}/upload", {"upload": 1, **SendingVolume(volume).announcement()})
    status, _, _ = asker.ask(f"{session}/part", {"upload": 1, "offset": offset}, {"part": bytes(10)})
    assert status in (400, 422)


def test_a_damaged_volume_is_not_taken(asker, volume):
    session, sending = asker.session(), SendingVolume(volume)
    asker.ask(f"{session}/upload", {"upload": 1, **sending.announcement()})
    part = bytearray(sending.part(0))
    part[1000] ^= 1
    asker.ask(f"{session}/part", {"upload": 1, "offset": 0}, {"part": part})
    status, message, _ = asker.ask(f"{session}/uploaded", {"upload": 1, **sending.conclusion(None)})
    assert status == 422 and "damaged" in message["error"]


def test_the_digest_of_the_volume_is_that_of_the_client(asker, volume, app):
    session = asker.session()
    asker.send(session, volume)
    asker.intend(session, do="snapshot", request=1)
    answered = asker.until(session, "answered")
    assert answered["request"] == 1
    _, message, arrays = asker.ask(f"{session}/sync", {"intents": [], "after": 0})
    text = bytes(arrays[f"{answered['number']}/document"])
    assert hashlib.sha256(text).digest() and volume.digest in text.decode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [0, 2, 2]}, "non-empty"),
        ({"shape": [2, 2]}, "three"),
        ({"shape": [100_000, 100_000, 100_000]}, "at most"),
        ({"shape": [2.5, 2, 2]}, ""),
        ({"shape": "many"}, ""),
        ({"dtype": "object"}, "cannot be sent"),
        ({"dtype": ">i2"}, "cannot be sent"),
        ({"affine": [[1]]}, "geometry"),
        ({"affine": None}, ""),
        ({"modality": "x" * 5000}, "characters"),
        ({"modality": 7}, "text"),
    ],
)
def test_a_senseless_volume_is_refused_with_a_sentence(asker, volume, change, says):
    session = asker.session()
    announcement = SendingVolume(volume).announcement()
    announcement["volume"] |= change
    status, message, _ = asker.ask(f"{session}/upload", {"upload": 1, **announcement})
    assert status in (400, 422) and says in message["error"] and message["error"].endswith(".")


def test_memory_is_shared_out_and_given_back(volume):
    app = ServerApp(TOKEN, Limits(memory_bytes=int(volume.array.nbytes * 1.5)), RegionEngines())
    asker = Asker(app)
    first, second = asker.session(), asker.session()
    assert asker.send(first, volume)[0] == 200
    status, message, _ = asker.send(second, volume)
    assert (status, message["kind"]) == (507, "memory")
    assert asker.ask(f"{first}/close", {})[0] == 200
    assert asker.send(second, volume)[0] == 200
    app.close()


def test_sessions_are_limited_and_idle_ones_end(volume):
    app = ServerApp(TOKEN, Limits(sessions=2, idle_seconds=0.2), RegionEngines())
    asker = Asker(app)
    kept = asker.session()
    lost = asker.session()
    assert asker.ask("/v1/sessions", {})[1]["kind"] == "full"
    end = time.monotonic() + 5
    while asker.ask(f"{lost}/sync", {"intents": [], "after": 0})[0] == 200 and time.monotonic() < end:
        time.sleep(0.25)  # longer than it may idle: this one is left alone too long
        asker.sync(kept)
        app.expire()
        break
    asker.sync(kept)
    assert asker.ask(f"{lost}/sync", {"intents": [], "after": 0})[1]["kind"] == "session"
    assert app.sessions == 1
    app.close()


def test_who_was_away_for_long_makes_room_for_others(volume):
    limits = Limits(sessions=2, memory_bytes=int(volume.array.nbytes * 2.5), spare_seconds=0.1)
    app = ServerApp(TOKEN, limits, RegionEngines())
    asker = Asker(app)
    away, here = asker.session(), asker.session()
    assert asker.send(away, volume)[0] == 200
    assert asker.ask("/v1/sessions", {})[1]["kind"] == "full"
    time.sleep(0.15)
    asker.sync(here)
    third = asker.session()
    assert asker.ask(f"{away}/sync", {"intents": [], "after": 0})[1]["kind"] == "session"
    assert asker.send(third, volume)[0] == 200 and asker.send(here, volume)[0] == 200
    app.close()


def test_a_model_that_scores_with_nan_is_answered(volume):
    class Nan(RegionEngine):
        def decode(self, *inputs):
            logits, scores = super().decode(*inputs)
            return logits, np.full_like(scores, np.nan)

    class Engines(RegionEngines):
        def _load(self, model, adapter, device):
            return Nan()

    asker = Asker(ServerApp(TOKEN, engines=Engines()))
    session = asker.session()
    asker.send(session, volume)
    asker.intend(session, do="set_model", model="compact", adapter="", device="auto")
    asker.intend(session, do="add_segment", value=1, name="a", color=None)
    point = {"points": [{"position": list(volume.ijk_to_ras((17, 16, 9))), "positive": True}], "name": "a"}
    asker.intend(session, do="add_prompt", segment=1, prompt=point, prompt_number=1, view="axial")
    assert asker.until(session, "mask")["score"] is None
    asker.app.close()


def test_an_upload_that_is_not_finished_is_forgotten(volume):
    app = ServerApp(TOKEN, Limits(upload_seconds=0.05), RegionEngines())
    asker = Asker(app)
    session, sending = asker.session(), SendingVolume(volume)
    asker.ask(f"{session}/upload", {"upload": 1, **sending.announcement()})
    time.sleep(0.06)
    app.expire()
    status, message, _ = asker.ask(f"{session}/part", {"upload": 1, "offset": 0}, {"part": sending.part(0)})
    assert (status, message["kind"]) == (404, "upload")
    app.close()


def test_no_memory_is_a_sentence(asker, volume, monkeypatch):
    def refuse(*_):
        raise MemoryError

    session = asker.session()
    monkeypatch.setattr(np, "empty", refuse)
    status, message, _ = asker.ask(f"{session}/upload", {"upload": 1, **SendingVolume(volume).announcement()})
    assert (status, message["kind"]) == (507, "memory")


def test_a_body_beyond_the_limit_is_refused_from_its_head(volume):
    app = ServerApp(TOKEN, Limits(body_bytes=1000), RegionEngines())
    head = Request("POST", "/v1/hello", {"authorization": f"Bearer {TOKEN}"})
    assert app.admit(head, 1000) is None
    assert app.admit(head, 1001).status == 413
    assert app.admit(Request("POST", "/v1/hello"), 10).status == 401


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/sessions/x/sync", "/v1/sessions/../../etc/passwd", "/v2/hello", "/%00"]
)
def test_unknown_paths_are_not_found(asker, path):
    assert asker.ask(path, {"intents": [], "after": 0})[0] == 404


def test_sessions_are_apart(asker, volume):
    first, second = asker.session(), asker.session()
    asker.send(first, volume)
    asker.intend(first, do="add_segment", value=1, name="mine", color=None)
    assert asker.until(first, "state")["segments"][0][1] == "mine"
    asker.number = 0
    asker.intend(second, do="undo")
    assert asker.until(second, "state")["segments"] == []


def test_the_same_intents_sent_again_are_done_once(asker, volume):
    session = asker.session()
    asker.send(session, volume)
    intents = [{"number": 1, "do": "add_segment", "value": 1, "name": "a", "color": None}]
    assert asker.sync(session, intents)["accepted"] == 1
    assert asker.sync(session, intents)["accepted"] == 1
    asker.sync(session, [{"number": 2, "do": "add_segment", "value": 2, "name": "b", "color": None}])
    end = time.monotonic() + 5
    while time.monotonic() < end:
        state = asker.until(session, "state")
        if state["applied"] == 2:
            break
    assert [row[1] for row in state["segments"]] == ["a", "b"]
    assert not any(told["event"] == "failed" for told in asker.sync(session)["events"])


# ---- hostile values: a sentence, never a trace, and the session lives on

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("value", "name", "color", "segment", "prompt", "view", "prompt_number", "plane", "job", "settings",
          "orientation", "first", "last", "objects", "values", "keep", "index", "step", "request", "question", "model",
          "adapter", "device", "window", "upload", "like", "begin")  # fmt: skip
HARMLESS = sorted(INTENTS - {"download"})


@given(st.sampled_from(HARMLESS), st.dictionaries(st.sampled_from(FIELDS), anything, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_senseless_intents_fail_with_a_sentence(fuzzed, name, values):
    asker, session = fuzzed
    asker.intend(session, **(values | {"do": name}))


@pytest.fixture(scope="module")
def fuzzed():
    """One session for all of them, which must answer at the end."""
    app = ServerApp(TOKEN, engines=RegionEngines(), may_change=False)
    asker = Asker(app)
    session = asker.session()
    asker.send(session, phantom()[0])
    yield asker, session
    number = asker.number + 1
    for _ in range(2):
        asker.sync(session, after=1 << 40)
    asker.number = number
    asker.sync(session, [{"number": number, "do": "ask", "question": "adapters", "request": 424242}])
    end, found = time.monotonic() + 20, []
    while not found and time.monotonic() < end:
        told = asker.sync(session)["events"]
        assert all(one["text"].endswith(".") and "Traceback" not in one["text"] for one in told if "text" in one)
        found = [one for one in told if one["event"] == "answered" and one["request"] == 424242]
        time.sleep(0.01)
    assert found
    app.close()


@given(st.one_of(anything, st.dictionaries(st.sampled_from(("intents", "after", "upload", "volume", "file", "offset",
                                                            "digest", "window", "protocol")), anything)),
       st.sampled_from(("hello", "sessions", "upload", "part", "uploaded", "sync", "close", "other")))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_senseless_messages_are_refused_with_a_sentence(message, action):
    app = ServerApp(TOKEN, Limits(volume_bytes=1 << 20, memory_bytes=1 << 20), RegionEngines())
    asker = Asker(app)
    path = f"/v1/{action}" if action in ("hello", "sessions") else f"{asker.session()}/{action}"
    status, answer, _ = asker.ask(path, message)
    assert status in (200, 400, 404, 409, 413, 422, 507)
    if status != 200:
        assert answer["error"].endswith(".") and "Traceback" not in answer["error"]
    app.close()


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_noise_as_a_body_is_refused(noise):
    app = ServerApp(TOKEN, engines=RegionEngines())
    assert Asker(app).raw("/v1/sessions", noise)[0] == 400
    app.close()


def test_intents_that_the_server_does_not_know_are_refused(asker):
    session = asker.session()
    for what in ("set_volume", "format_disk", "", None, ["undo"], 7):
        intents = [{"number": 1, "do": what}]
        assert asker.ask(f"{session}/sync", {"intents": intents, "after": 0})[0] == 400
