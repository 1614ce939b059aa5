"""Reads what tells the volumes of one DICOM series apart: echoes, b-values, phases, time points, kinds of image.

A series may hold several images at each position. Which attribute explains that differs from scanner to scanner: this
module reads all known ones, and `dicom_volumes` uses those that explain the repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset

from SAMFineTuneLib.images.dicom_values import first_item, number, numbers, read_value, text

Trait = float | str | tuple[float, ...]

# Where an enhanced multi-frame file keeps an attribute.
MACROS = {
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "DiffusionGradientDirectionSequence": "MRDiffusionSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "InversionTimes": "MRModifierSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "KVP": "CTXRayDetailsSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfRespiratoryPhase": "RespiratorySynchronizationSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameReferenceDateTime": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "StackID": "FrameContentSequence",
}
_SIEMENS_B, _GE_B, _PHILIPS_B = 0x0019100C, 0x00431039, 0x20011003
_PRIVATE_CREATORS = {_SIEMENS_B: (0x00190010, "SIEMENS"), _GE_B: (0x00430010, "GEMS"),
                     _PHILIPS_B: (0x20010010, "PHILIPS")}  # fmt: skip
TAGS = [
    "ImageType",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "FrameReferenceTime",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentTime",
    "EnergyWindowVector",
    "DetectorVector",
    "TimeSlotVector",
    *_PRIVATE_CREATORS,
    *(creator for creator, _ in _PRIVATE_CREATORS.values()),
]


@dataclass(frozen=True)
class Kind:
    """How a trait is named: in `label`, {n} is the number of the value in ascending order, {value} the value."""

    label: str
    ranked: bool = False  # differs between slices, too: its order at each position counts
    running: bool = False  # grows during the scan: volumes, or positions, follow each other


KINDS: Mapping[str, Kind] = {
    "component": Kind("{value}"),
    "image type": Kind("{value}"),
    "stack": Kind("stack {value}"),
    "energy window": Kind("energy window {value:g}"),
    "detector": Kind("detector {value:g}"),
    "voltage": Kind("{value:g} kV"),
    "kernel": Kind("kernel {value}"),
    "inversion time": Kind("TI {value:g} ms"),
    "flip angle": Kind("flip angle {value:g}°"),
    "echo time": Kind("echo {n} (TE {value:g} ms)"),
    "echo": Kind("echo {value:g}"),
    "b-value": Kind("b = {value:g}"),
    "direction": Kind("direction {n}"),
    "time point": Kind("time point {value:g}"),
    "cardiac phase": Kind("cardiac phase {value:g} %"),
    "breathing phase": Kind("breathing phase {value:g} %"),
    "time slot": Kind("phase {value:g}"),
    "trigger time": Kind("phase {n} (trigger time {value:g} ms)", ranked=True),
    "reference time": Kind("time point {n} (at {value:g} s)", ranked=True),
}
"""Traits that say what a volume shows, in the order in which they are tried."""
ORDERS: Mapping[str, Kind] = {
    "acquisition": Kind("acquisition {value:g}"),
    "acquisition time": Kind("repeat {n}", ranked=True, running=True),
    "content time": Kind("repeat {n}", ranked=True, running=True),
    "number": Kind("repeat {n}", ranked=True, running=True),
}
"""Traits that only order images; copies of one image may differ in them, too."""


def traits(value: Callable[[str], object], dataset: Dataset, own: Dataset | None, index: int) -> dict[str, Trait]:
    """The known traits of frame `index` (0-based); `value` reads an attribute for it, wherever the file keeps it."""
    reference = number(value("FrameReferenceTime"))
    found: dict[str, Trait | None] = {
        "component": _component(value),
        "image type": _image_type(value),
        "stack": text(value("StackID")) or None,
        "energy window": _of_vector(dataset, "EnergyWindowVector", index),
        "detector": _of_vector(dataset, "DetectorVector", index),
        "voltage": number(value("KVP")),
        "kernel": text(value("ConvolutionKernel")) or None,
        "inversion time": _rounded(_first(number(value("InversionTime")), number(value("InversionTimes")))),
        "flip angle": _rounded(number(value("FlipAngle"))),
        "echo time": _rounded(_first(number(value("EffectiveEchoTime")), number(value("EchoTime")))),
        "echo": number(value("EchoNumbers")),
        "b-value": _b_value(value, dataset),
        "direction": _direction(value),
        "time point": _first(number(value("TemporalPositionIndex")), number(value("TemporalPositionIdentifier"))),
        "cardiac phase": number(value("NominalPercentageOfCardiacPhase")),
        "breathing phase": number(value("NominalPercentageOfRespiratoryPhase")),
        "time slot": _of_vector(dataset, "TimeSlotVector", index),
        "trigger time": _rounded(
            _first(number(value("NominalCardiacTriggerDelayTime")), number(value("TriggerTime")))
        ),
        "reference time": None if reference is None else _rounded(reference / 1000),
        "acquisition": _first(number(value("FrameAcquisitionNumber")), number(value("AcquisitionNumber"))),
        "acquisition time": _first(
            _digits(value("FrameAcquisitionDateTime")),
            _digits(value("FrameReferenceDateTime")),
            _digits(value("AcquisitionDate"), value("AcquisitionTime")),
        ),
        "content time": _digits(value("ContentTime")),
        "number": float(index) if own is not None else _first(number(value("InstanceNumber")), float(index)),
    }
    return {name: trait for name, trait in found.items() if trait is not None}


def _first(*candidates):
    return next((one for one in candidates if one is not None), None)


def _rounded(found: float | None) -> float | None:
    """To a thousandth: writers differ in the last digits of the same setting."""
    return None if found is None else round(found, 3)


def _of_vector(dataset: Dataset, keyword: str, index: int) -> float | None:
    """The entry for one frame of an attribute that lists all frames, as nuclear medicine has it."""
    found = numbers(read_value(dataset, keyword), index + 1)
    return None if found is None else float(found[index])


def _component(value) -> str | None:
    component = text(value("ComplexImageComponent")).lower()
    kind = [part.strip() for part in text(value("ImageType")).upper().split("\\")]
    for letter, name in (("M", "magnitude"), ("P", "phase"), ("R", "real"), ("I", "imaginary")):
        if component.startswith(name) or (not component and letter in kind[2:4]):
            return f"{name} image"
    return None


def _image_type(value) -> str | None:
    """What follows "ORIGINAL\\PRIMARY": water, fat, a map."""
    words = (text(value("FrameType")) or text(value("ImageType"))).split("\\")[2:]
    return " ".join(word.strip().lower() for word in words if word.strip()) or None


def _b_value(value, dataset: Dataset) -> float | None:
    if (found := number(value("DiffusionBValue"))) is not None:
        return found
    for tag, (creator, maker) in _PRIVATE_CREATORS.items():
        if not text(read_value(dataset, creator)).upper().startswith(maker):
            continue
        stored = read_value(dataset, tag)
        if isinstance(stored, bytes):  # a private attribute without a value representation
            stored = stored.decode("ascii", "ignore").strip("\0 ").split("\\")
        if (found := number(stored)) is not None:
            return found % 100_000  # General Electric adds flags in front
    return None


def _direction(value) -> tuple[float, ...] | None:
    found = numbers(value("DiffusionGradientOrientation"), 3)
    if found is None and (inner := first_item(value("DiffusionGradientDirectionSequence"))) is not None:
        found = numbers(read_value(inner, "DiffusionGradientOrientation"), 3)
    return None if found is None else tuple(round(float(part), 3) for part in found)


def _digits(*parts) -> float | None:
    """Dates and times as one number, for their order alone."""
    word = "".join(text(part) for part in parts)
    whole, _, fraction = word.partition(".")
    digits = "".join(letter for letter in whole if letter in "0123456789")
    return float(f"{digits}.{fraction}") if digits and (fraction or "0").isdecimal() and fraction.isascii() else None
