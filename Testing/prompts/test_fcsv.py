"""Point lists of older Slicers: written by Slicer's own class, and by hand in older layouts."""

from __future__ import annotations

import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.prompts import PointPrompt, read_prompts

HEAD = "# Markups fiducial file version = 4.10\n# CoordinateSystem = {}\n"
COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"


def prompts_of(path):
    (segment,) = read_prompts(path).segments
    return segment.name, segment.prompts


def test_what_slicer_writes_is_read_back_with_names_signs_and_without_unplaced_points(tmp_path):
    slicer = pytest.importorskip("slicer")
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "liver")
    for ras in ((1.5, -2.0, 3.25), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0)):
        node.AddControlPoint(*ras)
    node.SetNthControlPointDescription(0, 'negative, "beside" it')
    node.UnsetNthControlPointPosition(1)
    storage = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialStorageNode")
    storage.SetFileName(str(tmp_path / "Liver_points.FCSV"))
    assert storage.WriteData(node)
    name, prompts = prompts_of(tmp_path / "Liver_points.FCSV")
    assert name == "Liver"
    assert prompts == (PointPrompt((1.5, -2.0, 3.25), False), PointPrompt((7.0, 8.0, 9.0), True))


@pytest.mark.parametrize("system, expected", [("0", (14, 15, 3)), ("RAS", (14, 15, 3)), ("LPS", (-14, -15, 3))])
def test_each_coordinate_system_lands_in_ras(tmp_path, system, expected):
    path = tmp_path / "a.fcsv"
    path.write_text(HEAD.format(system) + COLUMNS + "vtkMRMLMarkupsFiducialNode_0,14,15,3,0,0,0,1,1,1,0,F-1,,\n")
    assert prompts_of(path) == ("a", (PointPrompt(expected),))


def test_the_first_point_lists_and_labels_in_an_old_code_page_are_read(tmp_path):
    path = tmp_path / "tumour_neg.fcsv"
    text = "# Fiducial List file x\r\n# columns = label,x,y,z,sel,vis\r\nGröße,1,2,3,1,1\r\n\r\n+,4,5,6,1,1\r\n"
    path.write_bytes(text.encode("latin-1"))
    assert prompts_of(path) == ("tumour", (PointPrompt((1, 2, 3), False), PointPrompt((4, 5, 6), True)))


@pytest.mark.parametrize(
    "text, says",
    [
        (HEAD.format("2") + COLUMNS + "1,1,2,3\n", "coordinate system 2"),
        (HEAD.format("0") + "# columns = id,label\n1,a\n", "no columns x, y and z"),
        (HEAD.format("0") + COLUMNS + "1,1,2\n", "line 4, lacks three numbers"),
        (HEAD.format("0") + COLUMNS + "1,1,nan,2\n", "line 4, lacks three numbers"),
        (HEAD.format("0") + COLUMNS, "no placed points"),
        ("", "no placed points"),
    ],
)
def test_other_files_get_a_sentence(tmp_path, text, says):
    path = tmp_path / "a.fcsv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_prompts(path)
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "b.fcsv")
