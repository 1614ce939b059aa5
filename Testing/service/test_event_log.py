from __future__ import annotations

import threading

import numpy as np

from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.service.event_log import EventLog
from SAMFineTuneLib.session.events import Busy, MaskChanged, Notice, StateChanged


def texts(fetched) -> list[str]:
    return [told.event.text for told in fetched[0]]


def mask(index: int, side: int = 4) -> MaskChanged:
    plane = SlicePlane((0, 0, index), (1, 0, 0), (0, 1, 0), 1.0, (side, side), "axial", index)
    return MaskChanged(1, plane, PackedMask.of(np.ones((side, side))))


def test_events_come_in_order_and_again_until_they_are_confirmed():
    log = EventLog()
    for text in "abc":
        log.add(Notice(text), volume=7, applied=9)
    told, more = log.fetch(0)
    assert texts((told, more)) == ["a", "b", "c"] and [one.number for one in told] == [1, 2, 3] and not more
    assert {(one.volume, one.applied) for one in told} == {(7, 9)}
    assert texts(log.fetch(0)) == ["a", "b", "c"]  # the answer was lost
    assert texts(log.fetch(2)) == ["c"]
    assert len(log) == 1


def test_a_newer_event_takes_the_place_of_one_that_it_makes_pointless():
    log = EventLog()
    first, second, third = (StateChanged((), (), undo_name=str(number)) for number in range(3))
    log.add(first)
    log.add(mask(3))
    log.add(mask(4))
    log.add(second)
    again = mask(3)
    log.add(again)
    told = log.fetch(0)[0]
    assert [one.event for one in told][1:] == [second, again] and told[0].event.plane.index == 4
    log.fetch(told[-1].number)
    log.add(third)
    assert [one.event for one in log.fetch(told[-1].number)[0]] == [third]


def test_one_fetch_is_limited_in_number_and_bytes():
    log = EventLog()
    for number in range(100):
        log.add(Notice(str(number)))
    told, more = log.fetch(0)
    assert len(told) == 64 and more and len(log.fetch(64)[0]) == 36
    log = EventLog()
    for index in range(10):
        log.add(mask(index, side=40))  # 200 bytes
    told, more = log.fetch(0, most_bytes=500)
    assert len(told) == 3 and more
    assert len(log.fetch(3, most_bytes=1 << 20)[0]) == 7


def test_whoever_waits_gets_the_next_event():
    log, fetched = EventLog(), []
    waiting = threading.Thread(target=lambda: fetched.append(log.fetch(0, wait=1e9)))
    waiting.start()
    log.add(Notice("news"))
    waiting.join()
    assert texts(fetched[0]) == ["news"]
    assert log.fetch(1, wait=0.001) == ((), False)


def test_a_client_that_vanished_does_not_make_it_grow():
    log = EventLog()
    masks = [mask(index) for index in range(20)]
    for number in range(3000):
        log.add(Busy(1, "propagate", 0.5, None, "busy"))
        log.add(masks[number % 20])
        log.add(Notice("notice"))
    assert len(log) <= 500 + 21
