from __future__ import annotations

from SAMFineTuneLib.service import journal as module
from SAMFineTuneLib.service.journal import LONG, Journal
from SAMFineTuneLib.session.intents import AddSegment, Checkpoint, Propagate, Restore, TakeSnapshot, Undo


def told(journal: Journal) -> list[str]:
    return names(journal.unconfirmed(10_000))


def names(entries) -> list[str]:
    """Of segments that were added, and the kinds of all other intents."""
    return [getattr(entry.intent, "name", type(entry.intent).__name__) for entry in entries]


def journal_of(*intents) -> Journal:
    journal = Journal()
    for intent in intents:
        journal.add(AddSegment(intent) if isinstance(intent, str) else intent)
    return journal


def test_intents_are_told_until_they_are_confirmed():
    journal = journal_of("a", "b", "c")
    assert told(journal) == ["a", "b", "c"] and names(journal.unconfirmed(2)) == ["a", "b"]
    journal.confirm(2)
    assert told(journal) == ["c"] and not journal.all_confirmed
    journal.confirm(3)
    assert told(journal) == [] and journal.all_confirmed


def test_a_new_session_hears_everything_that_is_kept_under_new_numbers():
    journal = journal_of("a", "b")
    journal.add(AddSegment("for the moment"), kept=False)
    journal.confirm(3)
    journal.add(AddSegment("c"))
    journal.start_over([AddSegment("first")], [AddSegment("last")])
    assert told(journal) == ["first", "a", "b", "c", "last"]
    assert min(entry.number for entry in journal.unconfirmed()) > 4
    journal.confirm(journal.last)
    journal.start_over([], [])
    assert told(journal) == ["a", "b", "c"]


def test_what_a_job_left_stands_where_it_happened():
    journal = journal_of("prompt", Propagate(1), Undo())
    journal.confirm(3)
    journal.insert(2, Restore(b"document"))
    journal.forget(lambda intent: isinstance(intent, Propagate))
    assert told(journal) == []  # the server knows it already
    journal.start_over([], [])
    assert told(journal) == ["prompt", "Restore", "Undo"]


def test_what_an_intent_led_to_replaces_it():
    journal = journal_of("a", "adopt", "b")
    journal.confirm(3)
    journal.insert(2, Restore(b"document"), replaces=True)
    journal.start_over([], [])
    assert told(journal) == ["a", "Restore", "b"]


def test_a_long_journal_begins_with_a_stored_session():
    journal = journal_of(*("early" for _ in range(100)), Propagate(1))
    journal.add(TakeSnapshot(7))
    journal.keep_checkpoint(7, b"document")
    for _ in range(LONG):
        journal.add(AddSegment("late"))
    journal.confirm(journal.last)
    journal.shorten()
    journal.start_over([], [])
    entries = journal.unconfirmed(10_000)
    assert names(entries[:3]) == ["Restore", "Propagate", "late"]
    assert entries[0].intent.step is None and entries[0].document == b"document"
    assert len(entries) == LONG + 2


def test_a_stored_session_too_near_the_end_is_no_beginning():
    journal = journal_of(*("early" for _ in range(LONG)))
    journal.add(TakeSnapshot(7))
    journal.keep_checkpoint(7, b"document")
    journal.confirm(journal.last)
    journal.shorten()
    assert len(journal) == LONG + 1


def test_stored_sessions_are_limited_in_bytes_but_the_last_one_stays(monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 250)
    journal = journal_of("early")
    for turn in range(6):
        journal.add(AddSegment(f"prompt {turn}"))
        journal.confirm(journal.last)
        journal.insert(journal.last, Restore(bytes(100), "propagate"))
    journal.start_over([], [])
    entries = journal.unconfirmed()
    assert names(entries) == ["Restore", "prompt 5", "Restore"]
    assert [entry.intent.step for entry in entries if entry.document] == [None, "propagate"]


def test_large_documents_go_in_requests_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 150)
    journal = Journal()
    for _ in range(3):
        journal.add(Restore(bytes(200)))
        journal.add(AddSegment("prompt"))
    assert names(journal.unconfirmed()) == ["Restore"]
    journal.confirm(1)
    assert names(journal.unconfirmed()) == ["prompt"]


def test_the_newest_number_reaches_the_server_whatever_is_forgotten():
    journal = journal_of("a", "b")
    journal.confirm(1)
    journal.forget(lambda intent: intent.name == "b")
    assert told(journal) == [Checkpoint.__name__] and journal.unconfirmed()[0].number == journal.last
    journal.confirm(journal.last)
    assert journal.all_confirmed and not told(journal)
    journal.drop(1)
    assert journal.all_confirmed
