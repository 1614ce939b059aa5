"""What reviewers of the Extensions Index check: importing the code runs, installs and downloads nothing."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SLICER = {"slicer", "vtk", "qt", "ctk", "numpy", "scipy", "SimpleITK", "pydicom", "PIL", "SAMFineTuneLib"}
PANEL = {"SAMFineTunePanels"}
# Modules that define or train PyTorch networks; nothing imports them at file scope but each other.
NETWORKS = (
    "SAMFineTuneLib/models/architectures/",
    "SAMFineTuneLib/training/",
    "SAMFineTuneLib/simulation/simulated_annotator.py",
    "SAMFineTuneLib/simulation/device_random.py",
)
DECLARATIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


PATH = "_find_library()"  # of SAMFineTune.py: two folders enter sys.path, which must happen before anything is imported


def files(root: Path) -> list[Path]:
    return [file for folder in ("SAMFineTune", "SAMFineTuneLib") for file in sorted((root / folder).rglob("*.py"))]


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def is_guard(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`, `if __name__ == "__main__":`, and the like, which run nothing when imported."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_importing_a_module_only_declares(root):
    found = []
    for file in files(root):
        if file.name != "__main__.py":  # that is what `python -m` runs
            runs = [node for node in parsed(file).body if not (isinstance(node, DECLARATIONS) or is_guard(node))]
            found += [f"{file.relative_to(root)}: {ast.unparse(node)}" for node in runs if not is_text(node)]
    assert found == [f"SAMFineTune/SAMFineTune.py: {PATH}"]


def imported_at_file_scope(module: ast.Module):
    for node in module.body:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_only_what_slicer_has_is_imported_at_file_scope(root):
    found = set()
    for file in files(root):
        path = file.relative_to(root).as_posix()
        allowed = SLICER | PANEL | set(sys.stdlib_module_names) | ({"torch"} if path.startswith(NETWORKS) else set())
        found |= {f"{path}: {name}" for name in imported_at_file_scope(parsed(file)) if name not in allowed}
    assert found == set()


def calls(module: ast.Module):
    return (node for node in ast.walk(module) if isinstance(node, ast.Call))


def test_pytorch_is_never_installed_by_pip(root):
    for file in files(root):
        for call in calls(parsed(file)):
            if "pip_install" in ast.unparse(call.func) or "pip_ensure" in ast.unparse(call.func):
                assert "torch" not in ast.unparse(call), f"{file}:{call.lineno}"


@pytest.mark.parametrize("dangerous", ["eval", "exec", "pickle.load", "pickle.loads", "os.system"])
def test_nothing_that_comes_from_outside_is_run(root, dangerous):
    found = [f"{file.relative_to(root)}:{call.lineno}" for file in files(root) for call in calls(parsed(file))
             if ast.unparse(call.func) == dangerous]  # fmt: skip
    assert found == []


def test_pytorch_opens_files_without_running_what_is_in_them(root):
    loads = [call for file in files(root) for call in calls(parsed(file)) if ast.unparse(call.func) == "torch.load"]
    assert loads
    assert all("weights_only=True" in ast.unparse(call) for call in loads)
