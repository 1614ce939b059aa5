"""The models of the worker, a worker that does not start, and a server instead of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from desktop import PATIENCE
from test_clicks import KIDNEY, LIVER, Work


@pytest.fixture
def work(desktop):
    return Work(desktop, aligned=True)


def test_the_models_of_the_worker_are_listed(work):
    work.box_round()
    ui = work.panel.model.ui
    work.desktop.wait(lambda: ui.modelSelector.count > 3)
    assert ui.modelSelector.currentText.endswith("(bundled)") and ui.modelSelector.currentIndex == 0
    assert "licence" in ui.modelLabel.text.lower()
    work.desktop.wait(lambda: "Prepared slices take" in ui.cacheLabel.text)


def test_a_graphics_card_that_is_not_there_is_taken_back_and_the_advice_is_for_slicer(work):
    from SAMFineTunePanels.qt_helpers import choose_in, read_setting, write_setting

    work.box_round()
    devices = work.panel.model.ui.deviceSelector
    choose_in(devices, "cuda")
    devices.activated.emit(devices.currentIndex)
    work.desktop.wait(lambda: devices.currentText == "Automatic")
    assert "extension PyTorch" in work.desktop.messages()[-1] and "pip" not in " ".join(work.desktop.messages())
    assert read_setting("Device") == work.session.device == "auto"
    work.panel.starter.kill()  # it starts again with the model that had answered
    work.panel.segments.add()
    work.box_round(LIVER)
    assert len(work.desktop.messages()) < 3 and work.voxels().any()
    write_setting("Device", "cuda")  # as left by a computer that had one
    choose_in(devices, "cuda")
    work.panel._server_changed()
    work.desktop.wait(lambda: devices.currentText == "Automatic")
    work.desktop.wait(lambda: work.panel.host.ready and work.panel.host.status.model == "compact")


def test_a_download_is_asked_for_with_size_and_licence(work, monkeypatch):
    from SAMFineTunePanels import model_settings

    work.box_round()
    ui = work.panel.model.ui
    work.desktop.wait(lambda: ui.modelSelector.count > 3)
    row = next(n for n, one in enumerate(work.panel.model._rows.values()) if one["where"] == "download")
    ui.modelSelector.setCurrentIndex(row)
    ui.modelSelector.activated.emit(row)
    asked = []
    monkeypatch.setattr(model_settings, "confirmed", lambda text, button: asked.append(text))
    work.desktop.wait(lambda: ui.downloadButton.enabled)
    ui.downloadButton.click()
    assert "Licence" in asked[0] and "MB" in asked[0] or "GB" in asked[0]
    assert not work.panel.host.jobs
    assert work.panel.model.model_id == "compact"


def test_a_file_that_is_no_model_is_a_sentence(work, tmp_path):
    work.box_round()
    path = tmp_path / "holiday.pth"
    path.write_bytes(b"not a checkpoint")
    work.panel.model.import_path(str(path))
    work.desktop.wait(lambda: any("holiday" in text and not text.startswith("Importing") for text in
                                  work.desktop.messages()))  # fmt: skip


def test_preparing_the_volume_and_clearing_the_cache(work):
    work.box_round()
    ui = work.panel.model.ui
    work.desktop.wait(lambda: ui.embedButton.enabled)
    ui.embedButton.click()
    work.desktop.wait(lambda: None in work.panel.host.jobs)
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.desktop.wait(lambda: "MB" in ui.cacheLabel.text or "kB" in ui.cacheLabel.text)
    ui.clearCacheButton.click()
    work.desktop.wait(lambda: any("freed" in text for text in work.desktop.messages()))


def test_a_worker_that_cannot_start_is_a_sentence_and_can_be_tried_again(desktop, monkeypatch):
    executable = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    work = Work(desktop)
    ui = work.panel.status.ui
    desktop.wait(lambda: not ui.retryButton.isHidden())
    desktop.wait(lambda: "/nowhere/python" in ui.messageText.plainText)
    work.click("Red", work.middle_of(KIDNEY))
    desktop.wait(lambda: len(work.session.prompts) == 1)
    work.panel.host.client._connection._executable = executable
    ui.retryButton.click()
    work.wait_for_voxels()  # the click that waited is answered
    desktop.wait(lambda: ui.retryButton.isHidden())


@pytest.fixture
def server(tmp_path):
    """(address, token) of a server of its own."""
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough-for-this\n")
    handshake = tmp_path / "handshake.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "SAMFineTuneLib.cli", "serve", "--host", "127.0.0.1", "--port", "0",
         "--token-file", str(token), "--handshake", str(handshake)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + PATIENCE
    while not handshake.exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    yield f"http://127.0.0.1:{json.loads(handshake.read_text())['port']}", token.read_text().strip()
    process.kill()
    process.wait()


def enter(work, address, token):
    ui = work.panel.server.ui
    ui.remoteButton.checked = True
    ui.addressEdit.text, ui.tokenEdit.text = address, token
    return ui


def answer_of_test(work):
    label = work.panel.server.ui.serverLabel
    work.panel.server.ui.testButton.click()
    work.desktop.wait(lambda: label.text not in ("", "Asking the server…"))
    return label.text


def test_the_connection_is_tested(work, server):
    enter(work, *server)
    assert "answers" in answer_of_test(work)


def test_a_wrong_token_and_no_server_are_sentences(work, server):
    ui = enter(work, server[0], "wrong")
    assert "token" in answer_of_test(work)
    ui.addressEdit.text = "http://127.0.0.1:9"
    assert "127.0.0.1:9" in answer_of_test(work)
    ui.addressEdit.text = "not an address at all"
    assert answer_of_test(work)
    ui.applyButton.click()
    assert not work.panel.server.remote


def test_work_goes_on_on_the_server_and_the_token_is_kept_only_when_asked(work, server):
    from SAMFineTunePanels.qt_helpers import read_setting

    work.box_round()
    kept = work.voxels()
    ui = enter(work, *server)
    ui.applyButton.click()
    assert work.panel.server.remote and work.panel.starter is None
    assert read_setting("ServerToken") == "" and read_setting("ServerAddress") == server[0]
    work.desktop.wait(lambda: work.session.prompts)
    work.rest()
    assert (work.voxels() == kept).all()
    work.panel.prompts.choose("negative")
    work.click("Red", work.middle_of(LIVER))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    work.rest()
    ui.keepTokenBox.checked = True
    ui.applyButton.click()
    assert read_setting("ServerToken") == server[1]
    ui.keepTokenBox.checked = False
    assert read_setting("ServerToken") == ""
