"""A cohort that a department's server holds: several people, one case each, and nothing accepted is lost.

Servers are processes of their own (`samfinetune serve --cohort`) with a home of their own, clients are the process that
works behind a panel, or `ServedCohort` as it uses it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from department import TOKEN, Department

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import Lease, Proposal
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS, accept, take
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap
from SAMFineTuneLib.service import cohort_messages as messages
from SAMFineTuneLib.service import protocol
from SAMFineTuneLib.service.cohort_client import CohortPlace, ServedCohort, Unreached, mirror
from SAMFineTuneLib.service.cohort_work import CohortWork, picture_path, take_up
from SAMFineTuneLib.service.link import HttpLink
from SAMFineTuneLib.service.server_address import parse_address
from SAMFineTuneLib.service.wire import decode, encode

PATIENCE = 300.0  # s: many processes start on a busy machine
SHAPE = (5, 8, 7)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="ports are reused at once")


@pytest.fixture(autouse=True)
def token(home, monkeypatch):
    monkeypatch.setenv("SAMFINETUNE_TOKEN", TOKEN)


@pytest.fixture
def cohort(tmp_path):
    """Twelve scans, tilted and flipped, of patients whose names must not appear."""
    affine = np.diag([-0.8, 0.9, 2.0, 1.0])
    affine[:3, 3] = (10.0, -20.0, 5.0)
    for number in range(12):
        array = np.random.default_rng(number).integers(0, 900, SHAPE).astype(np.uint16)
        write_labelmap(tmp_path / "scans" / f"p{number:02d}.nii.gz", array, Volume(array, affine))
    return create_cohort(tmp_path / "liver", find_images(tmp_path / "scans"), ["liver", "spleen"]).cohort


@pytest.fixture
def department(cohort, tmp_path):
    department = Department(cohort, tmp_path / "server")
    yield department
    department.kill()


def wait(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def answer(work: CohortWork, number: int, kinds=("done", "failed", "stopped")) -> dict:
    """The event with which a piece ends."""
    found: list[dict] = []

    def come():
        found.extend(one for one in work.poll() if one["number"] == number and one["event"] in kinds)
        return found

    wait(come)
    return found[0]


def labels(value=1) -> np.ndarray:
    own = np.zeros(SHAPE, np.uint8)
    own[1:3, 2:5, 3:6] = value
    return own


def stored(path: Path) -> np.ndarray:
    return read_volume(path).array


# ---- a window's process


def window(department: Department, name: str = "a" * 16) -> CohortWork:
    """The queue of a window that has opened the cohort."""
    work = CohortWork(department.mirror, name)
    number = work.put("follow")
    work.start()
    assert answer(work, number)["event"] == "done"
    return work


def end(work: CohortWork) -> None:
    work.close()
    wait(lambda: not work.is_running)


def test_a_case_is_opened_corrected_and_accepted(department, cohort):
    key = cohort.state.case("p03").key
    proposed = labels()
    write_labelmap(cohort.proposal(key) / PROPOSED_LABELS, proposed, read_volume(cohort.image(cohort.state.case(key))))
    (cohort.proposal(key) / "confidence.json").write_text('{"orientation": "axial", "slices": {"liver": [0.5]}}')
    cohort.change(lambda state: state.with_case(key, state="proposed", proposal=Proposal(1, {"liver": 0.5}, 1)))
    work = window(department)
    here = Cohort(work.cohort)
    assert here.state.case(key).state == "proposed" and here.state.images == ("", ""), "the server's folders stay there"
    told = answer(work, work.put("open", case="", way="teaching", by="me", without=[]))
    assert told["case"] == key and told["reason"] and cohort.state.case(key).taken("you")
    volume = read_volume(cohort.image(cohort.state.case(key)))
    assert (np.load(told["voxels"]) == volume.array).all() and np.allclose(told["affine"], volume.affine)
    assert told["start"] == [3, 2, 1] and (np.load(told["labels"]) == 1).all()
    assert Path(told["voxels"]).parent == work.folder, "it lies with this user"
    assert picture_path(here.folder, key).exists()
    assert json.loads((here.proposal(key) / "confidence.json").read_text())["slices"] == {"liver": [0.5]}
    number, path = work.reserve()
    np.save(path, labels(2))
    assert answer(work, work.put("keep", number, case=key, by="me"))["event"] == "done"
    assert (stored(cohort.corrected(key)) == labels(2)).all() and cohort.state.case(key).state == "corrected"
    number, path = work.reserve()
    np.save(path, labels())
    told = answer(work, work.put("accept", number, case=key, by="me", seconds=2.5, prompts=3))
    assert told["dice"] == {"liver": 1.0}
    assert (stored(cohort.accepted(key)) == labels()).all() and cohort.state.case(key).lease is None
    assert (cohort.state.case(key).review.seconds, cohort.state.case(key).review.prompts) == (2.5, 3)
    wait(lambda: here.state.case(key).state == "accepted")
    for what, state in (("reopen", "corrected"), ("refuse", "refused")):
        answer(work, work.put(what, case=key, by="me"))
        assert cohort.state.case(key).state == state
    end(work)


def test_what_others_do_is_seen(department, cohort):
    work = window(department)
    take(cohort, "p05", "another")
    wait(lambda: Cohort(work.cohort).state.case("p05").taken("me"))
    told = answer(work, work.put("open", case="p05", by="me"))
    assert told["event"] == "failed" and "Somebody else" in told["text"]
    end(work)


def test_a_damaged_cohort_is_told_without_its_folder(department, cohort):
    here = department.client()
    here.follow()
    state = (cohort.folder / "cohort.json").read_text()
    (cohort.folder / "cohort.json").write_text(state[:-100])
    for ask in (here.follow, lambda: here.do("next", "a" * 16, 1)):
        with pytest.raises(UserError, match="“cohort.json” is damaged") as told:
            ask()
        assert str(cohort.folder.parent) not in str(told.value)
    (cohort.folder / "cohort.json").write_text(state)
    here.follow()
    assert len(here.cohort.state.cases) == 12


def test_whether_a_case_is_taken_is_told_by_the_clock_of_the_server(department, cohort, monkeypatch):
    take(cohort, "p05", "another", 30.0)
    here = department.client()
    here.follow()
    now = time.time()
    for wrong in (-86_400, 86_400):  # s by which this computer's clock is
        monkeypatch.setattr(time, "time", lambda wrong=wrong: now + wrong)
        assert here.cohort.state.case("p05").taken("me")
    monkeypatch.undo()


def test_a_restarted_server_waits_for_the_windows_that_had_cases(department, cohort):
    key = take(cohort, "p05", "another").key
    department.kill()
    cohort.change(lambda state: state.with_case(key, lease=Lease("another", time.time() - 300)))
    department.start()
    assert 40 < cohort.state.case(key).lease.until - time.time() < 61


def test_what_is_accepted_without_a_connection_is_sent_later(department, cohort):
    work = window(department)
    key = answer(work, work.put("open", case="p01", by="me"))["case"]
    department.kill()
    number, path = work.reserve()
    np.save(path, labels())
    work.put("accept", number, case=key, by="me", seconds=None, prompts=None)
    told: list[dict] = []
    wait(lambda: told.extend(work.poll()) or any("wait on this computer" in one.get("problem", "") for one in told))
    work.kill()
    wait(lambda: not work.is_running)
    assert path.exists() and cohort.state.case(key).state == "untouched"
    department.start()
    assert take_up(work.cohort) == 1, "a later window has it sent"
    wait(lambda: cohort.state.case(key).state == "accepted")
    assert (stored(cohort.accepted(key)) == labels()).all()
    wait(lambda: not work.is_running)
    assert work.is_empty


@pytest.mark.parametrize("pause", [0.0, 0.3])  # while it is done, and after that
def test_a_killed_server_loses_nothing(department, cohort, pause):
    work = window(department)
    key = answer(work, work.put("open", case="p02", by="me"))["case"]
    number, path = work.reserve()
    np.save(path, labels())
    work.put("accept", number, case=key, by="me", seconds=1.0, prompts=1)
    time.sleep(pause)
    department.kill()
    time.sleep(0.2)
    department.start()
    assert answer(work, number, ("done",))["case"] == key
    assert (stored(cohort.accepted(key)) == labels()).all() and cohort.state.case(key).review.order == 1
    assert cohort.state.next_order == 2
    wait(lambda: not path.exists())
    end(work)


def leave(cohort: Cohort, key: str, seconds: float) -> float:
    """Have `me` only so many seconds left of what was taken. Returns until when that is."""
    until = time.time() + seconds
    cohort.change(lambda state: state.with_case(key, lease=Lease("me", until)))
    return until


def test_a_case_stays_taken_while_its_window_is_there(department, cohort):
    work = window(department)
    key = answer(work, work.put("open", case="p04", by="me", gives_back=True))["case"]
    assert 40 < cohort.state.case(key).lease.until - time.time() < 61
    for left in (20.0, 2.0, -5.0):  # the last as after a while without a connection, or an hour of sleep
        until = leave(cohort, key, left)
        wait(lambda until=until: cohort.state.case(key).lease.until > until + 30)
    cohort.change(lambda state: state.with_case(key, lease=Lease("you", time.time() + 25)))
    time.sleep(3.0)
    assert cohort.state.case(key).lease.by == "you", "what somebody else took meanwhile is theirs"
    end(work)


def test_a_case_stays_taken_while_it_is_read(department, cohort):
    work = window(department)
    answer(work, work.put("open", case="p04", by="me", gives_back=True))
    reading = psutil.Process(department.process.pid).children()
    for process in reading:
        process.suspend()  # as one that reads from a slow disk
    number = work.put("open", case="p05", by="me", gives_back=True)
    key = cohort.state.case("p04").key
    time.sleep(1.0)
    until = leave(cohort, key, 5.0)
    wait(lambda: cohort.state.case(key).lease.until > until + 30)
    assert number not in {one["number"] for one in work.poll() if one["event"] in ("done", "failed")}
    for process in reading:
        process.resume()
    assert answer(work, number)["event"] == "done"
    end(work)


def test_a_killed_client_gives_its_case_back_in_time(department, cohort):
    work = window(department)
    key = answer(work, work.put("open", case="p04", by="me", gives_back=True))["case"]
    others = window(department, "b" * 16)
    work.kill()
    assert cohort.state.case(key).taken("you")
    time.sleep(1.5)
    assert Cohort(others.cohort).state.case(key).taken("you")
    leave(cohort, key, 2.0)  # as after a minute
    wait(lambda: not Cohort(others.cohort).state.case(key).taken("you"))
    assert not cohort.state.case(key).taken("you")
    end(others)
    leave(cohort, key, 50.0)
    other = department.client()
    with pytest.raises(UserError, match="Somebody else"):
        other.do("take", "b" * 16, 1, by="you", cases=(key,))
    leave(cohort, key, -0.1)
    other.do("take", "b" * 16, 2, by="you", cases=(key,))
    assert cohort.state.case(key).taken("me")
    lease = cohort.state.case(key).lease
    other.do("take", "b" * 16, 3, by="you", cases=(key,))
    assert cohort.state.case(key).lease.until > lease.until, "it is renewed"


_WINDOW = """
import sys, time
from pathlib import Path
from SAMFineTuneLib.service.cohort_work import CohortWork

work = CohortWork(Path(sys.argv[1]), "e" * 16)
work.put("open", case="p06", by="e" * 16, gives_back=True)
work.start()
time.sleep(600)
"""


@pytest.mark.parametrize("served", [True, False])
def test_a_killed_window_gives_its_case_back_at_once(department, cohort, served):
    folder = window(department).cohort if served else cohort.folder
    program = subprocess.Popen([sys.executable, "-c", _WINDOW, str(folder)], cwd=Path(__file__).parents[2])
    wait(lambda: cohort.state.case("p06").taken("you"))
    program.kill()
    program.wait()
    wait(lambda: cohort.state.case("p06").lease is None)


def test_a_case_that_is_left_with_labels_that_are_refused_is_given_back(department, cohort):
    work = window(department)
    key = answer(work, work.put("open", case="p07", by="me"))["case"]
    for what, leaves, taken in (("accept", False, True), ("keep", True, False)):
        number, path = work.reserve()
        np.save(path, labels(9))
        values = {"seconds": None, "prompts": None} if what == "accept" else {"leaves": leaves}
        assert answer(work, work.put(what, number, case=key, by="me", **values))["event"] == "failed"
        assert cohort.state.case(key).taken("you") is taken
        assert path.exists(), "they are kept here"
    end(work)


def test_everybody_gets_another_case(department, cohort):
    """Four people take cases at the same moments, each until nothing is left."""
    taken: list[str] = []
    go = threading.Barrier(4)

    def person(number: int) -> None:
        client, mine = department.client(), []
        go.wait()
        while told := client.do("next", f"{number}" * 16, len(mine), by=f"word{number}", take=True, way="random",
                                without=mine)["case"]:  # fmt: skip
            mine.append(told)
            taken.append(told)

    people = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert len(taken) == 12 == len(set(taken)), "each case was given once, and all were"


def test_results_come_although_the_server_is_restarted_meanwhile(department, cohort, tmp_path):
    for case in cohort.state.cases:
        accept(cohort, case.key, labels())
    client = ServedCohort(department.mirror, TOKEN, patience=PATIENCE)
    client.follow()
    department.kill()
    starts = threading.Timer(2.0, department.start)
    starts.start()
    told = client.do("export", "c" * 16, 1, form="nifti")
    client.fetch_results("c" * 16, 1, tmp_path / "out")
    starts.join()
    assert told["cases"] == 12 and len(list((tmp_path / "out").glob("p*.nii.gz"))) == 12
    with pytest.raises(UserError, match="no cohort"):
        ServedCohort(mirror(CohortPlace(department.address, "spleen")), TOKEN, patience=PATIENCE).follow()


# ---- what is refused


def piece(department: Department, **values) -> dict:
    """What the server says to a piece that no client of ours would send."""
    plain = messages.CohortPiece("liver", "c" * 16, values.pop("number", 1), "accept", by="me", case="p00")
    return said(department, replace(plain, **values))


def said(department: Department, message, token: str = TOKEN, action: str = "piece") -> dict:
    link, event = HttpLink(parse_address(department.address), token), None
    while event is None:
        link.send(f"/v1/cohorts/{action}", encode(message))
        while (response := link.step(0.02)) is None:
            pass
        if response.status != 200:
            break
        answer = decode(response.read(), messages.CohortTold | protocol.Received)
        event = answer.event if isinstance(answer, messages.CohortTold) else {"received": answer.received}
    link.close()
    if event is not None:
        return event
    refusal = decode(response.read(), protocol.Refusal)
    return {"event": refusal.kind, "text": refusal.error, "status": response.status}


def test_labels_that_are_not_of_the_image_are_refused(department, cohort):
    packed = zlib.compress(labels().tobytes())
    good = {"shape": SHAPE, "labels": packed}
    wrong = [
        ({"shape": (8, 7, 5), "labels": packed}, "image is (5, 8, 7)"),
        ({"shape": SHAPE, "labels": zlib.compress(labels(9).tobytes())}, "value 9"),
        ({"shape": SHAPE, "labels": zlib.compress(bytes(100))}, "as long as their shape"),
        ({"shape": SHAPE, "labels": zlib.compress(bytes(50_000_000))}, "as long as their shape"),
        ({"shape": SHAPE, "labels": packed[:-5]}, "as long as their shape"),
        ({"shape": SHAPE, "labels": b"no labels"}, "damaged"),
        ({"shape": (5, 8, 0), "labels": packed}, "not what this server takes"),
        ({"shape": (1 << 20, 1 << 20, 7), "labels": packed}, "4.3 GB at most"),
        ({**good, "dtype": "|O"}, "not what this server takes"),
        ({**good, "dtype": "<f8"}, "not what this server takes"),
        ({**good, "case": "../../p00"}, "no case"),
        ({**good, "by": "../me"}, "letters and digits"),
        ({**good, "window": "../../../tmp"}, "window"),
        ({**good, "cohort": "../liver"}, "no cohort"),
        ({**good, "what": "create"}, "does not know"),
        ({"what": "open", "by": ""}, "letters and digits"),
        ({"what": "keep"}, "This failed"),
    ]
    for number, (values, text) in enumerate(wrong, start=1):
        told = piece(department, number=number, **values)
        assert told["event"] != "done" and text in told["text"], (values.keys(), told)
    assert not list(cohort.folder.glob("accepted/*")) and cohort.state.those("accepted") == ()
    assert piece(department, number=99, **good)["event"] == "done"
    assert (stored(cohort.accepted(cohort.state.case("p00").key)) == labels()).all()


def test_too_large_a_request_is_not_read(department):
    body = encode(messages.CohortPiece("liver", "c" * 16, 1, "accept", labels=b""))
    size = 200 << 20
    place = parse_address(department.address)
    with socket.create_connection((place.host, place.port)) as line:
        line.sendall(f"POST /v1/cohorts/piece HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
                     f"Content-Length: {size}\r\n\r\n".encode() + b"".join(body))  # fmt: skip
        assert b" 413 " in line.recv(1000)


@pytest.mark.parametrize("token", ["wrong", ""])
def test_nothing_without_the_token(department, cohort, token):
    for action, message in (("list", messages.ListCohorts()), ("follow", messages.FollowCohort("liver")),
                            ("piece", messages.CohortPiece("liver", "c" * 16, 1, "take", "me", cases=("p00",))),
                            ("file", messages.CohortFile("liver", "c" * 16, 1, "picture", "p00"))):  # fmt: skip
        assert said(department, message, token, action)["status"] == 401
    assert cohort.state.case("p00").lease is None
    with pytest.raises(Unreached, match="token|Connect"):
        department.client(token).names()
    assert department.client().names() == ("liver",)


def test_a_server_of_another_protocol_is_told_apart(department, monkeypatch):
    client = department.client()
    monkeypatch.setattr(protocol, "PROTOCOL", protocol.PROTOCOL + 1)
    with pytest.raises(Unreached, match="are incompatible; update"):
        client.names()
    monkeypatch.undo()
    assert client.names() == ("liver",)


def test_an_upload_that_breaks_off_leaves_nothing(department, cohort):
    message = messages.CohortPiece("liver", "d" * 16, 1, "accept", by="me", case="p00", shape=SHAPE,
                                   labels=zlib.compress(labels().tobytes()))  # fmt: skip
    body, place = b"".join(encode(message)), parse_address(department.address)
    with socket.create_connection((place.host, place.port)) as line:
        line.sendall(f"POST /v1/cohorts/piece HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
                     f"Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])  # fmt: skip
        time.sleep(0.3)
        department.kill()
    department.start()
    assert cohort.state.case("p00").state == "untouched" and not list(cohort.folder.glob("accepted/.*"))
    assert said(department, message)["event"] == "done"
    assert said(department, message)["event"] == "done", "asked for once more, it is not done once more"
    assert cohort.state.case("p00").review.order == 1


# ---- what the server does in the background


def test_everybody_sees_what_the_server_does(department, cohort):
    here, there = window(department, "a" * 16), window(department, "b" * 16)
    assert answer(here, here.put("propose"))["event"] == "done"
    heard: list[dict] = []

    def told():
        heard.extend(one for event in there.poll() if event["event"] == "server" for one in event["events"])
        return any(one["event"] == "failed" for one in heard)

    wait(told)
    assert any("No adapter is in use yet" in one.get("text", "") for one in heard)
    for work in (here, there):
        end(work)


def test_others_are_answered_while_a_case_is_read(department, cohort):
    """Images are read in a process of their own: while that does not get on, the server answers all others."""
    client, told = department.client(), []
    client.do("open", "e" * 16, 1, by="me", case="p00")
    reader = psutil.Process(department.process.pid).children()[0]
    reader.suspend()
    reading = threading.Thread(target=lambda: told.append(client.do("open", "e" * 16, 2, by="me", case="p11")))
    reading.start()
    other = department.client()
    for number in range(20):
        other.do("take", "f" * 16, number, by="you", cases=("p10",))
        other.follow()
    assert reading.is_alive() and not told
    reader.resume()
    reading.join()
    assert told[0]["case"] == cohort.state.case("p11").key
