"""The layers hold, the check that says so can fail, and importing the library loads nothing heavy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "onnxruntime", "onnx", "peft", "transformers", "matplotlib", "segment_anything")

# Modules that define PyTorch layers or train them; everything else must import without PyTorch.
NEED_TORCH = (
    "SAMFineTuneLib.models.architectures.", "SAMFineTuneLib.training.", "SAMFineTuneLib.simulation.simulated_annotator",
    "SAMFineTuneLib.simulation.device_random",
)  # fmt: skip


def lint(project: Path) -> subprocess.CompletedProcess:
    """Run import-linter on `project`, as `lint-imports` in that folder does."""
    code = "from importlinter.cli import lint_imports_command as main; main()"
    command = [sys.executable, "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


@pytest.fixture
def project(root, tmp_path) -> Path:
    """A copy of the library and its layer rules."""
    shutil.copy(root / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "Resources")
    shutil.copytree(root / "SAMFineTuneLib", tmp_path / "SAMFineTuneLib", ignore=ignore)
    return tmp_path


def test_the_layers_hold(project):
    result = lint(project)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("images/forbidden.py", "import SAMFineTuneLib.cli.main", "images → prompts"),
        ("prompts/forbidden.py", "def late():\n    from SAMFineTuneLib import models", "images → prompts"),
        ("images/forbidden.py", "def late():\n    import torch", "no model runtime"),
        ("inference/forbidden.py", "import torchvision", "without torchvision"),
        ("service/wire.py", "import torch", "the client needs NumPy alone"),
        ("service/wire.py", "from SAMFineTuneLib.session import session", "the client needs NumPy alone"),
        ("stray.py", "", "images → prompts"),
    ],
)
def test_a_forbidden_import_is_found(project, module, line, broken):
    (project / "SAMFineTuneLib" / module).write_text(line + "\n")
    result = lint(project)
    assert result.returncode == 1, result.stdout + result.stderr
    assert any(broken in row and "BROKEN" in row for row in result.stdout.splitlines())


def modules(root: Path) -> list[str]:
    """Every module of the library by its dotted name."""
    files = sorted((root / "SAMFineTuneLib").rglob("*.py"))
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def fresh(code: str, root: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter that sees the checkout."""
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)


def test_importing_the_package_loads_only_the_standard_library(root):
    code = (
        "import sys; before = set(sys.modules); import SAMFineTuneLib\n"
        "late = {name.split('.')[0] for name in set(sys.modules) - before} - {'SAMFineTuneLib'}\n"
        "print(sorted(late - set(sys.stdlib_module_names)))"
    )
    result = fresh(code, root)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_no_module_loads_a_runtime_when_imported(root):
    names = [name for name in modules(root) if not name.startswith(NEED_TORCH)]
    assert len(names) > 15
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    result = fresh(code, root)
    assert result.returncode == 0, result.stderr
