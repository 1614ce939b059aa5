from __future__ import annotations

import dataclasses
import json
import logging
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pumped_clients import TOKEN, RegionEngines
from region_engine import RegionEngine, phantom

from SAMFineTuneLib import __version__
from SAMFineTuneLib.prompts import PointPrompt
from SAMFineTuneLib.service.protocol import (
    MARK,
    PROTOCOL,
    AnnounceVolume,
    Close,
    Hello,
    Limits,
    Opened,
    OpenSession,
    Part,
    Received,
    Refusal,
    Request,
    Sent,
    Sync,
    Synced,
)
from SAMFineTuneLib.service.send_uploads import SendingVolume
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.service.wire import decode, encode
from SAMFineTuneLib.session import events, intents


def raw_message(value, arrays=()) -> bytes:
    """A message as `wire` lays it out, whatever it says."""
    text = json.dumps({"message": value, "arrays": [[array.dtype.str, array.shape] for array in arrays]}).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(array.tobytes() + bytes(-array.nbytes % 8) for array in arrays)
    return len(text).to_bytes(8, "little") + text + data


class Asker:
    """Asks an application as a client would, one request at a time."""

    def __init__(self, app: ServerApp, token: str = TOKEN) -> None:
        self.app, self.token = app, token
        self.number = 0

    def raw(self, path: str, body: bytes, method: str = "POST"):
        """Status and message of the answer, which is a `Refusal` when the status is not 200."""
        response = self.app.handle(Request(method, path, {"authorization": f"Bearer {self.token}"}, body))
        assert response.headers[MARK] == str(PROTOCOL)
        kind = Hello | Opened | Received | Synced if response.status == 200 else Refusal
        return response.status, decode(response.read(), kind)

    def ask(self, path: str, message):
        return self.raw(path, b"".join(encode(message)))

    def session(self) -> str:
        status, answer = self.ask("/v1/sessions", OpenSession())
        assert status == 200, answer
        return f"/v1/sessions/{answer.session}"

    def send(self, session: str, volume, upload=1):
        """Upload a volume; returns the last answer."""
        sending = SendingVolume(volume)
        answer = self.ask(f"{session}/upload", sending.announcement(upload))
        offset = 0
        while answer[0] == 200 and offset < sending.size:
            part = np.frombuffer(sending.part(offset), np.uint8)
            answer = self.ask(f"{session}/part", Part(upload, offset, part))
            offset += len(part)
        if answer[0] == 200:
            answer = self.ask(f"{session}/uploaded", sending.conclusion(upload, None))
        return answer

    def intend(self, session: str, intent):
        self.number += 1
        return self.sync(session, [Sent(self.number, None, intent)])

    def sync(self, session: str, sent=(), after=0) -> Synced:
        status, answer = self.ask(f"{session}/sync", Sync(tuple(sent), after))
        assert status == 200, answer
        return answer

    def events(self, session: str, after=0):
        return [later.read().event for later in self.sync(session, after=after).told]

    def until(self, session: str, wanted, seconds=60.0):
        """Wait for an event of the kind `wanted`, or for which `wanted` returns True; returns the `Told`."""
        matches = (lambda told: isinstance(told.event, wanted)) if isinstance(wanted, type) else wanted
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for told in (later.read() for later in self.sync(session).told):
                if matches(told):
                    return told
            time.sleep(0.005)
        raise AssertionError(f"no {wanted} came")


@pytest.fixture
def asker(app):
    return Asker(app)


@pytest.fixture
def volume():
    return phantom()[0]


def test_hello_tells_versions(asker):
    status, hello = asker.ask("/v1/hello", Hello(PROTOCOL, __version__))
    assert status == 200 and hello == Hello(PROTOCOL, __version__)


def test_another_protocol_is_refused(asker):
    status, refusal = asker.ask("/v1/hello", Hello(PROTOCOL + 1, "9"))
    assert (status, refusal.kind, refusal.version) == (409, "protocol", __version__)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + " ", TOKEN[:-1], "ä€"])
def test_without_the_token_nothing_is_answered(app, token):
    status, refusal = Asker(app, token).ask("/v1/sessions", OpenSession())
    assert (status, refusal.kind) == (401, "token") and app.sessions == 0


def test_a_volume_arrives_whole_and_a_session_answers(asker, volume):
    session = asker.session()
    assert asker.send(session, volume)[0] == 200
    asker.intend(session, intents.SetModel("compact"))
    opened = asker.until(session, lambda told: isinstance(told.event, events.ModelChanged) and told.event.device)
    assert opened.event.model == "region"
    told = asker.until(session, events.StateChanged)
    assert told.volume == 1 and told.event.window.low < told.event.window.high


def test_a_part_that_comes_twice_is_taken_once(asker, volume):
    session, sending = asker.session(), SendingVolume(volume)
    asker.ask(f"{session}/upload", sending.announcement(1))
    part = np.frombuffer(sending.part(0), np.uint8)
    for _ in range(2):
        status, answer = asker.ask(f"{session}/part", Part(1, 0, part))
        assert status == 200 and answer.received == len(part)
    done = sending.conclusion(1, None)
    assert [asker.ask(f"{session}/uploaded", done)[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("offset", [-1, 5, 1 << 60])
def test_parts_out_of_turn_are_refused(asker, volume, offset):
    session = asker.session()
    asker.ask(f"{session}/upload", SendingVolume(volume).announcement(1))
    status, _ = asker.ask(f"{session}/part", Part(1, offset, np.zeros(10, np.uint8)))
    assert status in (400, 422)


def test_a_damaged_volume_is_not_taken(asker, volume):
    session, sending = asker.session(), SendingVolume(volume)
    asker.ask(f"{session}/upload", sending.announcement(1))
    part = np.array(np.frombuffer(sending.part(0), np.uint8))
    part[1000] ^= 1
    asker.ask(f"{session}/part", Part(1, 0, part))
    status, refusal = asker.ask(f"{session}/uploaded", sending.conclusion(1, None))
    assert status == 422 and "damaged" in refusal.error


def test_the_digest_of_the_volume_is_that_of_the_client(asker, volume):
    session = asker.session()
    asker.send(session, volume)
    asker.intend(session, intents.TakeSnapshot(1))
    answered = asker.until(session, events.Snapshot).event
    assert answered.request == 1 and volume.digest in answered.document.decode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [0, 2, 2]}, "non-empty"),
        ({"shape": [2, 2]}, "message.shape is not a list of 3"),
        ({"shape": [100_000, 100_000, 100_000]}, "at most"),
        ({"shape": [2.5, 2, 2]}, "message.shape[0] is not a whole number"),
        ({"shape": "many"}, "message.shape"),
        ({"dtype": "object"}, "cannot be sent"),
        ({"dtype": ">i2"}, "cannot be sent"),
        ({"affine": {"array": 1}}, "message.affine is not an array"),
        ({"affine": None}, "message.affine is not an array"),
        ({"affine": {"array": -1}}, "message.affine"),
        ({"modality": "x" * 5000}, "characters"),
        ({"modality": 7}, "message.modality is not a text"),
        ({"upload": None}, "message.upload is not a whole number"),
        ({"is": "AnnounceFile"}, "has no size"),
        ({"is": "Sync"}, "unknown kind"),
    ],
)
def test_a_senseless_volume_is_refused_with_a_sentence(asker, volume, change, says):
    session = asker.session()
    announced = {"is": "AnnounceVolume", "upload": 1, "shape": list(volume.shape), "dtype": "<i2",
                 "affine": {"array": 0}, "modality": "CT"}  # fmt: skip
    status, refusal = asker.raw(f"{session}/upload", raw_message(announced | change, [volume.affine]))
    assert status in (400, 422) and says in refusal.error and refusal.error.endswith(".")


@pytest.mark.parametrize("affine", [np.eye(3), np.full((4, 4), np.nan), np.eye(4, dtype=np.int8)])
def test_a_senseless_geometry_is_refused(asker, affine):
    status, refusal = asker.ask(f"{asker.session()}/upload", AnnounceVolume(1, (2, 2, 2), "<i2", affine, ""))
    assert status == 422 and "geometry" in refusal.error


def test_memory_is_shared_out_and_given_back(volume):
    app = ServerApp(TOKEN, Limits(memory_bytes=int(volume.array.nbytes * 1.5)), RegionEngines())
    asker = Asker(app)
    first, second = asker.session(), asker.session()
    assert asker.send(first, volume)[0] == 200
    status, refusal = asker.send(second, volume)
    assert (status, refusal.kind) == (507, "memory")
    assert asker.ask(f"{first}/close", Close())[0] == 200
    assert asker.send(second, volume)[0] == 200
    app.close()


def test_sessions_are_limited_and_idle_ones_end(volume):
    app = ServerApp(TOKEN, Limits(sessions=2, idle_seconds=1.0), RegionEngines())
    asker = Asker(app)
    kept = asker.session()
    lost = asker.session()
    assert asker.ask("/v1/sessions", OpenSession())[1].kind == "full"
    time.sleep(1.1)  # longer than it may idle: this one is left alone too long
    asker.sync(kept)
    app.expire()
    asker.sync(kept)
    assert asker.ask(f"{lost}/sync", Sync())[1].kind == "session"
    assert app.sessions == 1
    app.close()


def test_who_was_away_for_long_makes_room_for_others(volume):
    limits = Limits(sessions=2, memory_bytes=int(volume.array.nbytes * 2.5), spare_seconds=1.0)
    app = ServerApp(TOKEN, limits, RegionEngines())
    asker = Asker(app)
    away, here = asker.session(), asker.session()
    assert asker.send(away, volume)[0] == 200
    assert asker.ask("/v1/sessions", OpenSession())[1].kind == "full"
    time.sleep(1.1)
    asker.sync(here)
    third = asker.session()
    assert asker.ask(f"{away}/sync", Sync())[1].kind == "session"
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
    asker.intend(session, intents.SetModel("compact"))
    asker.intend(session, intents.AddSegment("a", 1))
    asker.intend(session, intents.AddPrompt(1, PointPrompt(tuple(volume.ijk_to_ras((17, 16, 9))))))
    assert asker.until(session, events.MaskChanged).event.score is None
    asker.app.close()


def test_an_upload_that_is_not_finished_is_forgotten(volume):
    app = ServerApp(TOKEN, Limits(upload_seconds=0.05), RegionEngines())
    asker = Asker(app)
    session, sending = asker.session(), SendingVolume(volume)
    asker.ask(f"{session}/upload", sending.announcement(1))
    time.sleep(0.06)
    app.expire()
    status, refusal = asker.ask(f"{session}/part", Part(1, 0, np.frombuffer(sending.part(0), np.uint8)))
    assert (status, refusal.kind) == (404, "upload")
    app.close()


def test_no_memory_is_a_sentence(asker, volume, monkeypatch):
    def refuse(*_):
        raise MemoryError

    session = asker.session()
    monkeypatch.setattr(np, "empty", refuse)
    status, refusal = asker.ask(f"{session}/upload", SendingVolume(volume).announcement(1))
    assert (status, refusal.kind) == (507, "memory")


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
    assert asker.ask(path, Sync())[0] == 404


def test_sessions_are_apart(asker, volume):
    first, second = asker.session(), asker.session()
    asker.send(first, volume)
    asker.intend(first, intents.AddSegment("mine", 1))
    assert asker.until(first, lambda told: getattr(told.event, "segments", ())).event.segments[0].name == "mine"
    asker.number = 0
    asker.intend(second, intents.Undo())
    assert asker.until(second, events.StateChanged).event.segments == ()


def test_the_same_intents_sent_again_are_done_once(asker, volume):
    session = asker.session()
    asker.send(session, volume)
    sent = [Sent(1, None, intents.AddSegment("a", 1))]
    assert asker.sync(session, sent).accepted == 1
    assert asker.sync(session, sent).accepted == 1
    asker.sync(session, [Sent(2, None, intents.AddSegment("b", 2))])
    told = asker.until(session, lambda told: isinstance(told.event, events.StateChanged) and told.applied == 2)
    assert [info.name for info in told.event.segments] == ["a", "b"]
    assert not any(isinstance(event, events.Failed) for event in asker.events(session))


# ---- hostile values: a sentence, never a trace, and the session lives on

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
KINDS = {kind.__name__: kind for kind in intents.Intent.__args__ if kind is not intents.Download}


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_senseless_intents_fail_with_a_sentence(fuzzed, name, data):
    asker, session = fuzzed
    fields = [field.name for field in dataclasses.fields(KINDS[name])]
    values = data.draw(st.dictionaries(st.sampled_from(fields), anything)) if fields else {}
    asker.number += 1
    sent = {"is": "Sent", "number": asker.number, "moment": None, "intent": {**values, "is": name}}
    status, _ = asker.raw(f"{session}/sync", raw_message({"is": "Sync", "intents": [sent]}))
    assert status == 200


@pytest.fixture(scope="module")
def fuzzed():
    """One session for all of them, which must answer at the end.

    Its thread logs no traces: before 3.11.8 two threads of Python that read source code at once disturb each other
    (gh-106905), and so do a trace and a module that pytest rewrites or whose lambdas Hypothesis reads.
    """
    log = logging.getLogger("SAMFineTuneLib.service")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    app = ServerApp(TOKEN, engines=RegionEngines(), may_change=False)
    asker = Asker(app)
    session = asker.session()
    asker.send(session, phantom()[0])
    yield asker, session
    for _ in range(2):
        asker.sync(session, after=1 << 40)
    asker.intend(session, intents.Ask("adapters", request=424242))
    end, found = time.monotonic() + 60, []
    while not found and time.monotonic() < end:
        told = asker.events(session)
        texts = [event.text for event in told if isinstance(event, (events.Failed, events.Notice))]
        assert all(text.endswith(".") and "Traceback" not in text for text in texts)
        found = [one for one in told if isinstance(one, events.Answered) and one.request == 424242]
        time.sleep(0.01)
    assert found
    app.close()
    log.setLevel(level)


@pytest.mark.parametrize("intent", [{"is": "FormatDisk"}, {"is": "SetVolume"}, {}, None, ["Undo"], {"is": ["Undo"]}, 7])
def test_intents_that_the_server_does_not_know_fail_in_their_turn(asker, intent):
    session = asker.session()
    sent = [{"is": "Sent", "number": 1, "intent": intent, "moment": None},
            {"is": "Sent", "number": 2, "intent": {"is": "AddSegment", "name": "a"}, "moment": 9}]  # fmt: skip
    assert asker.raw(f"{session}/sync", raw_message({"is": "Sync", "intents": sent}))[0] == 200
    assert "understand" in asker.until(session, events.Failed).event.text
    state = asker.until(session, lambda told: isinstance(told.event, events.StateChanged) and told.applied == 2).event
    assert [info.name for info in state.segments] == ["a"]


@given(st.one_of(anything, st.dictionaries(st.sampled_from(("intents", "after", "upload", "shape", "dtype", "affine",
                                                            "modality", "size", "offset", "data", "digest", "window",
                                                            "protocol", "version")), anything)),
       st.sampled_from(("Hello", "OpenSession", "AnnounceVolume", "AnnounceFile", "Part", "VolumeSent", "Sync")),
       st.sampled_from(("hello", "sessions", "upload", "part", "uploaded", "sync", "close", "other")))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_senseless_messages_are_refused_with_a_sentence(message, kind, action):
    app = ServerApp(TOKEN, Limits(volume_bytes=1 << 20, memory_bytes=1 << 20), RegionEngines())
    asker = Asker(app)
    path = f"/v1/{action}" if action in ("hello", "sessions") else f"{asker.session()}/{action}"
    message = message | {"is": kind} if isinstance(message, dict) else message
    status, answer = asker.raw(path, raw_message(message, [np.eye(4), np.zeros(5, np.uint8)]))
    assert status in (200, 400, 404, 409, 413, 422, 507)
    if status != 200:
        assert answer.error.endswith(".") and "Traceback" not in answer.error
    app.close()


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_noise_as_a_body_is_refused(noise):
    app = ServerApp(TOKEN, engines=RegionEngines())
    assert Asker(app).raw("/v1/sessions", noise)[0] == 400
    app.close()
