"""The extension configured, built, installed and packaged once, against a stand-in for Slicer's build."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
MODULES = Path("lib", "Slicer-5.11", "qt-scripted-modules")


class Extension(NamedTuple):
    """Where things are after `cmake --install` and `cpack`."""

    built: Path  # the folder of modules in the build, as a developer adds it to Slicer
    installed: Path  # the same after installing
    package: Path


def run(*command: object, cwd: Path) -> str:
    """Run a program that must succeed; its output."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def extension(root, tmp_path_factory) -> Extension:
    """The extension from the checkout, through CMake."""
    if not all(map(shutil.which, ("cmake", "cpack", "make"))) or not shutil.which("cc"):
        pytest.skip("CMake, make and a compiler are needed to package the extension")
    folder = tmp_path_factory.mktemp("extension")
    build, prefix = folder / "build", folder / "prefix"
    run("cmake", "-S", root, "-B", build, "-G", "Unix Makefiles", f"-DSlicer_DIR={HERE / 'slicer_build'}",
        "-Werror=dev", cwd=folder)  # fmt: skip
    run("cmake", "--build", build, "--parallel", "2", cwd=folder)
    run("cmake", "--install", build, "--prefix", prefix, cwd=folder)
    run("cpack", cwd=build)
    return Extension(build / MODULES, prefix / MODULES, build / "SAMFineTune.tar.gz")
