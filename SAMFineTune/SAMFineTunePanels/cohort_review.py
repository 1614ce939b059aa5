"""Reviewing the cases of a cohort: one is open, the next one is loaded in advance, and labels are saved meanwhile."""

import secrets
import sys
import time

import slicer
from slicer.i18n import tr as _

from .confidence_strip import ConfidenceStrip
from .next_case import NextCase, forget_files
from .open_case import OpenCase

AT_ONCE = 0.012  # s of a turn in which labels are written
KEEP_AFTER = 30.0  # s without a change after which a correction is kept
RENEW_EVERY = 150.0  # s between two signs that this window works on a case
LOOK_EVERY = 0.5  # s between two checks at prompts and segments
TRY_AGAIN_AFTER = 3.0  # s after which labels are written again that this computer's disk did not take
PATIENCE = 20.0  # s that leaving a case waits for the model's answers
_WAITS = -1.0  # what steps yield while the disk takes nothing
_TOPIC = "cohort"


class CohortReview:
    """Opens, keeps and accepts the cases of one cohort; `told(event)` gets all other events of the process."""

    def __init__(self, host, volumes, cohort, told, environment):
        from SAMFineTuneLib.process_lock import this_process
        from SAMFineTuneLib.service.cohort_work import CohortWork

        self.host, self.volumes, self.cohort = host, volumes, cohort
        self._told, self._environment = told, environment
        self.word = secrets.token_hex(8)  # identifies this window, so that others leave its cases alone
        self._process = this_process()  # its cases are given back when it ends, even if it is killed
        self.work = CohortWork(cohort.folder, self.word)
        self.way = "random"
        self.open = None
        self.skipped = set()
        self.coming = NextCase(host, self._put)
        self._showing = None  # (what the process reported of the case that is about to open, steps that show it)
        self._wanted = None  # key of the case to show, "" for any, None while none is waited for
        self._after_rest = None  # (what to do when the model has answered, until when to wait)
        self._writing = []  # steps that write labels
        self._stuck = None  # those of them that wait for room on the disk
        self._leaving = set()  # keys of cases that were left, which the cohort does not know yet
        self._look_after = self._renew_after = self._ask_after = 0.0
        self.nothing_left = False
        self._orientation = "axial"  # of the slices whose confidence is known
        self.strip = ConfidenceStrip(self.jump)

    def follow(self):
        """Have the process keep reporting the state of a cohort on a server."""
        self._put("follow")

    # ---- what the buttons do

    def next(self):
        """Show the next case; the open one keeps its correction."""
        self._when_rested(lambda: self._go("", "keep"))

    def choose(self, key):
        """Show this case; the open one keeps its correction."""
        if self.open is None or self.open.key != key:
            self._when_rested(lambda: self._go(key, "keep"))

    def skip(self):
        """Leave the case for later, keep its correction, and show the next one."""
        if self.open is not None:
            self.skipped.add(self.open.key)
            self.next()

    def accept(self):
        """Accept the case with its present segments, and show the next one. An empty one must be accepted twice."""
        case = self.open
        if case is None or case.is_too_early():
            return
        if not case.is_labelled and not case.may_be_empty:
            case.may_be_empty = True
            self.host.warn(_("Nothing is segmented in this case; press Accept again if that is right."), _TOPIC)
            return
        self._when_rested(lambda: self._go("", "accept"))

    def refuse(self):
        """Leave the case out of the cohort, and show the next one."""
        if self.open is not None:
            self._when_rested(lambda: self._go("", "refuse"))

    def next_doubtful(self):
        """Jump to the next place where the proposal is doubtful, the worst first."""
        case = self.open
        if case is None:
            return
        if not case.places:
            self.host.say(_("This case has no doubtful places."), _TOPIC)
            return
        case.place = (case.place + 1) % len(case.places)
        label, index, value = case.places[case.place]
        self._select(label)
        self.jump(index, label)
        text = _("Doubtful place {number} of {count}: {label}, slice {index}, expected Dice {value:.2f}.").format(
            number=case.place + 1, count=len(case.places), label=label, index=index, value=value)
        self.host.say(text, _TOPIC)

    def jump(self, index, label=None):
        """Have the slice views show a slice of the strip's orientation, in the middle of a segment."""
        from SAMFineTuneLib.mrml.cohort_nodes import place_on_slice
        from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

        case = self.open
        if case is None or not case.is_there:
            return
        at = place_on_slice(volume_from_node(case.volume_node), case.volume_node, case.segmentation_node,
                            self._segment_named(label), self._orientation, index)  # fmt: skip
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *at, slicer.vtkMRMLSliceNode.OffsetJumpSlice)

    def reopen(self, key):
        """Undo the acceptance or refusal of a case."""
        self._put("reopen", case=key)

    # ---- every turn

    def turn(self, shown):
        """Work for a few milliseconds; `shown`: whether the module is shown."""
        for event in self.work.poll():
            self._take(event)
        if self._showing is None:
            self._write_some()
            if self.coming.load_some():
                self._show_coming()
        else:
            self._show_some()
        now = time.monotonic()
        if self.open is not None:
            self.open.count(shown)
        if now > self._look_after:
            self._look_after = now + LOOK_EVERY
            self._look(now)
        self._try_again(now)
        if self.open is not None:
            self.strip.refresh()

    @property
    def waits(self):
        """Whether the user waits for a case."""
        return any(one is not None for one in (self._wanted, self._after_rest, self._showing))

    def leave(self):
        """Close the case that is open: keep its correction, and give it back. Its nodes may go from now on."""
        self._after_rest = self._wanted = None
        case, self.open = self.open, None
        self._writing += [self._put_away(case, "keep", False)] if case is not None else []
        self._writing = [steps for steps in self._writing if not self._done_with_nodes(steps)]
        self._drop_coming()
        self.strip.show(None, None)

    def close_some(self):
        """Continue closing after `leave`; returns whether all labels are written. The process finishes by itself."""
        self._write_some()
        if self._writing:
            return False
        self.strip.close()
        self.host.act(self._put, "release", by=self.word)  # also a case that was being read
        self.work.close()
        return True

    def close(self):
        """Close at once after `leave`; labels that this computer's disk does not take are given up."""
        while self._writing and self._writing[0] is not self._stuck:
            self._write_some()
        self._writing = []
        self.close_some()

    # ---- inside: from one case to the next

    def _when_rested(self, act):
        """Do something once the model has answered all prompts of the case that is left."""
        session = self.host.session
        if self._showing is not None:  # in a moment there is a case that can be left
            return
        if session is None or self.open is None or session.at_rest or not (session.outstanding and session.prompts):
            act()
        else:
            self._after_rest = act, time.monotonic() + PATIENCE
            self.host.wake()

    def _try_again(self, now):
        if self._after_rest is None:
            return
        act, until = self._after_rest
        session = self.host.session
        if session is None or session.at_rest or now > until:
            self._after_rest = None
            act()
        else:
            self.host.go_on()

    def _go(self, key, what):
        """Leave the open case in one of these ways, and show another as soon as it is loaded."""
        case, self.open = self.open, None
        if case is not None:
            if not case.is_there:
                self._put("release", case=case.key, by=self.word)
            else:
                case.look(self.host.session)
                case.hide()
                self._leaving.add(case.key)
                self._writing.append(self._put_away(case, what))
        self._wanted = key
        if key and self.coming.key != key:
            self._drop_coming()
            self._ask(key)
        if not self._show_coming():
            self._ask()
            self.strip.show(None, None)
            if case is not None:
                self.volumes.choose_volume(None)
        self.host.wake()

    def _put_away(self, case, what, remove=True):
        """Steps: write the labels of a case if there is anything to write, and remove its nodes."""
        from SAMFineTuneLib.disk_errors import disk_error

        case.look(self.host.session)
        while True:
            try:
                yield from self._hand_over(case, what)
                break
            except Exception as error:
                if (reason := disk_error(error)) is None:
                    raise
                self.host.warn(_("{reason} What you did is kept in this scene, and written as soon as there is room.")
                               .format(reason=reason), _TOPIC)  # fmt: skip
                again_at = time.monotonic() + TRY_AGAIN_AFTER
                while time.monotonic() < again_at:
                    yield _WAITS
        self._leaving.discard(case.key)
        if remove:
            case.remove()

    def _hand_over(self, case, what):
        """Steps: queue what is to be done with a case, and its labels if there is anything to write."""
        from SAMFineTuneLib.mrml.cohort_nodes import label_file_steps

        values = {"case": case.key, "by": self.word}
        if what == "accept":
            values |= {"seconds": round(case.seconds, 1), "prompts": len(case.prompts)}
        if what == "accept" or case.is_changed:
            number, path = self.work.reserve()
            notes = yield from label_file_steps(path, case.segmentation_node, case.volume_node, case.labels)
            self._put("accept" if what == "accept" else "keep", number, **values, leaves=what == "keep")
            for note in notes:
                self.host.warn(note)
        if what == "refuse":
            self._put("refuse", **values)
        elif what == "keep" and not case.is_changed:
            self._put("release", **values)

    def _show_coming(self):
        """Show the case that was loaded in advance; returns whether there was one."""
        if self.coming.key is None or self._wanted not in ("", self.coming.key):
            return False
        (told, images), self._wanted = self.coming.take(), None
        self._showing = told, self._show_steps(told, images)
        return True

    def _show_some(self):
        """One step at each turn, between which the window draws."""
        self.host.go_on()
        told, steps = self._showing
        try:
            if next(steps, self) is self:
                self._showing = None
        except Exception as error:
            self._showing = None
            self.host.refused(error, _("Showing a case"), _TOPIC)
            self._put("release", case=told["case"], by=self.word)

    def _show_steps(self, told, images):
        from SAMFineTuneLib.cohort.confidence import doubtful_places, read_confidence
        from SAMFineTuneLib.images.intensity_window import IntensityWindow
        from SAMFineTuneLib.mrml.cohort_nodes import add_case
        from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

        state = self.cohort.state
        case = state.case(told["case"])
        nodes = yield from add_case(slicer.mrmlScene, case.name, told, images, state.labels)
        yield from self.volumes.choosing_steps(nodes[0], IntensityWindow(*told["window"]))
        yield
        self.open = OpenCase(case.key, *nodes, state.labels, told["reason"])
        confidence = read_confidence(self.cohort, case.key) if case.state in ("proposed", "corrected") else None
        self._orientation = confidence.orientation if confidence is not None else "axial"
        self.strip.show(confidence, volume_from_node(nodes[0]))
        if confidence is not None:
            self.open.places = list(doubtful_places(confidence))
        for note in told["notes"]:
            self.host.say(note)
        self._ask()

    # ---- inside: the next case

    def _ask(self, key=""):
        """Have a case read, unless one is being read or is ready."""
        without = [*self.skipped, *self._leaving, *([self.open.key] if self.open is not None else [])]
        self.coming.ask(case=key, way=self.way, by=self.word, without=without, process=self._process)

    def _drop_coming(self):
        """Give back what was loaded in advance."""
        dropped = self.coming.drop()
        if self._showing is not None:
            told, steps = self._showing
            steps.close()
            self._showing = None
            dropped.append(told["case"])
        for key in dropped:
            self.host.act(self._put, "release", case=key, by=self.word)

    def _take(self, event):
        kind, what = event.get("event"), event.get("what")
        if what == "open" and kind in ("done", "failed", "stopped"):
            self._opened(event)
        else:
            self._told(event)

    def _opened(self, event):
        if not self.coming.awaits(event):
            if event["event"] == "done" and event["case"]:
                forget_files(event)
                if event["case"] not in (self._wanted, self.open.key if self.open is not None else None):
                    self._put("release", case=event["case"], by=self.word)
            return
        self.nothing_left = event["event"] == "done" and not event["case"]
        if self.coming.answered(event):
            return
        waited, self._wanted = self._wanted, None
        if event["event"] == "failed":
            self.host.warn(event["text"], _TOPIC)
            if event["case"]:
                self.skipped.add(event["case"])
        elif waited is not None:
            self.host.say(event.get("text", ""), _TOPIC)

    # ---- inside: keeping

    def _write_some(self):
        """Write labels for a moment, those of the case that was left first."""
        end = time.monotonic() + AT_ONCE
        while self._writing and time.monotonic() < end:
            self.host.go_on()
            steps = self._writing[0]
            written = self._go_on(steps)
            self._stuck = steps if written == _WAITS else None
            if written is None:
                del self._writing[0]
            elif self._stuck:
                break

    def _done_with_nodes(self, steps):
        """Go on until the nodes are no longer needed; returns whether everything is written too."""
        while (written := self._go_on(steps)) == 0:
            pass
        return written is None

    def _go_on(self, steps):
        """The fraction of the labels that is written, 0 while the nodes are still needed, and None at the end."""
        try:
            return next(steps, None)
        except Exception as error:
            self.host.refused(error, _("Writing the labels"), _TOPIC)
            return None

    def _look(self, now):
        if self._wanted is not None and now > self._ask_after:  # the disk may not have taken the request
            self._ask_after = now + TRY_AGAIN_AFTER
            self.host.act(self._ask, self._wanted)
        case = self.open
        if case is None:
            return
        if not case.is_there:  # somebody deleted the volume or its segments
            self.open = None
            self.strip.show(None, None)
            self._put("release", case=case.key, by=self.word)
            return
        case.look(self.host.session)
        session = self.host.session
        rested = session is None or session.at_rest
        if case.is_changed and rested and now - (case.changed_at or now) > KEEP_AFTER and not self._writing:
            self._writing.append(self._kept_meanwhile(case, case.kept))
            case.kept = case.content
        if now > self._renew_after:
            self._renew_after = now + RENEW_EVERY
            coming = [self.coming.key] if self.coming.key is not None else []
            self.host.act(self._put, "take", cases=[case.key, *coming], by=self.word, process=self._process)

    def _kept_meanwhile(self, case, before):
        """Steps: keep the correction of the case that is open; `before`: what was kept of it so far."""
        from SAMFineTuneLib.mrml.cohort_nodes import label_file_steps

        try:
            number, path = self.work.reserve()
            yield from label_file_steps(path, case.segmentation_node, case.volume_node, case.labels)
            self._put("keep", number, case=case.key, by=self.word)
        except Exception:
            case.kept, case.changed_at = before, time.monotonic()  # tried again, and when the case is left
            raise

    def _put(self, what, number=None, **values):
        """Queue a piece of work, and make sure that a process does it."""
        number = self.work.put(what, number, **values)
        try:
            self.work.start(sys.executable, self._environment(self.cohort.folder))
        except Exception as error:
            self.host.refused(error, _("The work on the cohort"), _TOPIC)
        return number

    # ---- inside: segments

    def _segment_named(self, label):
        """ID of the segment with this name; else of the one that gets the prompts."""
        session = self.host.session
        return self.open.segment_of(label) or (session.current_segment_id if session is not None else None) or ""

    def _select(self, label):
        """Prompts go to the segment that is doubtful."""
        session = self.host.session
        if session is not None and session.segmentation_node is self.open.segmentation_node:
            session.current_segment_id = self._segment_named(label) or None
