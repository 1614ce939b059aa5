"""`samfinetune segment --server`: another computer's model, the same prompts and results."""

from __future__ import annotations

import json
import threading
import time

import nibabel
import numpy as np
import pytest

from SAMFineTuneLib.prompts import PointPrompt, PromptSet, SegmentPrompts, write_prompts
from SAMFineTuneLib.service.link import HttpLink
from SAMFineTuneLib.service.server import WorkerServer
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.service.server_session import ServerSession

TOKEN = "a token for tests"


@pytest.fixture
def server(samfinetune, tmp_path, monkeypatch):
    """A server with the bundled model; gives the options that reach it."""
    server = WorkerServer(ServerApp(TOKEN))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    (tmp_path / "token.txt").write_text(TOKEN + "\n")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def options(server):
    return "--server", f"http://127.0.0.1:{server.server_port}", "--token-file", "token.txt"


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_it_gives_what_this_computer_would(samfinetune, phantom, options, server):
    prompts = ("segment", phantom.folder, "--space", "ijk", "--box", phantom.box("liver"), "--propagate", "up")
    here = samfinetune(*prompts, "-o", "here.nii.gz", "--picture", "here.png")
    there = samfinetune(*prompts, "-o", "there.nii.gz", "--picture", "there.png", *options)
    assert (here.code, there.code) == (0, 0), there.err
    assert voxels("here.nii.gz").any() and np.array_equal(voxels("here.nii.gz"), voxels("there.nii.gz"))
    segments = [[line for line in said.splitlines() if line.startswith("segment ")] for said in (here.out, there.out)]
    assert segments[0] == segments[1] and "of http://127.0.0.1" in there.out
    end = time.monotonic() + 10
    while server.app.sessions and time.monotonic() < end:
        time.sleep(0.01)
    assert server.app.sessions == 0, "the server forgets the volume"


def test_several_segments_of_a_prompts_file_and_json(samfinetune, phantom, options, tmp_path):
    def inside(name):
        k = phantom.slice_of(name)
        j, i = np.argwhere(phantom.labels[k] == phantom.values[name]).mean(axis=0).round()
        return PointPrompt(tuple(phantom.volume.ijk_to_ras((i, j, k))))

    names = ("liver", "spleen")
    prompts = PromptSet(tuple(SegmentPrompts(name, n, prompts=(inside(name),)) for n, name in enumerate(names, 1)))
    write_prompts(tmp_path / "organs.json", prompts)
    command = ("segment", phantom.folder, "--prompts", "organs.json", "--json", "-o")
    told = [json.loads(samfinetune(*command, f"{n}.nii.gz", *more).out) for n, more in enumerate(((), options))]
    assert [row["segment"] for row in told[1]["segments"]] == list(names)
    assert told[0]["segments"] == told[1]["segments"] and told[1]["model"] == "compact"
    assert np.array_equal(voxels("0.nii.gz"), voxels("1.nii.gz"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--adapter", "liver"], "The server has no adapter “liver”"),
        (["--model", "none"], "There is no model"),
        (["--no-cache"], "leave out --precision and --no-cache"),
        (["--token-file", "none.txt"], "token file none.txt cannot be read"),
        (["--server", "https://u:p@gpu"], "server address"),
        (["--auto"], "--auto needs --adapter"),
    ],
)
def test_what_the_server_cannot_do_is_a_sentence_and_nothing_is_written(
    samfinetune, phantom, options, tmp_path, given, says
):
    prompts = [] if "--auto" in given else ["--space", "ijk", "--box", phantom.box("liver")]
    result = samfinetune("segment", phantom.folder, "-o", "out.nii.gz", *prompts, *options, *given)
    assert result.code == 2 and says in result.err and result.err.strip().splitlines()[-1].endswith(".")
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_token_is_asked_for_and_taken_from_the_environment(samfinetune, phantom, options, monkeypatch):
    command = ("segment", phantom.folder, "-o", "out.nii.gz", "--space", "ijk", "--box", phantom.box("liver"))
    assert "SAMFINETUNE_TOKEN" in samfinetune(*command, *options[:2]).err
    monkeypatch.setenv("SAMFINETUNE_TOKEN", "wrong")
    assert "does not accept this token" in samfinetune(*command, *options[:2]).err
    monkeypatch.setenv("SAMFINETUNE_TOKEN", TOKEN)
    assert samfinetune(*command, *options[:2]).code == 0


def test_a_server_that_stops_answering_is_told_while_it_is_tried_again(samfinetune, phantom, options, monkeypatch):
    connect, step = ServerSession.connect, HttpLink.step
    breaks = iter([OSError("the line is cut")])

    def broken_once(link, wait):
        for error in breaks:
            raise error
        return step(link, wait)

    def then_cut(session):
        status = connect(session)
        monkeypatch.setattr(HttpLink, "step", broken_once)
        return status

    monkeypatch.setattr(ServerSession, "connect", then_cut)
    box = ("--space", "ijk", "--box", phantom.box("liver"))
    done = samfinetune("segment", phantom.folder, *box, "-o", "out.nii.gz", *options)
    assert done.code == 0 and done.err.count("does not answer and is tried again") == 1, done.err
