"""The predictor: segment-anything's answers, nothing embedded twice, zoom, wrong input."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from region_engine import RegionEngine

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import aligned_plane, body_phantom, choose_window, picture
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.input_crop import View, bounding_box
from SAMFineTuneLib.inference.mask_shapes import interior_points
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.onnx_export import export_model
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts

NONE = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


def points(*xy_label) -> tuple[np.ndarray, np.ndarray]:
    table = np.float32(xy_label).reshape(-1, 3)
    return table[:, :2], table[:, 2].astype(np.int64)


def textured(rows: int = 120, columns: int = 180) -> np.ndarray:
    random = np.random.default_rng(3)
    y, x = np.mgrid[:rows, :columns]
    disc = ((x - 110) ** 2 + (y - 60) ** 2 < 30**2) * 120
    return np.clip(disc + 60 + random.normal(0, 12, (rows, columns)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """A SAM with a small ViT and random weights, as a checkpoint file, and segment-anything's own predictor on it."""
    torch = pytest.importorskip("torch")
    monkey = pytest.MonkeyPatch()
    functional = types.ModuleType("torchvision.transforms.functional")
    # What torchvision does with pictures is Pillow's; the real package would pull in a CUDA build.
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    for name in ("torchvision", "torchvision.transforms", "torchvision.ops", "torchvision.ops.boxes"):
        monkey.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision.ops.boxes"].batched_nms = sys.modules["torchvision.ops.boxes"].box_area = None
    monkey.setitem(sys.modules, "torchvision.transforms.functional", functional)
    from segment_anything import SamPredictor
    from segment_anything.build_sam import _build_sam

    torch.manual_seed(0)
    network = _build_sam(192, 4, 4, [1, 3]).eval()  # width, depth, heads, global attention
    for parameter in network.mask_decoder.parameters():  # else random logits are near zero, and masks noise
        parameter.data *= 1.5
    folder = tmp_path_factory.mktemp("sam")
    torch.save(network.state_dict(), folder / "sam.pth")
    spec = ModelSpec(id="sam-random", name="SAM", architecture="sam_vit", files={"weights": "sam.pth"})
    picture = textured()
    theirs = SamPredictor(network)
    theirs.set_image(np.repeat(picture[..., None], 3, axis=2))
    yield ModelFolder(spec, folder), theirs, picture
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        del sys.modules[name]  # it was imported with the stand-ins
    monkey.undo()


CASES = {
    "one point": PlanePrompts(*points((100, 50, 1))),
    "points": PlanePrompts(*points((100, 50, 1), (20, 20, 0), (121.5, 70.25, 1))),
    "box": PlanePrompts(*NONE, box=np.float32([75, 25, 145, 95])),
    "box and points": PlanePrompts(*points((100, 50, 1), (30, 90, 0)), box=np.float32([75, 25, 145, 95])),
}


def asked_of(theirs, prompts: PlanePrompts, **options):
    some = {"point_coords": prompts.points, "point_labels": prompts.labels} if len(prompts.points) else {}
    return theirs.predict(**some, box=prompts.box, **options)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / max(1, first.sum() + second.sum())


def test_masks_predicted_iou_and_logits_are_segment_anythings(sam):
    folder, theirs, picture = sam
    predictor = Predictor(open_engine(folder, device="cpu"))
    for name, prompts in CASES.items():
        multimask = name == "one point"
        masks, scores, low_res = asked_of(theirs, prompts, multimask_output=multimask)
        ours = predictor.predict(picture, prompts)
        np.testing.assert_allclose(ours.low_res_candidates, low_res, atol=2e-4 * np.abs(low_res).max(), err_msg=name)
        np.testing.assert_allclose(ours.scores, scores, atol=1e-4, err_msg=name)
        assert ours.masks.shape == masks.shape
        assert min(dice(a, b) for a, b in zip(ours.masks, masks, strict=True)) > 0.999, name
    first = predictor.predict(picture, CASES["one point"])
    masks, scores, low_res = asked_of(
        theirs, CASES["points"], mask_input=first.low_res[None], multimask_output=False
    )
    ours = predictor.predict(picture, CASES["points"], previous=first)
    np.testing.assert_allclose(ours.low_res[None], low_res, atol=2e-4 * np.abs(low_res).max())
    np.testing.assert_allclose(ours.scores, scores, atol=1e-4)
    assert predictor.encoder_calls == 1  # all of this on one embedding


@pytest.mark.slow
@pytest.mark.parametrize(("int8", "least"), [(False, 0.999), (True, 0.95)])  # random weights are hard to round
def test_the_exported_graphs_give_segment_anythings_masks(sam, tmp_path, int8, least):
    folder, theirs, picture = sam
    predictor = Predictor(open_engine(export_model(folder, tmp_path, int8=int8), device="cpu", engine="onnx"))
    assert ("int8" in predictor.engine.device) == int8
    for name, prompts in CASES.items():
        masks, scores, _ = asked_of(theirs, prompts, multimask_output=name == "one point")
        ours = predictor.predict(picture, prompts)
        assert min(dice(a, b) for a, b in zip(ours.masks, masks, strict=True)) >= least, name


def test_pictures_shown_in_another_way_are_embedded_again(random_compact):
    """The same weights: only how pictures become input differs."""
    cache, picture = EmbeddingCache(), textured()
    for count, rule in enumerate(("0-255", "percentiles", "0-255")):
        model = ModelFolder(replace(random_compact.spec, pixel_range=rule), random_compact.path)
        predictor = Predictor(open_engine(model), cache)
        predictor.embed(picture)
        assert predictor.encoder_calls == (count < 2)


def test_a_second_prompt_on_an_embedded_slice_encodes_nothing(random_compact, tmp_path):
    picture = textured()
    for spec in (replace(random_compact.spec, zoom=False), random_compact.spec):
        engine = open_engine(ModelFolder(spec, random_compact.path))
        predictor = Predictor(engine, EmbeddingCache(tmp_path / str(spec.zoom)))
        first = predictor.predict(picture, CASES["box"])
        encoded = predictor.encoder_calls
        assert encoded == 1
        predictor.predict(picture, CASES["box and points"])
        predictor.predict(picture, PlanePrompts(*points((100, 50, 1), (90, 40, 0))), previous=first)
        assert predictor.encoder_calls == encoded
        again = Predictor(engine, EmbeddingCache(tmp_path / str(spec.zoom)))
        assert np.array_equal(again.predict(picture, CASES["box"]).mask, first.mask)
        assert again.encoder_calls == 0  # another process, the same command


def test_a_lone_point_gives_three_candidates_and_more_prompts_one(random_compact):
    predictor = Predictor(open_engine(random_compact))
    picture = textured()
    alone = predictor.predict(picture, CASES["one point"])
    assert alone.masks.shape == (3, *picture.shape) and alone.score == alone.scores.max()
    assert np.array_equal(alone.mask, alone.masks[alone.best])
    for name in ("points", "box", "box and points"):
        assert predictor.predict(picture, CASES[name]).masks.shape == (1, *picture.shape)


def test_a_model_that_ranks_all_its_masks_joins_them_where_the_prompts_say_what_is_meant(random_compact):
    ranking = replace(random_compact.spec, ranks_all=True)
    predictor = Predictor(open_engine(ModelFolder(ranking, random_compact.path)))
    picture = textured()
    for name, prompts in CASES.items():
        found = predictor.predict(picture, prompts)
        assert found.masks.shape == (5, *picture.shape) and found.scores.shape == (5,), name
        assert np.array_equal(found.mask, found.masks[0]) and found.best == 0, name


class TwoDiscs:
    """Answers every prompt with a large disc on the left and a small one on the right."""

    device, digest, notices = "test", "two discs", ()
    spec = ModelSpec(id="two", name="Two", architecture="compact", input_size=64, low_res_size=64, channels=1,
                     pixel_mean=(0.0,), pixel_std=(1.0,), embedding_size=64, one_piece=True)  # fmt: skip

    def encode(self, image):
        return {"image": image}

    def __init__(self, sureness: float = 5.0):
        self.sureness = sureness

    def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
        rows, columns = np.indices((64, 64))
        large, small = (np.hypot(rows - 32, columns - x) <= radius for x, radius in ((18, 12), (50, 6)))
        logits = np.where(large | small, self.sureness, -self.sureness).astype(np.float32)
        return np.tile(logits, (len(point_coords), 4, 1, 1)), np.ones((len(point_coords), 4), np.float32)


def test_strays_of_a_model_of_one_piece_are_dropped_unless_they_are_pointed_at():
    predictor, picture = Predictor(TwoDiscs()), np.zeros((64, 64), np.uint8)
    everywhere = np.float32([2, 20, 60, 48])
    on_large, on_small, hint = points((18, 32, 1)), points((50, 32, 1)), np.zeros((64, 64), bool)
    hint[30:34, 48:52] = True

    def discs(prompts):
        mask = predictor.predict(picture, prompts).mask
        return bool(mask[32, 18]), bool(mask[32, 50])

    assert discs(PlanePrompts(*NONE, box=everywhere)) == (True, False)
    assert discs(PlanePrompts(*on_large)) == (True, False)
    assert discs(PlanePrompts(*on_small)) == (False, True)
    assert discs(PlanePrompts(*on_small, box=everywhere)) == (True, True)
    assert discs(PlanePrompts(*points((18, 32, 1), (50, 32, 1)))) == (True, True)
    assert discs(PlanePrompts(*NONE, mask=hint)) == (False, True)
    assert discs(PlanePrompts(*points((34, 60, 1)))) == (True, False), "a point beside all: the largest"


def test_what_a_box_leaves_out_must_be_certain_to_be_of_the_object():
    upper, picture = np.float32([4, 18, 32, 32]), np.zeros((64, 64), np.uint8)

    def lower_half(sureness: float, *clicks: tuple[float, float, int]) -> bool:
        given = PlanePrompts(*(points(*clicks) if clicks else NONE), box=upper)
        mask = Predictor(TwoDiscs(sureness)).predict(picture, given).mask
        assert mask[21:33, 18].all(), "what the box holds is not affected"
        assert mask[33:44, 18].all() == mask[33:44, 18].any()
        return bool(mask[33, 18])

    assert not lower_half(1.0)
    assert lower_half(3.0)
    assert not lower_half(1.0, (18, 20, 1), (18, 50, 0))
    assert lower_half(1.0, (18, 38, 1)), "who points at it outside the box says that the box is too small"


class ManyViews:
    """Answers each view with the same logit everywhere, another one for each; notes the logits and the points' labels
    that it is given."""

    device, digest, notices = "test", "many", ()
    spec = replace(TwoDiscs.spec, input_size=64, low_res_size=32, zoom=True, ranks_all=True, one_piece=False)

    def __init__(self, *logits: float):
        self.logits, self.seen, self.given, self.labels = logits, 0, {}, {}

    def encode(self, image):
        self.seen += 1
        return {"number": np.full((1, 1), self.seen - 1, np.float32)}

    def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
        number = int(embedding["number"][0, 0])
        self.given[number] = mask_input[0, 0] if has_mask_input[0] else None
        self.labels[number] = point_labels[0].tolist()
        logits = np.full((1, 4, 32, 32), self.logits[number], np.float32)
        return logits, np.ones((1, 4), np.float32)


def test_prompts_that_say_what_is_meant_are_answered_through_three_views():
    engine, picture = ManyViews(3.0, -6.0, -1.0), textured(400, 400)
    predictor = Predictor(engine)
    box = PlanePrompts(*NONE, box=np.float32([180, 180, 219, 219]))
    found = predictor.predict(picture, box)
    side, narrow, middle = found.view.rows, found.view.rows / 2**0.5, found.view.top + found.view.rows / 2
    distance = np.abs(np.indices(picture.shape) + 0.5 - middle).max(axis=0)
    assert found.mask[(distance > narrow / 2 + 4) & (distance < side / 2 - 4)].all(), "3 and -1, and nothing else"
    assert not found.mask[distance < narrow / 2 - 4].any(), "3, -6 and -1"
    assert not found.mask[distance > side / 2].any()
    assert engine.seen == 3 and list(engine.given.values()) == [None] * 3
    predictor.predict(picture, replace(box, points=np.float32([[200, 200]]), labels=np.ones(1)), previous=found)
    assert engine.seen == 3, "the views stay"
    np.testing.assert_array_equal(engine.given[0], found.low_res)
    np.testing.assert_allclose(engine.given[1][2:-2, 2:-2], -4 / 3, atol=1e-4)
    assert engine.given[2][16, 16] == pytest.approx(-4 / 3, abs=1e-4) and engine.given[2][0, 16] == -8.0
    alone = predictor.predict(picture, box, view=found.view)
    assert engine.seen == 3 and alone.mask[190:210, 190:210].all(), "a view that is given is the only one"


def test_a_point_that_excludes_what_a_view_does_not_show_is_not_told_to_it():
    engine, picture = ManyViews(3.0, 3.0, 3.0), textured(400, 400)
    near, far = (210, 180, 0), (20, 20, 0)
    box = np.float32([180, 180, 219, 219])
    found = Predictor(engine).predict(picture, PlanePrompts(*points((200, 200, 1), near, far), box=box))
    assert not found.view.contains(np.float32([far[:2]]))
    assert engine.labels == {0: [1, 0, 2, 3]}, "other views would have to hold all points"
    assert not found.mask[20, 20]


@pytest.mark.parametrize("radius", [12, 40, 110])
def test_a_lone_point_looks_at_the_scale_of_its_object(radius):
    picture = np.random.default_rng(0).normal(70, 8, (512, 512))
    y, x = np.mgrid[:512, :512]
    truth = (x - 200) ** 2 + (y - 280) ** 2 <= radius**2
    picture[truth] += 90
    predictor = Predictor(open_engine(Store().get()))
    found = predictor.predict(picture.astype(np.uint8), PlanePrompts(*points((200, 280, 1))))
    assert dice(found.mask, truth) > 0.85


class OneSureView:
    """Answers with a disc in the middle of every view; only in view number `sure` is its outline definite."""

    device, digest, notices = "test", "sure", ()
    spec = replace(TwoDiscs.spec, input_size=32, low_res_size=32, zoom=True, one_piece=False)

    def __init__(self, radius: int, score: float, sure: int):
        self.radius, self.score, self.sure, self.seen = radius, score, sure, 0

    def encode(self, image):
        self.seen += 1
        return {"number": np.full((1, 1), self.seen, np.float32)}

    def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
        rows, columns = np.indices((32, 32))
        steepness = 3.0 if int(embedding["number"][0, 0]) == self.sure else 0.7
        logits = np.float32(steepness * (self.radius - np.hypot(rows - 16, columns - 16)))
        return np.tile(logits, (len(point_coords), 4, 1, 1)), np.full((len(point_coords), 4), self.score, np.float32)


@pytest.mark.parametrize(
    ("radius", "score", "seen", "rows"), [(8, 0.9, 1, 34), (12, 0.9, 2, 256), (8, 0.3, 3, 24)],
    ids=["fits", "large", "unsure"],
)  # fmt: skip
def test_a_lone_point_looks_at_more_views_where_the_answer_of_the_first_is_large_or_unsure(radius, score, seen, rows):
    picture = np.random.default_rng(0).integers(0, 255, (256, 256)).astype(np.uint8)
    engine = OneSureView(radius, score, sure=seen)
    found = Predictor(engine).predict(picture, PlanePrompts(*points((128, 128, 1))))
    assert engine.seen == seen
    assert found.view.rows == pytest.approx(rows, rel=0.1), "the answer is the one whose outline is definite"


def test_a_picture_that_is_looked_at_is_embedded_before_the_click_unless_that_takes_long(monkeypatch):
    picture = np.random.default_rng(0).integers(0, 255, (256, 256)).astype(np.uint8)
    engine = OneSureView(12, 0.9, sure=1)
    predictor = Predictor(engine)
    predictor.prepare(picture)
    assert engine.seen == 1
    predictor.predict(picture, PlanePrompts(*points((128, 128, 1))))
    assert engine.seen == 2, "the whole picture was there already"
    encode, clock = engine.encode, iter(range(0, 100, 10))
    monkeypatch.setattr(engine, "encode", lambda image: (next(clock), encode(image))[1])
    monkeypatch.setattr("SAMFineTuneLib.inference.predictor.time.perf_counter", lambda: next(clock))
    predictor.prepare(picture[::-1].copy())
    predictor.prepare(picture[:, ::-1].copy())
    assert engine.seen == 3, "after an encoding of 20 seconds"


class Readings:
    """Answers with discs around the middle, of given radii, another one for each candidate."""

    device, digest, notices = "test", "readings", ()
    spec = replace(TwoDiscs.spec, ranks_all=True, one_piece=False)

    def __init__(self, *radii: float, score: float = 0.8):
        self.radii, self.score = radii, score

    def encode(self, image):
        return {"image": image}

    def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
        self.given = mask_input[0, 0]
        distance = np.hypot(*(np.indices((64, 64)) - 32))
        logits = np.stack([np.where(distance <= radius, 6.0, -6.0) for radius in self.radii])
        return logits[None].astype(np.float32), np.full((1, 4), self.score, np.float32)


def test_a_lone_points_answer_averages_the_readings_that_are_alike():
    picture, point = np.zeros((64, 64), np.uint8), PlanePrompts(*points((32, 32, 1)))
    engine = Readings(14, 16, 18, 3)
    predictor = Predictor(engine)
    found = predictor.predict(picture, point)
    assert found.best == 0 and len(found.masks) == 5
    radius = np.sqrt(found.mask.sum() / np.pi)
    assert 15.5 < radius < 16.5, "neither the part nor the mean of all"
    predictor.predict(picture, PlanePrompts(*points((32, 32, 1), (32, 46, 1))), previous=found)
    assert np.array_equal(engine.given > 0, found.masks[2]), "the model is given back what it said itself"
    untrusted = Predictor(Readings(14, 16, 18, 3, score=-0.1)).predict(picture, point)
    assert any(np.array_equal(untrusted.mask, mask) for mask in untrusted.masks[1:]), "nothing to weigh them by"
    three = Predictor(Readings(14, 14, 14, 18)).predict(picture, point)
    assert np.array_equal(three.mask, three.masks[1])


def test_a_prompt_outside_the_view_widens_it(random_compact):
    predictor = Predictor(open_engine(random_compact))
    picture = textured(400, 500)
    first = predictor.predict(picture, PlanePrompts(*NONE, box=np.float32([200, 200, 230, 230])))
    assert first.view.rows < 160
    near = predictor.predict(picture, PlanePrompts(*points((205, 205, 1), (228, 222, 0))), previous=first)
    assert near.view == first.view
    far = predictor.predict(picture, PlanePrompts(*points((205, 205, 1), (420, 300, 1))), previous=first)
    assert far.view.contains([[205, 205], [420, 300]]) and far.view.rows > first.view.rows


def test_several_points_look_at_the_surroundings_that_they_span(random_compact):
    predictor = Predictor(open_engine(random_compact))
    spread = points((180, 210, 1), (220, 210, 1), (200, 190, 1), (200, 230, 1))
    view = predictor.predict(textured(400, 500), PlanePrompts(*spread)).view
    assert view.contains(spread[0]) and 100 <= view.rows <= 160
    assert predictor.encoder_calls <= 3, "no scale has to be searched for"
    together = PlanePrompts(*points((200, 210, 1), (203, 210, 1)))
    assert predictor.predict(textured(400, 500), together).view.rows >= 120, "they may lie in something large"


@pytest.mark.parametrize("radius, changes", [(30, True), (90, False)])
def test_a_view_that_is_much_too_wide_for_the_answer_is_left(radius, changes):
    picture = np.full((512, 512), 80, np.uint8)
    y, x = np.mgrid[:512, :512]
    picture[(x - 200) ** 2 + (y - 280) ** 2 <= radius**2] = 200
    predictor = Predictor(RegionEngine(zoom=True))
    first = predictor.predict(picture, PlanePrompts(*points((200, 280, 1))), view=View.whole(picture.shape))
    assert first.mask.any()
    then = predictor.predict(picture, PlanePrompts(*points((200, 280, 1), (210, 280, 1))), previous=first)
    assert (then.view != first.view) == changes
    assert then.view.contains(bounding_box(first.mask).reshape(2, 2))
    apart = PlanePrompts(*points((200, 280, 1), (500, 10, 0)))
    assert predictor.predict(picture, apart, previous=then).view == then.view, "nothing is excluded that is not seen"


def test_nothing_outside_the_view_is_ever_in_the_mask(random_compact):
    predictor = Predictor(open_engine(random_compact))
    prediction = predictor.predict(textured(), CASES["one point"], view=View(30, 80, 60, 60))
    outside = np.ones((120, 180), bool)
    outside[30:90, 80:140] = False
    assert not prediction.masks[:, outside].any()


def test_a_mask_alone_is_a_prompt(random_compact):
    predictor = Predictor(open_engine(random_compact))
    mask = np.zeros((120, 180), bool)
    mask[40:80, 90:130] = True
    prediction = predictor.predict(textured(), PlanePrompts(*NONE, mask=mask))
    assert prediction.view.contains(bounding_box(mask).reshape(2, 2)) and prediction.masks.shape[0] == 1


def test_no_prompt_is_refused_with_a_sentence(random_compact):
    with pytest.raises(UserError, match="no prompt on this slice"):
        Predictor(open_engine(random_compact)).predict(textured(), PlanePrompts(*NONE))


@pytest.mark.parametrize("organ", ["liver", "spleen", "left kidney", "aorta", "spinal cord"])
@pytest.mark.parametrize("pixels", [96, 128, 160, 200])
def test_a_point_in_an_organ_of_a_coarse_body_answers_with_that_organ(pixels, organ):
    """The whole of its pictures hardly shows more than the model takes in, but organs are small in it."""
    volume, labels, names = body_phantom(shape=(28, pixels, pixels), spacing=(352 / pixels, 352 / pixels, 5.0))
    value = next(value for value, name in names.items() if name == organ)
    plane = aligned_plane(volume, "axial", int((labels == value).sum(axis=(1, 2)).argmax()))
    truth = extract_labels(labels, volume, plane) == value
    point = PlanePrompts(interior_points(truth), np.ones(1, np.int64))
    answer = Predictor(open_engine(Store().get())).predict(picture(volume, plane, choose_window(volume, None)), point)
    assert dice(answer.mask, truth) > 0.85


@pytest.mark.parametrize("pixels", [300, 500, 2048])
def test_a_point_in_a_large_picture_is_not_first_looked_for_in_the_whole(pixels, random_compact, monkeypatch):
    seen = []
    embed = Predictor.embed
    monkeypatch.setattr(Predictor, "embed", lambda self, shown, view: seen.append(view) or embed(self, shown, view))
    shown = np.random.default_rng(0).integers(0, 255, (pixels, pixels), np.uint8)
    Predictor(open_engine(random_compact)).predict(shown, PlanePrompts(np.float32([[150, 150]]), np.ones(1, np.int64)))
    assert 128 <= seen[0].rows <= 300 and seen[0].rows < pixels
