"""The report: its figures are those of the files, it opens offline, and it names nobody."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from case_files import AFFINE, blob
from small_cohorts import propose_labels, small_cohort, truth

from SAMFineTuneLib.cohort.cohort_report import write_report
from SAMFineTuneLib.cohort.cohort_state import TrainedAdapter
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.metrics.mask_metrics import dice, surface_distances

ADAPTERS = (
    TrainedAdapter(1, ("x",) * 4, ("y",) * 2, "base", {"blob": 0.7}, {}, None, True, "The first one.", "2026-01-02"),
    TrainedAdapter(2, ("x",) * 8, ("y",) * 2, "adapter 1", {"blob": 0.6}, {"blob": 0.7}, (-0.2, 0.05), False,
                   "It is <worse>.", "2026-02-03"),
)  # fmt: skip


def page(cohort, folder):
    path = write_report(cohort, folder)
    text = path.read_text(encoding="utf-8")
    return text, re.search(r"class='headline'>(.*?)</p>", text)[1]


def test_the_learning_curve(tmp_path):
    cohort = small_cohort(tmp_path, count=12)
    shifted = [np.roll(truth(number), max(0, 6 - number), axis=2) for number in range(12)]
    for number, case in enumerate(cohort.state.cases):
        if number:
            propose_labels(cohort, case.key, shifted[number])
        accept(cohort, case.key, truth(number), seconds=100 - 5 * number, prompts=20 - number)
    cohort.change(lambda state: replace(state, adapters=ADAPTERS))
    text, headline = page(cohort, tmp_path / "report")
    expected = [dice(shifted[number] > 0, truth(number) > 0) for number in range(1, 12)]
    assert f"{np.mean(expected[-5:]):.2f} with what was accepted" in headline
    assert f"{np.mean(expected[-5:]) - np.mean(expected[:5]):.2f} more than the first 5" in headline
    assert "The last 5 cases took 11 prompts each, the first 5 took 18." in headline
    outlines = sum(int(truth(number).any(axis=(1, 2)).sum()) for number in range(12))
    assert f"their {outlines} outlines" in headline and "30 s each, an assumption" in headline

    rows = list(csv.DictReader((tmp_path / "report" / "cases.csv").open(encoding="utf-8")))
    assert [row["case"] for row in rows] == [case.key for case in cohort.state.accepted]
    assert rows[0]["Dice"] == "" and [float(row["Dice"]) for row in rows[1:]] == pytest.approx(expected, abs=1e-4)
    spacing = np.abs(np.diag(AFFINE))[2::-1]
    distance = np.concatenate(surface_distances(shifted[1] > 0, truth(1) > 0, spacing)).mean()
    assert float(rows[1]["surface distance (mm)"]) == pytest.approx(distance, abs=1e-3)

    HTMLParser().feed(text)
    assert text.count("<svg") == 4 and text.count("data:image/png") == 3
    assert "It is &lt;worse&gt;." in text and "-0.100 (-0.200 to +0.050)" in text
    assert not re.search(r"(src|href)=.(?!data:)", text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert str(tmp_path) not in text and ".nii" not in text


def test_what_was_not_measured_is_not_told(tmp_path):
    cohort = small_cohort(tmp_path, labelled=2)
    text, headline = page(cohort, tmp_path / "report")
    assert headline == "2 cases are accepted; none had been proposed by an adapter, so nothing can be said about " \
                       "proposals yet."  # fmt: skip
    assert "No working time was measured." in text and "<svg" not in text
    assert "Distance" not in text and "held out" not in text
    propose_labels(cohort, "c", blob())
    accept(cohort, "c", truth(2))
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    text, headline = page(cohort, tmp_path / "report")  # an earlier report is replaced
    assert "3 cases are accepted, 1 of which was proposed" in headline and "data:image/png" not in text
    knew = TrainedAdapter(1, (cohort.state.case("c").key,), (), "base", {}, {}, None, True, "", "2026-01-01")
    cohort.change(lambda state: replace(state, adapters=(knew,)))
    assert "none had been proposed" in page(cohort, tmp_path / "report")[1]
    cohort.change(lambda state: replace(state, adapters=()))
    assert "1 of which was proposed" in page(cohort, tmp_path / "report")[1]
    (cohort.proposal(cohort.state.case("c").key) / "labels.nii.gz").write_bytes(b"half")
    assert "none had been proposed" in page(cohort, tmp_path / "report")[1]


def test_nothing_accepted_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        write_report(small_cohort(tmp_path), tmp_path / "report")
    assert not (tmp_path / "report").exists()
