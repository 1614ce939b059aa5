"""A kind of prompt that is defined in a test alone goes through files, wire, session and tools."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from region_engine import WINDOW, phantom, region_predictor
from stored_sessions import restored
from wedge_prompt import WedgePrompt, wedges  # noqa: F401

from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.prompts import (
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
    read_markups,
    read_prompts,
    write_markups,
    write_prompts,
)
from SAMFineTuneLib.prompts.prompt_kind import KINDS, drawn_prompt, markers, prompt_kind, tools
from SAMFineTuneLib.service import wire
from SAMFineTuneLib.session.intents import AddPrompt
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import session_to_dict

CORNERS = ((1.0, 2.0, 3.0), (4.0, 5.0, 3.0), (7.0, 2.5, 3.0))


def test_files_and_wire_hold_a_new_kind(wedges, tmp_path):  # noqa: F811
    prompts = PromptSet((SegmentPrompts("liver", 1, None, (WedgePrompt(CORNERS),)),))
    write_prompts(tmp_path / "own.json", prompts)
    assert read_prompts(tmp_path / "own.json") == prompts
    (path,) = write_markups(tmp_path, prompts, phantom()[0])
    assert path.name == "liver_wedge-1.mrk.json"
    (segment,) = read_markups(path).segments
    assert segment.name == "liver" and np.allclose(segment.prompts[0].ras, CORNERS)
    intent = AddPrompt(1, WedgePrompt(CORNERS), "axial", 3)
    assert wire.decode(b"".join(wire.encode(intent)), AddPrompt) == intent


def test_a_session_answers_a_new_kind(wedges):  # noqa: F811
    volume, _ = phantom()
    session = Session(volume, region_predictor(), WINDOW)
    session.add_segment("tube")
    middle = np.array((round(14 + 0.3 * 9), 16, 9))
    corners = [tuple(volume.ijk_to_ras(middle + step)) for step in ((-1, 0, 0), (0, 1, 0), (1, -1, 0))]
    plane = aligned_plane(volume, "axial", 9)
    session.add_prompt(1, drawn_prompt("wedge", plane, corners))
    found = session.mask(1, plane)
    assert found.any()
    again = restored(session_to_dict(session), volume, session.predictor)
    assert np.array_equal(again.mask(1, plane), found)
    session.undo()
    assert session.mask(1, plane) is None


def test_a_panel_gets_the_tools_of_all_kinds(wedges):  # noqa: F811
    assert [tools()[name].gesture for name in ("positive", "box", "scribble-", "lasso+", "wedge")] == [
        "click", "box", "stroke", "loop", "stroke",
    ]  # fmt: skip
    assert len({tool.key for tool in tools().values()}) == len(tools())


def test_a_kind_that_is_not_registered_is_a_type_error(tmp_path):
    assert "wedges" not in KINDS
    for unknown in (WedgePrompt(CORNERS), (1.0, 2.0, 3.0), None):
        with pytest.raises(TypeError, match="not a registered kind of prompt"):
            SegmentPrompts("liver", 1, None, (unknown,))

    @dataclass(frozen=True)
    class Finer(ScribblePrompt):
        pass

    with pytest.raises(TypeError, match="Finer"):
        SegmentPrompts("liver", 1, None, (Finer(CORNERS),))


def test_kinds_do_not_take_names_from_each_other(wedges):  # noqa: F811
    for taken in (WedgePrompt, ScribblePrompt):
        with pytest.raises(ValueError, match="already"):
            prompt_kind(taken)
    assert markers()["box"][0].list_name == "boxes_3d"  # what reads an ROI
