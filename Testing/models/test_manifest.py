"""The manifest that ships: complete, valid, and true to what the model descriptions accept."""

from __future__ import annotations

import re

import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.download.manifest import find_entry, known_models
from SAMFineTuneLib.models.spec import ModelSpec

ENTRIES = list(known_models().values())
HEX_LENGTH = {"sha256": 64, "md5": 32, "xxh128": 32}


def test_every_published_family_is_listed():
    assert {"sam-vit-b", "sam-vit-l", "sam-vit-h", "mobile-sam", "medsam", "lite-medsam", "sam-med2d", "ft-sam",
            "medico-sam", "micro-sam-vit-t-lm", "micro-sam-vit-b-lm", "micro-sam-vit-l-lm", "sslsam",
            "finetune-sam"} == set(known_models())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_an_entry_describes_a_valid_model_with_terms_and_a_way_to_get_it(entry):
    ModelSpec(id=entry.id, name=entry.name, architecture=entry.architecture, input_size=entry.input_size,
              **entry.preparation)
    assert entry.licence and entry.licence_note.endswith(".")
    assert entry.description.endswith(".") and entry.needs.endswith(".")
    assert entry.source.startswith("https://")
    assert all(url.startswith("https://") for url in entry.urls)
    assert entry.downloadable != bool(entry.how_to_get)
    assert "above" not in entry.how_to_get  # the panel shows it alone
    for kind, digest in entry.digests.items():
        assert re.fullmatch(f"[0-9a-f]{{{HEX_LENGTH[kind]}}}", digest)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.downloadable], ids=lambda entry: entry.id)
def test_whatever_is_downloaded_can_be_checked(entry):
    assert entry.digests


def test_medsam_gets_its_own_pixels_though_its_tensors_have_sams_shapes():
    sam, medsam = find_entry("sam-vit-b"), find_entry("medsam")
    assert medsam.architecture == sam.architecture
    assert (medsam.preparation["resize"], medsam.preparation["pixel_range"]) == ("squash", "minmax")
    assert (sam.preparation["resize"], sam.preparation["pixel_range"]) == ("longest_side_pad", "0-255")


def test_models_without_stated_terms_ask_for_them():
    assert {entry.id for entry in ENTRIES if entry.ask_terms} >= {"sslsam", "medico-sam"}
    assert not find_entry("sam-vit-b").ask_terms


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(UserError, match="'med-sam'; did you mean medsam"):
        find_entry("med-sam")
    with pytest.raises(UserError, match="'zzz'; see `samfinetune models list`"):
        find_entry("zzz")
