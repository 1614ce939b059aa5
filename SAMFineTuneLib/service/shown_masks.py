"""The masks that the server has sent, and whether they are those of its session."""

from __future__ import annotations

from typing import NamedTuple

from SAMFineTuneLib.images.packed_mask import digest_of_masks
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.session import events


class Shown(NamedTuple):
    """A mask that the server sent: its plane, the moment of its last change, and its digest."""

    plane: SlicePlane
    since: int
    digest: str


class ShownMasks:
    """The masks that the host shows, by segment and plane key."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, str], Shown] = {}
        self._awaited: dict[tuple[int, str], Shown] = {}  # those that must come again to stay

    def take(self, event: events.MaskChanged) -> None:
        """Record a mask that was sent or removed."""
        place = event.segment, event.plane.key
        self._awaited.pop(place, None)
        if event.packed is None:
            self.known.pop(place, None)
        else:
            self.known[place] = Shown(event.plane, event.since, event.digest)

    def await_again(self) -> None:
        """All masks are about to be sent once more."""
        self._awaited = dict(self.known)

    def give_up(self) -> list[events.MaskChanged]:
        """Forget the masks that did not come again; returns the events that remove them."""
        gone, self._awaited = self._awaited, {}
        for place in gone:
            self.known.pop(place, None)
        return [events.MaskChanged(place[0], shown.plane) for place, shown in gone.items()]

    def clear(self) -> None:
        """Forget all masks."""
        self.known, self._awaited = {}, {}

    def agree(self, digest: str) -> bool:
        """Whether the digest that the session sent is that of these masks."""
        return digest == digest_of_masks((*place, one.since, one.digest) for place, one in self.known.items())
