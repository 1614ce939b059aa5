"""Reads what distinguishes the volumes of one DICOM series: echoes, b-values, phases, time points, kinds of image.

A series may hold several images at each position. Which attribute explains that differs from scanner to scanner: this
module reads all known ones, and `dicom_volumes` uses those that explain the repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from SAMFineTuneLib.images.dicom_values import Attributes, first_item, number, numbers, read_value, text

Trait = float | str | tuple[float, ...]
Reader = Callable[[Attributes], Trait | None]

# (private attribute, its creator, how the creator's name begins)
_PRIVATE_B_VALUES = ((0x0019100C, 0x00190010, "SIEMENS"), (0x00431039, 0x00430010, "GEMS"),
                     (0x20011003, 0x20010010, "PHILIPS"))  # fmt: skip


def _number(*keywords: str, unit: float = 1) -> Reader:
    """Reads the first of several attributes that is a number, in `unit`s, to a thousandth: writers differ in the last
    digits of the same setting."""

    def read(frame: Attributes) -> float | None:
        found = (number(frame[keyword]) for keyword in keywords)
        return next((round(one / unit, 3) for one in found if one is not None), None)

    return read


def _word(keyword: str) -> Reader:
    return lambda frame: text(frame[keyword]) or None


def _entry(keyword: str) -> Reader:
    """Reads the frame's entry of an attribute that lists all frames, as nuclear medicine has it."""

    def read(frame: Attributes) -> float | None:
        found = numbers(frame[keyword], frame.index + 1)
        return None if found is None else float(found[frame.index])

    return read


def _moment(*choices: tuple[str, ...]) -> Reader:
    """Reads the first of several dates and times, each in one or more attributes, as a number, for its order alone."""

    def read(frame: Attributes) -> float | None:
        found = (_digits("".join(text(frame[keyword]) for keyword in keywords)) for keywords in choices)
        return next((one for one in found if one is not None), None)

    return read


def _digits(word: str) -> float | None:
    whole, _, fraction = word.partition(".")
    digits = "".join(letter for letter in whole if letter in "0123456789")
    return float(f"{digits}.{fraction}") if digits and (fraction or "0").isdecimal() and fraction.isascii() else None


def _component(frame: Attributes) -> str | None:
    component = text(frame["ComplexImageComponent"]).lower()
    kind = [part.strip() for part in text(frame["ImageType"]).upper().split("\\")]
    for letter, name in (("M", "magnitude"), ("P", "phase"), ("R", "real"), ("I", "imaginary")):
        if component.startswith(name) or (not component and letter in kind[2:4]):
            return f"{name} image"
    return None


def _image_type(frame: Attributes) -> str | None:
    """The part of the image type after "ORIGINAL\\PRIMARY", such as water, fat or a map."""
    words = (text(frame["FrameType"]) or text(frame["ImageType"])).split("\\")[2:]
    return " ".join(word.strip().lower() for word in words if word.strip()) or None


def _b_value(frame: Attributes) -> float | None:
    if (found := number(frame["DiffusionBValue"])) is not None:
        return found
    for tag, creator, maker in _PRIVATE_B_VALUES:
        if not text(frame[creator]).upper().startswith(maker):
            continue
        stored = frame[tag]
        if isinstance(stored, bytes):  # a private attribute without a value representation
            stored = stored.decode("ascii", "ignore").strip("\0 ").split("\\")
        if (found := number(stored)) is not None:
            return found % 100_000  # General Electric adds flags in front
    return None


def _direction(frame: Attributes) -> tuple[float, ...] | None:
    found = numbers(frame["DiffusionGradientOrientation"], 3)
    if found is None and (inner := first_item(frame["DiffusionGradientDirectionSequence"])) is not None:
        found = numbers(read_value(inner, "DiffusionGradientOrientation"), 3)
    return None if found is None else tuple(round(float(part), 3) for part in found)


def _place_in_series(frame: Attributes) -> float:
    own = None if frame.in_groups else number(frame["InstanceNumber"])
    return float(frame.index) if own is None else own


@dataclass(frozen=True)
class Kind:
    """How a trait is read and named: in `label`, {n} is the number of the value in ascending order, {value} the
    value."""

    label: str
    read: Reader
    ranked: bool = False  # differs between slices, too: its order at each position counts
    running: bool = False  # grows during the scan: volumes, or positions, follow each other


KINDS: Mapping[str, Kind] = {
    "component": Kind("{value}", _component),
    "image type": Kind("{value}", _image_type),
    "stack": Kind("stack {value}", _word("StackID")),
    "energy window": Kind("energy window {value:g}", _entry("EnergyWindowVector")),
    "detector": Kind("detector {value:g}", _entry("DetectorVector")),
    "voltage": Kind("{value:g} kV", _number("KVP")),
    "kernel": Kind("kernel {value}", _word("ConvolutionKernel")),
    "inversion time": Kind("TI {value:g} ms", _number("InversionTime", "InversionTimes")),
    "flip angle": Kind("flip angle {value:g}°", _number("FlipAngle")),
    "echo time": Kind("echo {n} (TE {value:g} ms)", _number("EffectiveEchoTime", "EchoTime")),
    "echo": Kind("echo {value:g}", _number("EchoNumbers")),
    "b-value": Kind("b = {value:g}", _b_value),
    "direction": Kind("direction {n}", _direction),
    "time point": Kind("time point {value:g}", _number("TemporalPositionIndex", "TemporalPositionIdentifier")),
    "cardiac phase": Kind("cardiac phase {value:g} %", _number("NominalPercentageOfCardiacPhase")),
    "breathing phase": Kind("breathing phase {value:g} %", _number("NominalPercentageOfRespiratoryPhase")),
    "time slot": Kind("phase {value:g}", _entry("TimeSlotVector")),
    "trigger time": Kind("phase {n} (trigger time {value:g} ms)",
                         _number("NominalCardiacTriggerDelayTime", "TriggerTime"), ranked=True),
    "reference time": Kind("time point {n} (at {value:g} s)", _number("FrameReferenceTime", unit=1000), ranked=True),
}  # fmt: skip
"""Traits that say what a volume shows, in the order in which they are tried."""
ORDERS: Mapping[str, Kind] = {
    "acquisition": Kind("acquisition {value:g}", _number("FrameAcquisitionNumber", "AcquisitionNumber")),
    "acquisition time": Kind("repeat {n}", _moment(
        ("FrameAcquisitionDateTime",), ("FrameReferenceDateTime",), ("AcquisitionDate", "AcquisitionTime")
    ), ranked=True, running=True),
    "content time": Kind("repeat {n}", _moment(("ContentTime",)), ranked=True, running=True),
    "number": Kind("repeat {n}", _place_in_series, ranked=True, running=True),
}  # fmt: skip
"""Traits that only order images; copies of one image may differ in them, too."""


def traits(frame: Attributes) -> dict[str, Trait]:
    """The known traits of a frame."""
    found = {name: kind.read(frame) for name, kind in {**KINDS, **ORDERS}.items()}
    return {name: trait for name, trait in found.items() if trait is not None}
