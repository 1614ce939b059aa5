"""What was left undecided ("ignore" of nnU-Net) counts for nothing in training: not in a loss, a click or a Dice; and
labels that overlap are learned whole."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from types import SimpleNamespace  # noqa: E402

from case_files import blob, image_of  # noqa: E402

from SAMFineTuneLib.cases.case_slices import LabelledSlice, objects_of  # noqa: E402
from SAMFineTuneLib.cases.labelled_case import IGNORED  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.training import evidence  # noqa: E402
from SAMFineTuneLib.training.interactive_training import TrainingObjects, session_loss  # noqa: E402
from SAMFineTuneLib.training.losses import class_loss, round_loss  # noqa: E402
from SAMFineTuneLib.training.network_tuning import _counted  # noqa: E402
from SAMFineTuneLib.training.training_items import Items, class_shares  # noqa: E402
from SAMFineTuneLib.training.training_settings import TrainingSettings  # noqa: E402


def undecided_slice():
    """A disc of class 1 with a ring of undecided pixels around it."""
    disc, wider = blob(radius=6)[2], blob(radius=10)[2]
    classes = np.where(disc, 1, np.where(wider, IGNORED, 0)).astype(np.uint8)
    return LabelledSlice(image_of(disc[None])[0].astype(np.uint8), classes, None)


class Network(torch.nn.Module):
    """Answers every prompt by the same logits, which learn, and keeps the clicks."""

    def __init__(self, side: int):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0)))
        self.clicks = []

    def decode(self, embedding, coords, labels, logits, given):
        self.clicks.append((coords, labels))
        return self.logits.expand(len(coords), -1, -1, -1), torch.zeros(len(coords), 4)


@pytest.mark.parametrize("ranks_all", [True, False])
def test_nothing_undecided_is_learned_or_clicked(ranks_all):
    side = 16
    target, counted = torch.zeros(3, side, side), torch.ones(3, side, side)
    target[:, 4:8, 4:8], counted[:, :, 8:] = 1, 0
    generator = torch.Generator().manual_seed(1)
    objects = TrainingObjects(
        torch.zeros(3, dtype=torch.long), torch.full((3, 2, 2), 20.0), torch.tensor([[1.0, -1.0]] * 3),
        torch.tensor([True, False, True]), target, torch.zeros(3), torch.rand(3, 4, 7, generator=generator), counted,
    )  # fmt: skip
    network = Network(side)
    spec = SimpleNamespace(low_res_size=side, input_size=4 * side, ranks_all=ranks_all)
    loss, iou = session_loss(network, spec, {}, objects, 0.5)
    loss.sum().backward()
    gradient = network.logits.grad
    assert (gradient[..., 8:] == 0).all() and (gradient[..., :8] != 0).any()
    for coords, labels in network.clicks:
        assert (coords[labels >= 0][:, 0] < 4 * 8 - 0.5 + 1e-3).all(), "clicks lie in cells that count"
    with torch.no_grad():
        network.logits[..., 8:] = 50
    changed, again = session_loss(network, spec, {}, objects, 0.5)
    assert torch.equal(changed, loss) and torch.equal(again, iou)


def test_where_all_counts_the_loss_is_that_without_a_weight():
    generator = torch.Generator().manual_seed(2)
    logits, predicted = torch.randn(2, 4, 16, 16, generator=generator), torch.rand(2, 4, generator=generator)
    target = (torch.rand(2, 16, 16, generator=generator) > 0.7).float()
    asked = logits, predicted, target, torch.tensor([True, False]), torch.zeros(2), True
    weighted = round_loss(*asked, torch.ones(2, 16, 16))
    assert torch.allclose(round_loss(*asked).loss, weighted.loss) and torch.equal(round_loss(*asked).iou, weighted.iou)


def test_the_automatic_head_learns_nothing_where_nothing_was_decided():
    one = undecided_slice()
    spec = Store().get().spec
    shares = torch.from_numpy(class_shares(one.classes, 2, spec))[None]
    counted = shares.sum(1)
    assert counted.min() == 0 and counted.max() == 1
    logits = torch.zeros(1, 2, *shares.shape[2:], requires_grad=True)
    class_loss(logits, shares).sum().backward()
    assert (logits.grad[:, :, counted[0] == 0] == 0).all() and (logits.grad[:, :, counted[0] == 1] != 0).any()


@pytest.mark.parametrize("prompts", ["boxes", "points"])
def test_items_say_what_does_not_count(prompts):
    spec = Store().get().spec
    method = Method(heads=("promptable",))
    settings = TrainingSettings(prompts=prompts, augment=0.0, method=method, heads=("promptable",))
    one = undecided_slice()
    assert [thing.mask.sum() for thing in objects_of(one)] == [(one.classes == 1).sum()]
    item = Items([one], [], spec, settings)(0)
    assert item.ignored.max() == 1 and item.ignored.shape == item.targets.shape[1:]
    assert (item.targets[0] + item.ignored <= 1 + 1e-5).all(), "nothing is both"
    plain = Items([LabelledSlice(one.picture, (one.classes == 1).astype(np.uint8), None)], [], spec, settings)(0)
    assert plain.ignored is None and _counted([plain], np.zeros(1, int), torch.device("cpu")) is None
    counted = _counted([plain, item], np.array([0, 1]), torch.device("cpu")).numpy()
    assert (counted[0] == 1).all() and np.allclose(counted[1], 1 - item.ignored)


@pytest.mark.parametrize("way", ["1 box", "automatic"])
def test_dice_of_a_case_leaves_out_what_was_not_decided(monkeypatch, way):
    one = undecided_slice()
    wider = one.classes > 0  # the disc and all that is undecided
    monkeypatch.setattr(evidence, "automatic_classes", lambda engine, picture: wider.astype(np.uint8))
    monkeypatch.setattr(evidence.Predictor, "predict", lambda *_: SimpleNamespace(mask=wider))
    assert evidence.measure_case(SimpleNamespace(), [one], 1, (way,)) == {way: (1.0,)}


def test_overlapping_classes_are_objects_of_their_own():
    whole, core = blob(radius=9)[2] > 0, blob(radius=4)[2] > 0
    classes = np.where(core, 3, whole).astype(np.uint8)
    one = LabelledSlice(whole.astype(np.uint8), classes, None, {3: (1, 2)})
    assert one.numbers == [1, 2]
    assert [(thing.label, thing.mask.sum()) for thing in objects_of(one)] == [(1, whole.sum()), (2, core.sum())]
