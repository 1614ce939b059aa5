"""Lists of cases are read as spreadsheets write them, and what is not a list is called what it is."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from case_files import blob, case_folder, image_of, save

from SAMFineTuneLib.cases.case_survey import survey
from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cases.labelled_case import LabelChoice
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import (
    SegmentInfo,
    body_phantom,
    list_series,
    read_volume,
    write_dicom_series,
    write_labelmap,
)

ROWS = [("images/a.nii.gz", "labels/a.nii.gz", "p1"), ("images/b.nii.gz", "labels/b.nii.gz", "p2")]


@pytest.fixture
def folder(tmp_path):
    return case_folder(tmp_path, count=2)


def read(folder, data, name="list.csv"):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return [(case.image.name, case.label.parent.name, case.patient) for case in find_cases(folder / name)]


def lines(separator=",", header="image,label,patient", rows=ROWS, end="\n"):
    all_rows = [header.split(",")] * bool(header) + [list(row) for row in rows]
    return end.join(separator.join(row) for row in all_rows) + end


EXPECTED = [("a.nii.gz", "labels", "p1"), ("b.nii.gz", "labels", "p2")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["image,label,patient", "Image,MASK,Patient ID", "Bild,Maske,Patient Ä", ""])
def test_separators_encodings_and_headers(folder, separator, encoding, header):
    assert read(folder, lines(separator, header).encode(encoding)) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        lines(end="\r\n"),
        "\n\n" + lines(header="").replace("\n", "\n\n") + ";;;\n",
        "sep=;\n" + lines(";"),
        lines(";").replace("\n", ";;\n"),
        "\n".join(",".join(f'"{cell}"' for cell in row) for row in ROWS),
        lines(header="").replace(",", " , ").replace("images", " images"),
        lines(header="").replace("/", "\\"),
        "# of last week\n" + lines(),
        "patient,label,age,image\n" + "\n".join(f"{p},{label},61,{image}" for image, label, p in ROWS),
    ],
)
def test_what_spreadsheets_and_people_write(folder, text):
    assert read(folder, text) == EXPECTED


@pytest.mark.parametrize("column", ["PatientAge", "Patient sex", "patient_weight", "Patientenalter"])
def test_what_is_said_about_patients_does_not_name_them(folder, column):
    rows = [(image, label, "50") for image, label, _ in ROWS]
    assert [patient for *_, patient in read(folder, lines(header=f"image,label,{column}", rows=rows))] == ["a", "b"]


def test_a_patient_spelled_in_two_ways_is_one_and_a_missing_one_is_said(folder):
    files = [row[:2] for row in ROWS]
    both = [(*files[0], "p1"), (*files[1], "P1 ")]
    assert [patient for *_, patient in read(folder, lines(rows=both))] == ["p1", "p1"]
    merged = [(*files[0], "p1"), (*files[1], "")]
    assert [patient for *_, patient in read(folder, lines(rows=merged))] == ["p1", "b"]
    assert ["names no patient" in "".join(case.notes) for case in find_cases(folder / "list.csv")] == [False, True]


@pytest.mark.parametrize("name", ["list.tsv", "list.txt", "LIST.CSV"])
def test_endings(folder, name):
    assert read(folder, lines("\t"), name) == EXPECTED


def test_names_with_umlauts_and_separators(tmp_path):
    for place, array in (("images", image_of(blob())), ("labels", blob())):
        save(tmp_path / place / "Köln, 1;a.nrrd", array)
    row = '"images/Köln, 1;a.nrrd"{0}"labels/Köln, 1;a.nrrd"'
    for separator in ",;\t":
        for encoding in ("utf-8", "cp1252", "utf-16"):
            (tmp_path / "list.csv").write_bytes(row.format(separator).encode(encoding))
            assert find_cases(tmp_path / "list.csv")[0].label.exists()


def test_a_first_line_that_may_be_a_header_is_said(folder):
    (folder / "list.csv").write_text("Aufnahme;Umriss\n" + lines(";", header=""))
    cases = find_cases(folder / "list.csv")
    assert "Cases a, b: the first line of “list.csv” (Aufnahme, Umriss) was read as names of columns." in survey(
        cases, LabelChoice()
    ).notes


@pytest.mark.parametrize("column", ["split", "Fold", "SET"])
def test_a_column_that_divides_the_lines_is_said_not_to(folder, column):
    rows = [(*row[:2], part) for row, part in zip(ROWS, ("train", "test"), strict=True)]
    (folder / "list.csv").write_text(lines(header=f"image,label,{column}", rows=rows))
    notes = survey(find_cases(folder / "list.csv"), LabelChoice()).notes
    assert f"Cases a, b: the column “{column}” of “list.csv” is not used: every line counts." in notes[0]


def test_one_file_as_image_and_labels_is_refused(folder):
    rows = [ROWS[0], (ROWS[1][0], f"./{ROWS[1][0]}", "")]
    with pytest.raises(UserError, match="Entry 2 of “list.csv” gives one file as image and as labels"):
        read(folder, lines(rows=rows))


def workbook(folder):
    with zipfile.ZipFile(folder / "list.csv", "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (workbook, "“list.csv” is an Excel workbook .*save the list as CSV"),
        (lambda folder: (folder / "list.csv").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(99)), "Excel workbook"),
        (lambda folder: (folder / "list.csv").write_text("<html>"), "web page or XML"),
        (lambda folder: (folder / "list.csv").write_bytes(b"%PDF-1.4"), "PDF"),
        (lambda folder: (folder / "list.csv").write_bytes(bytes(range(256)) * 4), "not a text file"),
        (lambda folder: (folder / "list.csv").write_text("image;label\n"), "lists no cases"),
        (lambda folder: (folder / "list.csv").write_text("image,age\nimages/a.nii.gz,3\n"), "has no column label"),
        (lambda folder: (folder / "list.csv").write_text("image,label\nimages/a.nii.gz\n"), "Entry 1 .* is not image"),
        (lambda folder: (folder / "list.csv").write_text("images/a.nii.gz,labels/a.nii.gz,p,3\n"), "Entry 1"),
        (lambda folder: (folder / "list.csv").write_text("images/a.nii.gz;labels/z.nii.gz\n"), "z.nii.gz, which does"),
    ],
)
def test_what_is_no_list(folder, write, match):
    write(folder)
    with pytest.raises(UserError, match=match):
        find_cases(folder / "list.csv")


def test_one_of_several_dicom_series_may_be_chosen(tmp_path):
    scans = [body_phantom(seed, shape=(4, 32, 32), spacing=(10.0, 10.0, 30.0))[0] for seed in (1, 2)]
    for number, scan in enumerate(scans):
        write_dicom_series(scan, tmp_path / "scan" / str(number))
        write_labelmap(tmp_path / f"{number}.nii.gz", scan.array > 100, scan, [SegmentInfo("bright", 1, (1, 0, 0))])
    listed = list_series(tmp_path / "scan")
    one = read_volume(tmp_path / "scan", "1").array
    first = next(n for n, scan in enumerate(scans) if np.array_equal(scan.array, one))
    write = "".join(f"scan#{entry.number},{n}.nii.gz\n" for entry, n in zip(listed, (first, 1 - first), strict=True))
    (tmp_path / "list.csv").write_text(write)
    for case in find_cases(tmp_path / "list.csv"):
        volume, labels, *_ = case.read()
        assert np.array_equal(labels > 0, volume.array > 100) and labels.any()
