"""A small DICOM series of the phantom, and `samfinetune` run on it with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.images import Volume, body_phantom, write_dicom_series


@dataclass(frozen=True, eq=False)
class Phantom:
    """The series' folder, the volume that was written into it, and its labels by name."""

    folder: Path
    volume: Volume
    labels: np.ndarray
    values: dict[str, int]

    def slice_of(self, name: str) -> int:
        """Where the organ is largest."""
        return int((self.labels == self.values[name]).sum(axis=(1, 2)).argmax())

    def box(self, name: str) -> str:
        """A box one voxel round the organ on that slice, as `--space ijk --box` takes it."""
        k = self.slice_of(name)
        rows, columns = np.nonzero(self.labels[k] == self.values[name])
        return f"{columns.min() - 1},{rows.min() - 1},{k},{columns.max() + 1},{rows.max() + 1},{k}"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Phantom:
    volume, labels, names = body_phantom(0, shape=(12, 128, 128), spacing=(2.8, 2.8, 8.0))
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(volume, folder)
    return Phantom(folder, volume, labels, {name: value for value, name in names.items()})


@pytest.fixture
def samfinetune(tmp_path, monkeypatch, capsys) -> Callable[..., Result]:
    """Run the command in this process, in an empty working folder, with an empty cache."""
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def fresh_python(root, tmp_path) -> Callable[..., subprocess.Popen]:
    """Start a fresh interpreter in an empty folder, with an empty cache, that finds the library."""

    def start(*arguments: object) -> subprocess.Popen:
        environment = os.environ | {"SAMFINETUNE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(root)}
        command = [sys.executable, *(str(argument) for argument in arguments)]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


WITHOUT_PYTORCH = """
import sys

class Absent:
    names = {"torch", "onnx", "onnxscript", "peft", "safetensors", "segment_anything", "skimage", "highdicom"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from SAMFineTuneLib.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def another_computer(fresh_python, tmp_path, monkeypatch) -> Callable[..., Result]:
    """Run the command where only what segmenting needs is installed, with other models and adapters."""
    monkeypatch.setenv("SAMFINETUNE_MODELS", str(tmp_path / "another computer" / "models"))
    monkeypatch.setenv("SAMFINETUNE_ADAPTERS", str(tmp_path / "another computer" / "adapters"))

    def run(*arguments: object) -> Result:
        process = fresh_python("-c", WITHOUT_PYTORCH, *arguments)
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)

    return run
