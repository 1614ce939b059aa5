"""Adapters at work: engines, cache, session and worker, in PyTorch and as ONNX graphs; all give the same masks."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from region_engine import phantom

pytest.importorskip("torch")
pytest.importorskip("peft")

from in_process import InProcess
from tuned_models import CLASSES, shake

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import aligned_plane, choose_window, picture
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.engine import embedding_digest, open_engine
from SAMFineTuneLib.inference.expected_iou import expected_iou
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
from SAMFineTuneLib.models.adapters.merged_export import export_adapter
from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import BoxPrompt, PlanePrompts, PointPrompt
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.open_models import Engines
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.session.events import Answered, Failed, MaskChanged
from SAMFineTuneLib.session.session import Session

BASE = Store().get("compact")


def make(folder, method: Method, seed: int = 1) -> None:
    """An adapter of the bundled model, changed a little: what stands for training must leave masks that are some."""
    network = attach(load_network(BASE.file("weights"))[1], BASE.spec, method)
    shake(network, seed, 0.02)
    save_adapter(folder, network, BASE, method, Card(labels=CLASSES[1:]))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> AdapterStore:
    """Adapters that train the decoder, the encoder too, and one by whole weights; `onnx-...` are exported."""
    folder = tmp_path_factory.mktemp("home") / "adapters"
    heads = {"heads": ("promptable", "automatic"), "classes": CLASSES}
    for name, method in {
        "decoder": Method(scope="decoder", **heads),
        "both": Method(**heads),
        "bottlenecks": Method("adapter", **heads),
        "vanilla": Method("vanilla", "decoder", **heads),
        "only-automatic": Method(heads=("automatic",), classes=CLASSES),
    }.items():
        make(folder / name, method)
    store = AdapterStore(folder)
    for name in ("decoder", "both", "bottlenecks"):
        export_adapter(store.add(folder / name, f"onnx-{name}"), BASE)
    return store


@pytest.fixture(scope="module")
def scan():
    volume, _ = phantom()
    plane = aligned_plane(volume, "axial", 11)
    return volume, plane, picture(volume, plane, choose_window(volume, None))


def open_one(store, name):
    return open_engine(BASE, "cpu", adapter=store.get(name) if name else None)


PROMPTS = (
    PlanePrompts(np.float32([[44, 36]]), np.array([1])),
    PlanePrompts(np.float32([[44, 36], [14, 16]]), np.array([1, 0])),
    PlanePrompts(box=np.float32([33, 25, 55, 47])),
)


def masks(engine, scan):
    predictor = Predictor(engine, EmbeddingCache())
    answers = [predictor.predict(scan[2], prompts) for prompts in PROMPTS]
    return [*(answer.mask for answer in answers), predictor.class_logits(scan[2]).argmax(0)]


def disagreement(a, b):
    return max(float((one != other).mean()) for one, other in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["decoder", "both", "bottlenecks"])
def test_pytorch_and_onnx_give_the_same_masks(store, scan, name):
    torch_engine, onnx_engine = open_one(store, name), open_one(store, f"onnx-{name}")
    assert "PyTorch" in torch_engine.device and "ONNX" in onnx_engine.device
    expected = masks(torch_engine, scan)
    assert disagreement(masks(onnx_engine, scan), expected) < 1e-3
    assert all(mask.any() for mask in expected[:3])
    embedding = torch_engine.encode(prepared(scan[2]))
    logits, others = (engine.decode_classes(embedding) for engine in (torch_engine, onnx_engine))
    assert logits.shape == (1, 3, 64, 64) and np.abs(logits - others).max() < 1e-3 * logits.std()
    ours, exported, base = (box_logits(engine, scan) for engine in (torch_engine, onnx_engine, open_one(store, None)))
    assert np.abs(ours - base).mean() > 10 * np.abs(ours - exported).mean(), "it is the adapter that both run"


def box_logits(engine, scan):
    return Predictor(engine, EmbeddingCache()).predict(scan[2], PROMPTS[2]).low_res


@pytest.mark.parametrize("kind, prompts", [("point", PROMPTS[0]), ("clicks", PROMPTS[1]), ("box", PROMPTS[2])])
def test_what_an_adapter_predicts_is_calibrated_as_its_base_is(store, scan, kind, prompts):
    answers = [Predictor(open_one(store, name), EmbeddingCache()).predict(scan[2], prompts) for name in
               ("decoder", "onnx-decoder")]  # fmt: skip
    for one in answers:
        told = expected_iou(BASE.spec.calibration, kind, one.score, one.low_res, one.agreement)
        assert one.expected_iou == pytest.approx(told) and one.expected_iou != pytest.approx(one.score)
    assert answers[0].expected_iou == pytest.approx(answers[1].expected_iou, abs=0.01)


def test_an_adapter_of_the_decoder_keeps_its_bases_embeddings(store, scan):
    for prefix, engine in (("", "torch"), ("onnx-", "onnx")):
        base = open_engine(BASE, "cpu", engine=engine)
        decoder, both = open_one(store, f"{prefix}decoder"), open_one(store, f"{prefix}both")
        assert embedding_digest(decoder) == embedding_digest(base) != embedding_digest(both)
        assert len({base.digest, decoder.digest, both.digest}) == 3
        cache = EmbeddingCache()
        computed = []
        for one in (base, decoder, both, decoder, base):
            predictor = Predictor(one, cache)
            embedding, _ = predictor.embed(scan[2])
            computed.append(predictor.encoder_calls)
            fresh = one.encode(prepared(scan[2]))
            assert all(np.allclose(embedding[key], fresh[key], atol=1e-5) for key in fresh)
        assert computed == [1, 0, 1, 0, 0]


def prepared(image):
    from SAMFineTuneLib.models.preprocess import prepare

    return prepare(image, BASE.spec)[0]


def test_two_adapters_never_share_a_digest(store, tmp_path):
    digests = set()
    for seed in (1, 2):
        make(tmp_path / f"{seed}" / "same-name", Method(), seed)
        engine = open_engine(BASE, "cpu", adapter=AdapterStore(tmp_path / f"{seed}").get("same-name"))
        digests |= {engine.digest, embedding_digest(engine)}
    assert len(digests) == 2


def test_a_stale_export_is_not_used(store, tmp_path):
    folder = shutil.copytree(store.get("onnx-both").path, tmp_path / "a" / "mine")
    mine = AdapterStore(tmp_path / "a")
    assert mine.get("mine").exported is not None
    onnx = shutil.copytree(folder / "onnx", tmp_path / "kept")
    make(folder, Method(heads=("automatic",), classes=CLASSES), seed=5)  # trained anew in the same place
    assert mine.get("mine").exported is None
    shutil.copytree(onnx, folder / "onnx")  # put back by hand
    assert mine.get("mine").exported is None
    assert "PyTorch" in open_engine(BASE, "cpu", adapter=mine.get("mine")).device


def test_the_onnx_engine_on_an_adapter_that_was_not_exported(store):
    with pytest.raises(UserError, match="has no ONNX files; export it with `samfinetune adapters export`"):
        open_engine(BASE, "cpu", engine="onnx", adapter=store.get("both"))
    assert "PyTorch" in open_engine(BASE, "cpu", engine="torch", adapter=store.get("onnx-both")).device


def test_an_automatic_adapter_takes_no_prompts(store, scan):
    predictor = Predictor(open_one(store, "only-automatic"), EmbeddingCache())
    assert predictor.class_logits(scan[2]).shape[1:] == scan[2].shape
    with pytest.raises(UserError, match="liver, spleen by itself and takes no prompts"):
        predictor.predict(scan[2], PROMPTS[0])
    with pytest.raises(UserError, match="finds nothing without prompts"):
        Predictor(open_engine(BASE, "cpu")).class_logits(scan[2])


def placed(volume):
    """A point in the ball and a box around it, in RAS."""
    corners = (volume.ijk_to_ras((33, 25, 11)), volume.ijk_to_ras((55, 47, 11)))
    return PointPrompt(tuple(volume.ijk_to_ras((44, 36, 11)))), BoxPrompt(*(tuple(corner) for corner in corners))


@pytest.mark.parametrize("name", ["both", "onnx-both", "onnx-decoder"])
def test_swapping_in_a_running_session_takes_less_than_a_second(store, scan, name):
    volume, plane, _ = scan
    session = Session(volume, Predictor(open_one(store, ""), EmbeddingCache()))
    session.add_segment("ball", 1)
    session.add_prompt(1, placed(volume)[1], "axial")
    before = session.mask(1, plane)
    assert before.any()
    session.set_model(Predictor(open_one(store, name), session.predictor.cache), name)
    assert session.adapter == name and (session.mask(1, plane) != before).any()


# ---- the worker


@pytest.fixture
def client(store):
    """A client of a worker in this process whose adapters are those of the store."""
    app = ServerApp("token", engines=Engines(Store(store.folder.parent / "models")))
    client = SessionClient(InProcess(app, "token"))
    yield client
    client.close()
    app.close()


def heard(client, kind, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for event in client.pump():
            if isinstance(event, (kind, Failed)):
                return event
        time.sleep(0.002)
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize("name", ["both", "onnx-both", "decoder"])
def test_through_the_worker_masks_are_the_same(store, scan, client, name):
    volume, plane, _ = scan
    window = choose_window(volume, None)
    client.set_volume(volume, window)
    client.set_model("compact", name, "cpu")
    client.add_segment("ball", 1)
    client.add_prompt(1, placed(volume)[1], "axial")
    told = heard(client, MaskChanged)
    assert isinstance(told, MaskChanged), told
    session = Session(volume, Predictor(open_one(store, name), EmbeddingCache()), window)
    session.add_segment("ball", 1)
    session.add_prompt(1, placed(volume)[1], "axial")
    assert told.mask.any() and np.array_equal(told.mask, session.mask(1, plane))


def test_the_worker_lists_adapters_and_names_what_is_wrong(store, scan, client, tmp_path):
    client.ask("adapters")
    rows = {row["id"]: row for row in heard(client, Answered).value}
    assert set(rows) == {adapter.name for adapter in store.list()}
    assert rows["both"]["model"] == "compact" and rows["both"]["needs_torch"] and not rows["onnx-both"]["needs_torch"]
    assert rows["only-automatic"]["promptable"] is False and rows["both"]["labels"] == list(CLASSES[1:])
    client.set_volume(scan[0], choose_window(scan[0], None))
    client.set_model("compact", "nowhere", "cpu")
    failed = heard(client, Failed)
    assert "There is no adapter 'nowhere'" in failed.text


def test_an_adapter_that_was_trained_anew_is_opened_anew(store, tmp_path):
    engines = Engines(Store(tmp_path / "models"))
    make(tmp_path / "adapters" / "mine", Method(), 1)
    first = engines.predictor("compact", "mine", "cpu")
    assert engines.predictor("compact", "mine", "cpu").engine is first.engine
    make(tmp_path / "adapters" / "mine", Method(), 2)
    second = engines.predictor("compact", "mine", "cpu")
    assert second.engine is not first.engine and second.engine.digest != first.engine.digest
