"""Numbers and names as parts of sentences."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def counted(count: int, thing: str) -> str:
    """A number of things: `1 case`, `12 cases`."""
    return f"{count} {thing}{'s' * (count != 1)}"


def some_names(names: Sequence[str], most: int = 4, joint: str = ", ") -> str:
    """The first names of a list, and how many there are beside them: `a, b and 7 more`."""
    return joint.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def same_name(name: str) -> str:
    """A name in the form in which it equals other spellings of itself: without case and outer spaces, and with letters
    such as ü as one character, which macOS writes as two.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def some_sentences(sentences: Sequence[str]) -> str:
    """The first two of a list of sentences, and how many more there are: `One. Two. There are 7 more.`"""
    left = len(sentences) - 2
    more = f" There {'is' if left == 1 else 'are'} {left} more." if left > 0 else ""
    return " ".join(sentences[:2]) + more


def within_sentence(text: str) -> str:
    """A sentence as it reads after a colon."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def duration(seconds: float) -> str:
    """`48 s`, `9 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def readable_size(count: int) -> str:
    """A number of bytes: 375 MB, 2.6 GB, 40.7 MB."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6)):
        if count >= divisor:
            return f"{count / divisor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def in_brackets(interval: tuple[float, float] | None, what: str = "") -> str:
    """An interval of Dice behind its mean, as ` (0.893 to 0.931)`; nothing without one."""
    return f" ({what}{interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
