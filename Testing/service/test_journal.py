from __future__ import annotations

from SAMFineTuneLib.service import journal as module
from SAMFineTuneLib.service.journal import LONG, Journal


def told(journal: Journal) -> list[str]:
    return [entry.values["do"] for entry in journal.unheard(10_000)]


def journal_of(*names: str) -> Journal:
    journal = Journal()
    for name in names:
        journal.add({"do": name})
    return journal


def test_intents_are_told_until_they_are_confirmed():
    journal = journal_of("a", "b", "c")
    assert told(journal) == ["a", "b", "c"] and [entry.values["do"] for entry in journal.unheard(2)] == ["a", "b"]
    journal.hear(2)
    assert told(journal) == ["c"] and not journal.all_heard
    journal.hear(3)
    assert told(journal) == [] and journal.all_heard


def test_a_new_session_hears_everything_that_is_kept_under_new_numbers():
    journal = journal_of("a", "b")
    journal.add({"do": "for the moment"}, kept=False)
    journal.hear(3)
    journal.add({"do": "c"})
    journal.start_over([{"do": "first"}], [{"do": "last"}])
    assert told(journal) == ["first", "a", "b", "c", "last"]
    assert min(entry.number for entry in journal.unheard()) > 4
    journal.hear(journal.last)
    journal.start_over([], [])
    assert told(journal) == ["a", "b", "c"]


def test_what_a_job_left_stands_where_it_happened():
    journal = journal_of("prompt", "propagate", "undo")
    journal.hear(3)
    journal.insert_after(2, {"do": "restore"}, b"document")
    journal.forget(lambda values: values["do"] == "propagate")
    assert told(journal) == []  # the server knows it already
    journal.start_over([], [])
    assert told(journal) == ["prompt", "restore", "undo"]


def test_what_an_intent_led_to_replaces_it():
    journal = journal_of("a", "adopt", "b")
    journal.hear(3)
    journal.replace(2, {"do": "restore"}, b"document")
    journal.start_over([], [])
    assert told(journal) == ["a", "restore", "b"]


def test_a_long_journal_begins_with_a_stored_session():
    journal = journal_of(*("early" for _ in range(100)), "propagate")
    journal.add({"do": "snapshot", "request": 7})
    journal.keep_checkpoint(7, b"document")
    for _ in range(LONG):
        journal.add({"do": "late"})
    journal.hear(journal.last)
    journal.shorten()
    journal.start_over([], [])
    entries = journal.unheard(10_000)
    assert [entry.values["do"] for entry in entries[:3]] == ["restore", "propagate", "late"]
    assert entries[0].values["step"] is None and entries[0].document == b"document"
    assert len(entries) == LONG + 2


def test_a_stored_session_too_near_the_end_is_no_beginning():
    journal = journal_of(*("early" for _ in range(LONG)))
    journal.add({"do": "snapshot", "request": 7})
    journal.keep_checkpoint(7, b"document")
    journal.hear(journal.last)
    journal.shorten()
    assert len(journal) == LONG + 1


def test_stored_sessions_are_limited_in_bytes_but_the_last_one_stays(monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 250)
    journal = journal_of("early")
    for turn in range(6):
        journal.add({"do": f"prompt {turn}"})
        journal.hear(journal.last)
        journal.insert_after(journal.last, {"do": "restore", "step": "propagate"}, bytes(100))
    journal.start_over([], [])
    entries = journal.unheard()
    assert [entry.values["do"] for entry in entries] == ["restore", "prompt 5", "restore"]
    assert [entry.values["step"] for entry in entries if entry.document] == [None, "propagate"]


def test_large_documents_go_in_requests_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 150)
    journal = Journal()
    for _ in range(3):
        journal.add({"do": "restore"}, bytes(200))
        journal.add({"do": "prompt"})
    assert [entry.values["do"] for entry in journal.unheard()] == ["restore"]
    journal.hear(1)
    assert [entry.values["do"] for entry in journal.unheard()] == ["prompt"]


def test_the_newest_number_reaches_the_server_whatever_is_forgotten():
    journal = journal_of("a", "b")
    journal.hear(1)
    journal.forget(lambda values: values["do"] == "b")
    assert told(journal) == ["checkpoint"] and journal.unheard()[0].number == journal.last
    journal.hear(journal.last)
    assert journal.all_heard and not told(journal)
    journal.drop(1)
    assert journal.all_heard
