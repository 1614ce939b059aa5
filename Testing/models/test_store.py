"""The store on disk: what is where, and that models come and go whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.spec import ModelSpec, read_model_folder
from SAMFineTuneLib.models.store import Store


def spec(model_id="mine", **fields):
    return ModelSpec(id=model_id, name="Mine", architecture="sam_vit_b", files={"weights": "weights.pth"}, **fields)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store whose bundled models are a folder of the test's own, with the model `compact` in it."""
    resources = tmp_path / "resources"
    monkeypatch.setattr("SAMFineTuneLib.models.store.resources", lambda: resources)
    bundled = tmp_path / "bundled.onnx"
    bundled.write_bytes(b"onnx")
    factory = Store(resources / "models")
    factory.add(ModelSpec(id="compact", name="Compact", architecture="compact", files={"encoder": "encoder.onnx"}),
                {"encoder.onnx": bundled})
    return Store(tmp_path / "models")


def visible_and_hidden(folder: Path):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_folder_is_the_argument_or_the_variable_or_the_users_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SAMFINETUNE_MODELS", raising=False)
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    assert Store().folder == tmp_path / "home" / "models"
    monkeypatch.setenv("SAMFINETUNE_MODELS", str(tmp_path / "shared"))
    assert Store().folder == tmp_path / "shared"
    assert Store(tmp_path / "own").folder == tmp_path / "own"


def test_reading_a_store_creates_nothing(store):
    assert [model.spec.id for model in store.list()] == ["compact"]
    assert not store.folder.exists()


def test_an_added_model_is_a_copy_with_its_digest_and_the_users_file_stays(store, weights):
    model = store.add(spec(), {"weights.pth": weights})
    assert model.path == store.folder / "mine"
    assert model.spec.sha256 == {"weights.pth": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert model.file("weights").read_bytes() == weights.read_bytes()
    store.get("mine").verify()
    assert [item.spec.id for item in store.list()] == ["compact", "mine"]
    assert visible_and_hidden(store.folder) == ["mine"]


def test_a_file_can_be_written_or_moved_into_place(store, weights):
    content = weights.read_bytes()
    store.add(spec(), {"weights.pth": weights.rename, "notes.txt": lambda target: target.write_text("notes")})
    assert not weights.exists() and store.get("mine").file("weights").read_bytes() == content
    assert store.get("mine").spec.sha256["notes.txt"] == hashlib.sha256(b"notes").hexdigest()


def test_the_default_model_is_the_bundled_one(store):
    assert store.get().spec.id == "compact"
    assert store.is_bundled(store.get()) is True


def test_a_bundled_model_is_neither_replaced_nor_removed(store, weights):
    with pytest.raises(UserError, match="There is a model 'compact' already"):
        store.add(spec("compact"), {"weights.pth": weights})
    with pytest.raises(UserError, match="ships with SAMFineTune and cannot be removed"):
        store.remove("compact")
    assert store.get("compact").has("encoder")


def test_a_second_model_of_the_same_id_is_refused_and_the_first_stays(store, weights, tmp_path):
    store.add(spec(), {"weights.pth": weights})
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    with pytest.raises(UserError, match="There is a model 'mine' already.*--id"):
        store.add(spec(), {"weights.pth": other})
    store.get("mine").verify()


def test_a_removed_model_is_gone(store, weights):
    store.add(spec(), {"weights.pth": weights})
    store.remove("mine")
    assert visible_and_hidden(store.folder) == []
    with pytest.raises(UserError, match="No model 'mine'"):
        store.remove("mine")


@pytest.mark.parametrize("model_id", ["", ".", "..", "../outside", "a/b", ".hidden"])
def test_only_models_can_be_removed_or_opened(store, weights, model_id, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.json").write_text("{}")
    store.add(spec(), {"weights.pth": weights})
    with pytest.raises(UserError):
        store.remove(model_id)
    with pytest.raises(UserError):
        store.get(model_id)
    assert (outside / "model.json").exists() and store.get("mine")


def test_a_folder_that_is_no_model_is_not_removed(store):
    (store.folder / "holiday").mkdir(parents=True)
    (store.folder / "holiday" / "picture.png").write_bytes(b"png")
    with pytest.raises(UserError, match="No model 'holiday'"):
        store.remove("holiday")
    assert (store.folder / "holiday" / "picture.png").exists()


def test_an_add_that_fails_leaves_nothing(store, tmp_path):
    with pytest.raises(UserError, match="cannot be changed"):
        store.add(spec(), {"weights.pth": tmp_path / "not there.pth"})
    assert visible_and_hidden(store.folder) == []


def test_a_store_that_cannot_be_made_is_one_sentence(store, weights, tmp_path):
    (tmp_path / "in the way").write_text("a file")
    with pytest.raises(UserError, match="part of its path is a file.*SAMFINETUNE_MODELS"):
        Store(tmp_path / "in the way" / "models").add(spec(), {"weights.pth": weights})


def test_a_full_disk_is_named_whichever_library_writes(store):
    def as_safetensors_does(target):
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(UserError, match="^The disk is full, .*SAMFINETUNE_MODELS") as refused:
        store.add(spec(), {"weights.safetensors": as_safetensors_does})
    assert "serializing" not in str(refused.value) and visible_and_hidden(store.folder) == []


def test_a_damaged_model_does_not_hide_the_others_and_can_be_removed(store, weights):
    store.add(spec("good"), {"weights.pth": weights})
    store.add(spec("bad"), {"weights.pth": weights})
    (store.folder / "bad" / "model.json").write_text("{")
    assert [model.spec.id for model in store.list()] == ["compact", "good"]
    assert len(store.problems()) == 1 and "bad" in store.problems()[0]
    with pytest.raises(UserError, match="import the model again"):
        store.get("bad")
    store.remove("bad")
    assert store.problems() == []


def test_a_published_model_that_is_not_here_says_how_to_get_it(store):
    with pytest.raises(UserError, match="samfinetune models download sam-vit-b"):
        store.get("sam-vit-b")
    with pytest.raises(UserError, match="import the file lite_medsam.pth"):
        store.get("lite-medsam")
    with pytest.raises(UserError, match="no model 'nonsense'; the models on this computer are compact"):
        store.get("nonsense")


def test_a_killed_add_leaves_no_model_and_its_remains_are_swept(store, weights, root):
    store.add(spec("first"), {"weights.pth": weights})
    code = (
        "import time, shutil\n"
        "from SAMFineTuneLib.models.spec import ModelSpec\n"
        "from SAMFineTuneLib.models.store import Store\n"
        "copy = shutil.copyfile\n"
        "def slow(source, target):\n"
        "    copy(source, target); print('copied', flush=True); time.sleep(60)\n"
        "shutil.copyfile = slow\n"
        f"Store({str(store.folder)!r}).add(ModelSpec(id='mine', name='', architecture='sam_vit_b', "
        f"files={{'weights': 'weights.pth'}}), {{'weights.pth': {str(weights)!r}}})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "copied\n"
        process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    assert [model.spec.id for model in store.list()] == ["compact", "first"] and store.problems() == []

    store.add(spec("second"), {"weights.pth": weights})
    [remains] = store.folder.glob(".*.partial-*")  # too young to be swept: it could be another process at work
    long_ago = time.time() - 7 * 24 * 3600
    for path in (*remains.rglob("*"), remains):
        os.utime(path, (long_ago, long_ago))
    store.add(spec("mine"), {"weights.pth": weights})
    assert visible_and_hidden(store.folder) == ["first", "mine", "second"]


def test_the_models_that_ship_are_whole(root):
    for folder in (root / "Resources" / "models").iterdir():
        if folder.is_dir():
            model = read_model_folder(folder)
            model.verify()
            assert model.spec.id == folder.name
