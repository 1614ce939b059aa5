"""A training shows what inference shows, learns, and gives one result however it is divided or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("scipy")

from case_files import blob, case_folder  # noqa: E402
from tuning_runs import same, settings, trained, training  # noqa: E402

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, objects_of  # noqa: E402
from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.inference.predictor import Predictor  # noqa: E402
from SAMFineTuneLib.metrics.mask_metrics import Overlap  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.spec import ModelSpec  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.prompts import PlanePrompts  # noqa: E402
from SAMFineTuneLib.simulation import first_prompts as prompting  # noqa: E402
from SAMFineTuneLib.simulation.corrections import batch_corrections  # noqa: E402
from SAMFineTuneLib.training import network_tuning as tuning  # noqa: E402
from SAMFineTuneLib.training import training_items as items_module  # noqa: E402
from SAMFineTuneLib.training.augmentation import augment  # noqa: E402
from SAMFineTuneLib.training.evidence import NetworkEngine, measure_case  # noqa: E402
from SAMFineTuneLib.training.interactive_training import decode_as_asked  # noqa: E402
from SAMFineTuneLib.training.losses import class_loss, round_loss  # noqa: E402
from SAMFineTuneLib.training.process_group import ProcessGroup  # noqa: E402
from SAMFineTuneLib.training.stopping import Stopped, interruptible, stopping  # noqa: E402
from SAMFineTuneLib.training.training_items import Items, class_shares  # noqa: E402
from SAMFineTuneLib.training.training_loop import Schedule  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return case_folder(tmp_path_factory.mktemp("cases"))


def mask_of(rows=60, columns=80, top=20, left=30, height=14, width=22) -> np.ndarray:
    mask = np.zeros((rows, columns), bool)
    mask[top : top + height, left : left + width] = True
    return mask


# ---- what is shown


class Watching:
    """An engine that notes what it is given."""

    def __init__(self, spec):
        self.spec, self.digest, self.device, self.notices = spec, "watching", "", []
        self.images, self.asked = [], []

    def encode(self, image):
        self.images.append(image)
        return {"image_embeddings": np.zeros((1, 1, 1, 1), np.float32)}

    def decode(self, embedding, coords, labels, mask_input, given):
        self.asked.append((coords, labels))
        low = self.spec.low_res_size
        return np.zeros((len(coords), 4, low, low), np.float32), np.zeros((len(coords), 4), np.float32)


SPECS = {
    "compact": lambda: Store().get().spec,
    "sam": lambda: ModelSpec("sam", "SAM", "sam_vit_b", input_size=256, low_res_size=64),
    "squash": lambda: ModelSpec("m", "MedSAM", "sam_vit_b", input_size=256, resize="squash", pixel_range="minmax",
                                interpolation="cubic", pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", ["boxes", "points"])
def test_training_shows_the_model_what_inference_shows(name, kind, monkeypatch):
    """The same picture, view and prompt through the predictor give the encoder and decoder the same numbers, in one of
    the views that it looks through."""
    spec = SPECS[name]()
    mask = mask_of()
    picture = np.random.default_rng(0).integers(0, 255, mask.shape).astype(np.uint8)
    drawn = []

    def first_prompt(rng, shown, kind="mixed"):
        drawn.append(prompting.first_prompt(rng, shown, kind))
        return drawn[-1]

    monkeypatch.setattr(items_module, "first_prompt", first_prompt)
    chosen = settings(prompts=kind, augment=0.0)
    item = Items([LabelledSlice(picture, mask.astype(np.uint8), None)], [], spec, chosen)(3)
    first, engine = drawn[0], Watching(spec)
    view = item.keys[0][2]
    if kind == "boxes":
        Predictor(engine).predict(picture, PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, int), box=first.box))
    else:
        given = first.labels >= 0
        prompts = PlanePrompts(first.coords[given], first.labels[given].astype(int))
        Predictor(engine).predict(picture, prompts, view=view)
    which = [np.array_equal(image[0], item.images[0]) for image in engine.images].index(True)
    coords, labels = decoded_in_training(item, spec)
    asked_coords, asked_labels = engine.asked[which]
    np.testing.assert_allclose(coords, asked_coords, atol=1e-5)
    assert np.array_equal(labels, asked_labels), "also what pads it"
    assert abs(item.targets[0].sum() / view_cells(view, spec) - mask.sum()) < 0.05 * mask.sum(), "the target is whole"


def decoded_in_training(item, spec) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of an item's only object as the mask decoder gets them."""
    coords, labels = torch.from_numpy(item.coords), torch.from_numpy(item.labels)
    network, low = Noting(), spec.low_res_size
    decode_as_asked(network, {}, coords, labels, torch.zeros(1, 1, low, low), torch.zeros(1))
    return network.prompts[0]


class Noting:
    """A network that notes the prompts of each call, and answers with them."""

    def __init__(self):
        self.prompts = []

    def decode(self, embedding, coords, labels, logits, given):
        self.prompts.append((coords.numpy(), labels.numpy()))
        total = (coords.sum((1, 2)) + labels.sum(1) + given)[:, None]
        return logits + total[..., None, None], total


def test_objects_are_asked_with_prompts_of_their_own_length():
    nothing = [0.0, 0.0], -1
    sessions = [
        [([5, 5], 2), ([9, 9], 3), nothing, nothing],
        [([7, 7], 1), nothing, nothing, nothing],
        [([3, 3], 2), ([4, 4], 3), nothing, ([8, 1], 0)],
        [([6, 1], 1), nothing, ([2, 2], 1), nothing],
    ]
    coords = torch.tensor([[place for place, _ in one] for one in sessions], dtype=torch.float32)
    labels = torch.tensor([[label for _, label in one] for one in sessions], dtype=torch.float32)
    network = Noting()
    masks, predicted = decode_as_asked(network, {}, coords, labels, torch.zeros(4, 1, 2, 2), torch.arange(4.0))
    asked = sorted(one for call in network.prompts for one in map(str, call[1].astype(int).tolist()))
    assert asked == ["[1, -1]", "[1, 1, -1]", "[2, 3, 0]", "[2, 3]"]
    there = (labels >= 0).float()
    expected = (coords * there[..., None]).sum((1, 2)) + (labels * there).sum(1) + torch.arange(4.0)
    expected -= torch.tensor([0.0, 1.0, 0.0, 1.0])  # the padding of points
    assert torch.equal(predicted[:, 0], expected) and torch.equal(masks[:, 0, 0, 0], expected), "in their order"


def view_cells(view, spec) -> float:
    """Low-resolution cells a picture pixel."""
    if spec.resize == "squash":
        return spec.low_res_size**2 / (view.rows * view.columns)
    return (spec.low_res_size / max(view.rows, view.columns)) ** 2


def test_targets_of_classes_cover_everything_once():
    classes = np.zeros((40, 60), np.uint8)
    classes[5:20, 10:30], classes[20:35, 10:30] = 1, 2
    shares = class_shares(classes, 3, SPECS["compact"]())
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    assert (shares[0, -1] == 1).all(), "padding is background"
    assert abs(shares[1].sum() - shares[2].sum()) < 1e-3


def test_augmentation_makes_no_new_classes_and_moves_both_alike():
    classes = (blob()[2] * 5).astype(np.uint8)
    picture = np.where(classes, 200, 50).astype(np.uint8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shown, labels = augment(rng, picture, classes)
        assert set(np.unique(labels)) <= {0, 5}
        inside, outside = shown[labels > 0], shown[labels == 0]
        assert not inside.size or np.median(inside) > np.median(outside)
    assert augment(np.random.default_rng(0), picture, classes, 0) == (picture, classes)


def test_augmentation_varies_what_scanners_vary():
    """Of a flat picture some copies get noise, some a smooth field, some neither."""
    flat, nothing = np.full((64, 64), 128, np.uint8), np.zeros((64, 64), np.uint8)
    shown = [augment(np.random.default_rng(seed), flat, nothing)[0].astype(float) for seed in range(60)]
    noise = np.array([np.abs(np.diff(one)).mean() for one in shown])
    field = np.array([np.ptp(one.reshape(4, 16, 4, 16).mean((1, 3))) for one in shown])
    assert 10 < (noise > 2).sum() < 50 and 5 < ((noise < 1) & (field > 2)).sum() and 5 < (noise == 0).sum()


@pytest.mark.parametrize("seed", range(20))
def test_prompts_lie_where_an_annotator_may_place_them(seed):
    mask = mask_of()
    rng = np.random.default_rng(seed)
    points = prompting.sample_points(rng, mask, 3)
    assert all(mask[int(y), int(x)] for x, y in points) and len(points) == 3
    box, tight = prompting.sloppy_box(rng, mask), np.array([30, 20, 51, 33])
    assert (np.abs(box - tight) <= 0.13 * np.array([22, 14, 22, 14])).all()
    assert box[0] < box[2] and box[1] < box[3]


def test_prompts_vary_in_kind_and_place():
    firsts = [prompting.first_prompt(np.random.default_rng(seed), mask_of()) for seed in range(200)]
    boxes = sum(first.box is not None for first in firsts)
    lone = sum(first.ambiguous for first in firsts)
    assert 70 < boxes < 130 and lone > 50 and 200 - boxes - lone > 5
    assert len({tuple(first.coords[0]) for first in firsts}) > 100


# ---- losses and corrections


def test_clicks_correct_what_is_wrong():
    target, logits = torch.zeros(3, 16, 16), torch.full((3, 16, 16), -4.0)
    target[:, 4:8, 4:8] = 1
    logits[0, 4:8, 4:12] = 4.0  # spills to the right
    logits[1, 4:8, 4:6] = 4.0  # misses the right half
    logits[2][target[2] > 0] = 4.0  # right
    for seed in range(10):
        chances = torch.rand(3, 7, generator=torch.Generator().manual_seed(seed))
        coords, labels = batch_corrections(logits, target, chances, 64)
        assert labels.tolist() == [[-1, 0], [1, -1], [-1, -1]]
        cell = ((coords + 0.5) / 4).floor().long()
        x, y = cell[0, 1].tolist()
        assert 8 <= x < 12 and 4 <= y < 8
        x, y = cell[1, 0].tolist()
        assert 6 <= x < 8 and 4 <= y < 8


@pytest.mark.parametrize("ranks_all", [False, True])
def test_the_right_candidate_lowers_the_loss(ranks_all):
    target = torch.zeros(1, 16, 16)
    target[:, :8] = 1
    right, wrong = 8 * (2 * target - 1), 8 * (1 - 2 * target)
    for lone, best in ((True, [wrong, right, wrong, wrong]), (False, [right, wrong, wrong, wrong])):
        predicted = torch.tensor([[float(one is right) for one in best]])
        asked = target, torch.tensor([lone]), torch.zeros(1), ranks_all
        good = round_loss(torch.stack(best, 1), predicted, *asked)
        bad = round_loss(torch.stack([wrong] * 4, 1), predicted, *asked)
        lying = round_loss(torch.stack(best, 1), 1 - predicted, *asked)
        assert good.loss < bad.loss and good.loss < lying.loss
        assert good.iou.tolist() == [[float(one is right) for one in best]]


def test_what_a_view_cuts_off_counts_against_its_answers():
    target = torch.zeros(1, 16, 16)
    target[:, :8] = 1
    right, predicted = torch.stack([8 * (2 * target - 1)] * 4, 1), torch.full((1, 4), 0.5)
    cut = round_loss(right, predicted, target, torch.tensor([False]), torch.tensor([128.0]), True)
    assert (cut.iou == 0.5).all(), "half of the object lies outside"
    whole = round_loss(right, predicted, target, torch.tensor([False]), torch.tensor([0.0]), True)
    assert (whole.iou == 1).all() and whole.loss > cut.loss, "the predicted IoU is that of the cut object"


def test_the_class_loss_prefers_the_truth_to_background():
    shares = torch.zeros(1, 3, 16, 16)
    shares[:, 1, 4:8, 4:8] = 1
    shares[:, 0] = 1 - shares[:, 1]
    truth, background = 8 * shares, torch.zeros(1, 3, 16, 16)
    background[:, 0] = 8
    assert class_loss(truth, shares) < 0.1 < class_loss(background, shares)
    absent = torch.zeros(1, 3, 16, 16)
    absent[:, 0] = 1
    assert class_loss(background, absent) < 0.1, "where nothing is, nothing is the right answer"


# ---- the schedule follows the number of steps


@pytest.mark.parametrize("steps", [10, 100, 5000])
def test_warm_up_and_decay_are_parts_of_the_run(steps):
    schedule = Schedule(0.01, 0.05, steps)
    rates = [schedule.rate_at(step) for step in range(steps)]
    assert max(rates) == pytest.approx(0.01) and rates.index(max(rates)) <= 0.06 * steps
    assert rates[-1] < 0.2 * max(rates) and rates[0] > 0


# ---- learning


def test_a_training_learns(folder):
    run = training(folder, steps=8, augment=0.3, learning_rate=4e-3)
    before = trained(run.network)

    def loss() -> float:
        with torch.no_grad():
            return float(tuning.batch_loss(run, tuning.Embeddings(run, 4), [run.items(n) for n in range(4)])[0].mean())

    at_first = loss()
    tuning.tune(run)
    assert loss() < 0.9 * at_first
    frozen = [name for name, value in run.network.named_parameters() if not value.requires_grad]
    assert frozen and not same(before, trained(run.network))


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"checkpointing": "on"}])
def test_saving_memory_changes_nothing(folder, changes):
    plain, sparing = training(folder, steps=2), training(folder, steps=2, **changes)
    before = trained(plain.network)
    for run in (plain, sparing):
        tuning.tune(run)
    assert alike(trained(plain.network), trained(sparing.network), before)


def alike(first: dict, second: dict, before: dict) -> bool:
    """Whether both went the same way but for rounding."""
    far = sum(float(((first[name] - before[name]) ** 2).sum()) for name in before) ** 0.5
    apart = sum(float(((first[name] - second[name]) ** 2).sum()) for name in before) ** 0.5
    return far > 0 and apart < 0.02 * far


def test_a_frozen_encoder_embeds_each_version_once(folder):
    run = training(folder, steps=12, method=Method(scope="decoder"), variants=1, heads=("automatic",))
    calls = []
    encode = run.network.encode
    run.network.encode = lambda image: calls.append(len(image)) or encode(image)
    tuning.tune(run)
    pictures = len(run.items.slices) + len(run.items.empty)
    assert 24 > pictures >= sum(calls), "24 items were shown"


def test_early_stopping_keeps_the_best(folder):
    run = training(folder, steps=8, validations=8, patience=2)
    scores, seen = iter([0.5, 0.8, 0.7, 0.6, 0.9]), []

    def validate():
        seen.append(trained(run.network))
        return next(scores)

    run.validate = validate
    history = tuning.tune(run)
    assert history.dice == [0.5, 0.8, 0.7, 0.6] and history.best == 2 and "step 2" in history.ended
    assert same(seen[1], trained(run.network)) and not same(seen[3], seen[1])


# ---- one result


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(folder, root, tmp_path):
    """Gloo on the CPU, as torchrun starts it."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path[:0] = [{str(root / 'Testing' / 'samples')!r}]\n"
        "from tuning_runs import training, trained\n"
        "from SAMFineTuneLib.training.network_tuning import tune\n"
        "from SAMFineTuneLib.training.process_group import join_process_group\n"
        "torch.set_num_threads(1)\n"
        "group, _ = join_process_group('cpu')\n"
        "run = training(sys.argv[1], group, steps=2, batch=4)\n"
        "history = tune(run)\n"
        "if group.first:\n"
        "    torch.save({'trained': trained(run.network), 'loss': history.loss, 'size': group.size}, sys.argv[2])\n"
    )
    results = {}
    for count in (1, 2):
        out = tmp_path / f"{count}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone",
                   str(script), str(folder), str(out)]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        results[count] = torch.load(out, weights_only=True)
    assert [results[count]["size"] for count in (1, 2)] == [1, 2]
    np.testing.assert_allclose(results[1]["loss"], results[2]["loss"], rtol=1e-3)
    before = trained(training(folder).network)
    assert alike(results[1]["trained"], results[2]["trained"], before)
    other = training(folder, steps=2, batch=2)
    tuning.tune(other)
    assert not alike(results[1]["trained"], trained(other.network), before), "half the batch is another result"


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="batch of 5 pictures cannot be shared by 2"):
        ProcessGroup(0, 2).part_of(5)


@pytest.mark.slow
def test_a_killed_training_ends_as_an_uninterrupted_one(folder, root, tmp_path):
    """A real process, killed with no chance to clean up, right after some checkpoint."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path[:0] = [{str(root / 'Testing' / 'samples')!r}]\n"
        "from pathlib import Path\n"
        "from tuning_runs import training\n"
        "from SAMFineTuneLib.models.adapters.tuning_method import Method\n"
        "from SAMFineTuneLib.training import network_tuning, training_loop\n"
        "torch.set_num_threads(1)\n"
        "training_loop.CHECKPOINT_SECONDS, training_loop.CHECKPOINT_SHARE = 0.0, 1e9\n"
        "run = training(sys.argv[1], steps=5, validations=5, patience=9, method=Method(dropout=0.2))\n"
        "run.validate = lambda: -float(sum(v.abs().sum() for v in run.network.parameters() if v.requires_grad))\n"
        "run.report = lambda history: print(len(history.loss), flush=True)\n"
        "history = network_tuning.tune(run, Path(sys.argv[2]))\n"
        "from tuning_runs import trained\n"
        "torch.save({'trained': trained(run.network), 'loss': history.loss, 'dice': history.dice}, sys.argv[3])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen:
        files = [str(tmp_path / f"{name}.{ending}") for ending in ("ckpt", "pt")]
        command = [sys.executable, str(script), str(folder), *files]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole, parts = start("whole"), start("parts")
    for line in parts.stdout:
        if int(line) >= 3:
            break
    os.kill(parts.pid, signal.SIGKILL)
    parts.wait()
    assert not (tmp_path / "parts.pt").exists()
    resumed = start("parts")
    out, error = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, error[-3000:]
    assert int(out.split()[0]) > 2, "it went on, and did not begin anew"
    assert whole.communicate(timeout=240)[1] is not None and whole.returncode == 0
    first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert first["loss"] == second["loss"] and first["dice"] == second["dice"]
    assert same(first["trained"], second["trained"])


def test_cancelling_saves_and_resuming_goes_on(folder, tmp_path):
    started = time.monotonic()
    run = training(folder, steps=4)
    seen = []
    run.report = seen.append
    run.look = stopping(lambda: len(seen) >= 2)
    with pytest.raises(Stopped):
        tuning.tune(run, tmp_path / "c.pt")
    again, whole = training(folder, steps=4), training(folder, steps=4)
    tuning.tune(again, tmp_path / "c.pt")
    tuning.tune(whole)
    assert same(trained(again.network), trained(whole.network)), time.monotonic() - started


@pytest.mark.parametrize("scope", ["decoder", "encoder+decoder"])
def test_a_training_stops_in_the_midst_of_a_step_and_ends_the_same(folder, tmp_path, scope):
    run, calls = training(folder, steps=3, method=Method(scope=scope)), []

    def look() -> None:
        calls.append(1)
        if len(calls) in stops:
            raise Stopped

    stops: set[int] = set()
    tuning.tune(interruptible(run.network, look) and run)
    whole, count = trained(run.network), len(calls)
    assert count > 100, "between any two modules"
    calls.clear()
    stops |= {count // 7, count // 2, count // 2 + count // 3}  # in forward and in backward passes
    for _ in stops:
        again = training(folder, steps=3, method=Method(scope=scope))
        interruptible(again.network, look)
        with pytest.raises(Stopped):
            tuning.tune(again, tmp_path / "c.pt")
    again = training(folder, steps=3, method=Method(scope=scope))
    tuning.tune(again, tmp_path / "c.pt")
    assert same(trained(again.network), whole)


def test_a_damaged_checkpoint_is_refused(folder, tmp_path):
    (tmp_path / "c.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        tuning.tune(training(folder), tmp_path / "c.pt")


# ---- measuring


def test_dice_counts_foreground_only():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert Overlap.of(empty, empty).dice is None
    assert Overlap.of(full, empty).dice == 0 and Overlap.of(full, full).dice == 1
    assert (Overlap.of(full, full) + Overlap.of(full, empty)).dice == pytest.approx(2 / 3)


def test_a_case_is_measured_as_users_meet_the_model(folder):
    run = training(folder)
    one = next(one for one in run.items.slices)
    found = measure_case(NetworkEngine(run.network, run.spec, run.device), [one], 1, ("1 box", "1 point", "automatic"))
    thing = objects_of(one)[0]
    box = np.array([np.flatnonzero(thing.mask.any(0))[[0, -1]], np.flatnonzero(thing.mask.any(1))[[0, -1]]]).T.ravel()
    engine = NetworkEngine(run.network, run.spec, run.device)
    prompts = PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, int), box=np.float32(box))
    mask = Predictor(engine).predict(one.picture, prompts).mask
    expected = 2 * (mask & thing.mask).sum() / (mask.sum() + thing.mask.sum())
    assert found["1 box"] == (pytest.approx(expected),) and set(found) == {"1 box", "1 point", "automatic"}


def test_a_structure_answers_only_for_the_slices_that_show_it(folder):
    run = training(folder)
    engine = NetworkEngine(run.network, run.spec, run.device)
    first, second = (replace(one, classes=np.uint8(one.classes > 0)) for one in run.items.slices[:2])
    second = replace(second, classes=2 * second.classes)
    alone = [measure_case(engine, [one], 2, ["1 box"])["1 box"] for one in (first, second)]
    assert measure_case(engine, [first, second], 2, ["1 box"])["1 box"] == (alone[0][0], alone[1][1])
    assert alone[0][1] is None and alone[1][0] is None


def test_evenly_spread():
    assert evenly(list(range(10)), 3) == [1, 5, 8] and evenly([1, 2], 5) == [1, 2]
