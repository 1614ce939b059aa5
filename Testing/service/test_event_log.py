from __future__ import annotations

from SAMFineTuneLib.service.event_log import EventLog


def texts(events) -> list[str]:
    return [event["text"] for event in events]


def test_events_come_in_order_and_again_until_they_are_confirmed():
    log = EventLog()
    for text in "abc":
        log.add({"text": text})
    first, _, more = log.fetch(0)
    assert texts(first) == ["a", "b", "c"] and [event["number"] for event in first] == [1, 2, 3] and not more
    assert texts(log.fetch(0)[0]) == ["a", "b", "c"]  # the answer was lost
    assert texts(log.fetch(2)[0]) == ["c"]
    assert len(log) == 1


def test_a_newer_event_of_the_same_key_takes_the_place_at_the_end():
    log = EventLog()
    log.add({"text": "state 1"}, key="state")
    log.add({"text": "mask"}, key=("mask", 1))
    log.add({"text": "state 2"}, key="state")
    assert texts(log.fetch(0)[0]) == ["mask", "state 2"]
    log.fetch(3)
    log.add({"text": "state 3"}, key="state")
    assert texts(log.fetch(3)[0]) == ["state 3"]


def test_arrays_are_made_when_they_are_fetched_and_carry_the_number():
    log, made = EventLog(), []
    log.add({"text": "old"}, lambda: made.append("old") or {"mask": b"1"}, key="mask")
    log.add({"text": "new"}, lambda: made.append("new") or {"mask": b"22"}, key="mask")
    events, arrays, _ = log.fetch(0)
    assert texts(events) == ["new"] and arrays == {"2/mask": b"22"} and made == ["new"]


def test_one_fetch_is_limited_in_number_and_bytes():
    log = EventLog()
    for number in range(10):
        log.add({"text": str(number)}, lambda: {"a": bytes(100)})
    events, _, more = log.fetch(0, most=4)
    assert texts(events) == ["0", "1", "2", "3"] and more
    events, _, more = log.fetch(4, most_bytes=250)
    assert texts(events) == ["4", "5", "6"] and more
    assert texts(log.fetch(7)[0]) == ["7", "8", "9"]


def test_a_client_that_vanished_does_not_make_it_grow():
    log = EventLog()
    for number in range(5000):
        log.add({"text": "busy"}, key=("busy", 1))
        log.add({"text": "mask"}, key=("mask", 1, number % 20))
        log.add({"text": "notice"})
    assert len(log) <= 500 + 21
