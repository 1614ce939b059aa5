"""Writes the requirements that the panel installs: every package in one version, with the hashes of its files.

    python -m pip install uv
    python Testing/packaging/pin_packages.py

Run it to raise a version below. It resolves all dependencies, leaves out the packages that Slicer has, and writes the
others to `SAMFineTune/Resources/Packages`. It checks that every system and Python of Slicer has a wheel of each, and
that they work with Slicer's NumPy and pydicom, which stay unchanged.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "SAMFineTune" / "Resources" / "Packages"
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (
    "x86_64-pc-windows-msvc",
    "x86_64-apple-darwin",
    "aarch64-apple-darwin",
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
)
OF_SLICER = {"numpy": ("2.0.2", "2.4.0"), "pydicom": ("3.0.1", "3.0.1"), "pillow": ("10.4.0", "11.3.0")}
"""What Slicer has, in its oldest and newest version that the panel runs in. Slicer 5.10 has pydicom 2.4, and there the
panel does not install highdicom."""

# 1.23 is the last ONNX Runtime with wheels for Macs with an Intel processor. It imports NumPy alone; what more it
# declares is for its converters.
SETS = {
    "onnxruntime": (("onnxruntime==1.23.2",), {"flatbuffers", "protobuf", "packaging", "coloredlogs", "humanfriendly",
                                               "pyreadline3", "sympy", "mpmath"}),
    "highdicom": (("highdicom==0.28.2",), set()),
    "training": (("peft==0.21.2", "transformers==5.23.0", "onnx==1.23.2", "onnxscript==0.7.2",
                  "segment-anything==1.0", "psutil"), set()),
}  # fmt: skip
"""Name of the file: (what is wanted, what of its dependencies is not imported). PyTorch and what that brings along are
the business of Slicer's extension PyTorch."""


def main() -> None:
    """Write and check all sets."""
    torch = _resolved(["torch"])
    for name, (wanted, unused) in SETS.items():
        found = _resolved(list(wanted))
        own = [line for package, line in found.items() if package not in {*OF_SLICER, *unused, *torch} - _names(wanted)]
        own += [line for package, line in found.items() if package in torch and package in _SHARED and line not in own]
        path = FOLDER / f"{name}.txt"
        pinned = _uv("--universal", "--no-deps", "--generate-hashes", "--python-version", PYTHONS[0], lines=sorted(own))
        path.write_text(pinned, encoding="utf-8", newline="\n")
        for system in SYSTEMS:
            for python in PYTHONS:
                _uv("--no-deps", "--python-platform", system, "--python-version", python, lines=[str(path)])
        for end in (0, 1):
            slicers = [f"{package}=={versions[end]}" for package, versions in OF_SLICER.items() if package in found]
            _uv("--python-version", "3.12", lines=[*sorted(own), *slicers])
        print(f"{path.name}: {len(own)} packages, {pinned.count('--hash')} files")


# PyTorch brings these along, too; but an old one of them would be in the way of the others.
_SHARED = {"typing-extensions", "filelock", "fsspec"}


def _names(requirements) -> set[str]:
    return {re.split(r"[=<> ;]", one)[0] for one in requirements}


def _resolved(requirements: list[str]) -> dict[str, str]:
    """"name==version ; marker" of everything that the requirements bring along, by name."""
    lines = _uv("--universal", "--python-version", PYTHONS[0], lines=requirements).splitlines()
    return {line.partition("==")[0]: line for line in lines if "==" in line}


def _uv(*options: str, lines: list[str]) -> str:
    """What `uv pip compile` prints for these requirements, or for those in the file that is the only line."""
    is_file = len(lines) == 1 and lines[0].endswith(".txt")
    source, text = (lines[0], None) if is_file else ("-", "\n".join(lines))
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    done = subprocess.run([*command, *options, source], input=text, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(options)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
