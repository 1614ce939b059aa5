"""The learning curve of a cohort: how well the proposals agreed with what was accepted, case by case."""

from slicer.i18n import tr as _

from .train_curves import Curves

_LATEST = 5  # cases of the moving mean


class LearningCurve(Curves):
    """One point for each accepted case that had a proposal, and the mean of the latest."""

    title, along, up = _("Learning curve"), _("Accepted cases"), _("Dice of proposals")

    def follow(self, state):
        """Draw the cohort's present state if it has changed."""
        points = curve_of(state)
        if points == self._points:
            return
        shown = self.shown
        if shown:
            self._remove_nodes()
        self._points = points
        self._steps = max((order for order, _dice in points[("case", 1)]), default=0)
        if shown:
            self.show()

    @staticmethod
    def title_of(kind, part):
        return _("Each case") if kind == "case" else _("Mean of the latest five")

    def show(self):
        layout = self._layout
        super().show()
        self._layout = self._layout if layout is None else layout  # the curve was shown before


def curve_of(state):
    """{(kind, series): [(order of acceptance, Dice)]} of a cohort's state."""
    points = []
    for case in state.accepted:
        if case.review is not None and case.review.dice:
            points.append((case.review.order, sum(case.review.dice.values()) / len(case.review.dice)))
    latest = [
        (order, sum(dice for _order, dice in points[max(0, at - _LATEST + 1):at + 1]) / min(at + 1, _LATEST))
        for at, (order, _dice) in enumerate(points)
    ]
    return {("case", 1): points, ("dice", 2): latest}
