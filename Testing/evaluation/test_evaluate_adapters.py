"""Adapters beside their base: compared patient by patient, with and without prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from case_files import case_folder
from tuned_models import shake

from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cli import main
from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.store import Store


@pytest.fixture
def cases(tmp_path):
    return case_folder(tmp_path / "cases", count=3, shape=(4, 40, 40))


def make_adapter(folder: Path, taught: tuple[str, ...] = ()) -> Path:
    base, method = Store().get("compact"), Method("lora", "encoder+decoder")
    network = attach(load_network(base.file("weights"))[1], base.spec, method)
    shake(network, 1, 0.01)
    save_adapter(folder, network, base, method, Card(labels=("label 1",), cases=taught))
    return folder


def test_an_adapter_and_its_base(cases, tmp_path, capsys):
    adapter = make_adapter(tmp_path / "pupil", (find_cases(cases)[0].digest,))
    words = ["evaluate", cases, "-o", tmp_path / "out", "--model", "compact", "--adapter", adapter, "--slices", 1,
             "--protocol", "S5,3d,automatic", "--rounds", 0, "--baseline", "none", "--jobs", 1]  # fmt: skip
    assert main.main(list(map(str, words))) == 0
    out = capsys.readouterr().out
    assert "cases       2, of 2 patients" in out and "compact + pupil learned from 1 of the patients" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["kind"] for one in summary["contestants"]] == ["model", "adapter"]
    tables = {table["name"]: table["rows"] for table in summary["tables"]}
    assert [row[0] for row in tables["prompts"]] == ["compact", "compact + pupil"]
    assert [row[:2] for row in tables["paired"]] == [["compact + pupil", "S5"]]
    assert tables["paired"][0][2]["patients"] == 2
    assert [row[0] for row in tables["volumes"]] == ["compact", "compact + pupil"] * 2
