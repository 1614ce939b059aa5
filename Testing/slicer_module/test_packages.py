"""Installing what the worker needs: by real pip processes, from a folder instead of the network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import zipfile

import pytest
import slicer


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that pip takes for the network, with one small package in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    info = "smallpackage-1.0.dist-info"
    with zipfile.ZipFile(folder / "smallpackage-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("smallpackage/__init__.py", "answer = 42\n")
        about = ("Metadata-Version: 2.1", "Name: smallpackage", "Version: 1.0", "Requires-Dist: numpy", "")
        wheel.writestr(f"{info}/METADATA", "\n".join(about))
        kind = ("Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", "Tag: py3-none-any", "")
        wheel.writestr(f"{info}/WHEEL", "\n".join(kind))
        names = ("smallpackage/__init__.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD")
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return folder


@pytest.fixture
def pins(wheels, tmp_path):
    """A file that names that package, with its hash."""
    wheel = next(wheels.glob("*.whl")).read_bytes()
    file = tmp_path / "small.txt"
    file.write_text(f"smallpackage==1.0 --hash=sha256:{hashlib.sha256(wheel).hexdigest()}\n")
    return str(file)


@pytest.fixture
def small(pins):
    from SAMFineTunePanels.packages import PackageSet

    return PackageSet("small", "a small package", pins, "smallpackage", "1 kB")


@pytest.fixture
def install(desktop):
    """(start, done): what the installer was asked to do, and its message at the end."""
    from SAMFineTunePanels.package_installer import Installer

    parent = slicer.util.mainWindow()
    done, progress = [], []
    installer = Installer(parent, lambda text, fraction: progress.append(text), done.append)
    installer.progress_seen, installer.done_seen = progress, done
    yield installer
    installer.close()


def test_a_package_is_installed_into_a_folder_of_its_own(desktop, wheels, small, install):
    assert small.missing()
    install.start(small)
    desktop.wait(lambda: install.done_seen)
    assert install.done_seen == [""]
    assert not small.missing()
    assert os.listdir(small.folder).count("numpy") == 0  # Slicer's own is used
    assert any("Downloading" in text for text in install.progress_seen)
    leftovers = [name for name in os.listdir(os.path.dirname(small.folder)) if name != "small"]
    assert leftovers == []


def test_without_network_it_is_a_sentence_and_a_file_by_hand_helps(desktop, wheels, small, install, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels.parent))  # nothing there
    install.start(small)
    desktop.wait(lambda: install.done_seen)
    assert "a small package" in install.done_seen[0] and ".whl" in install.done_seen[0]
    assert small.missing()
    downloads = os.path.join(os.path.dirname(small.folder), "downloads-small")
    (wheels / "smallpackage-1.0-py3-none-any.whl").rename(os.path.join(downloads, "smallpackage-1.0-py3-none-any.whl"))
    install.start(small)
    desktop.wait(lambda: len(install.done_seen) == 2)
    assert install.done_seen[1] == "" and not small.missing()


def test_another_file_than_the_pinned_one_is_refused(desktop, wheels, small, install):
    with zipfile.ZipFile(next(wheels.glob("*.whl")), "a") as wheel:
        wheel.writestr("smallpackage/more.py", "tampered = True\n")
    install.start(small)
    desktop.wait(lambda: install.done_seen)
    assert "not the one" in install.done_seen[0] and small.missing()


def test_everything_that_is_installed_has_one_version_and_hashes():
    from SAMFineTunePanels import packages

    for wanted in (packages.ONNX_RUNTIME, packages.DICOM_SEG, packages.TRAINING):
        with open(wanted.requirements, encoding="utf-8") as file:
            lines = file.read().replace("\\\n", " ").splitlines()
        assert lines and "://" not in "".join(lines)
        names = []
        for line in lines:
            assert re.match(r"[a-z0-9-]+==[0-9.]+( ;|\s)", line) and "--hash=sha256:" in line
            names.append(line.partition("==")[0])
        assert wanted.probe in names
        assert not {"numpy", "pydicom", "pillow", "torch", "vtk"} & set(names)  # Slicer's and PyTorch's own


def test_a_slicer_whose_own_package_is_too_old_is_a_sentence(monkeypatch):
    from SAMFineTunePanels import packages

    from SAMFineTuneLib.errors import UserError

    packages.DICOM_SEG.require_slicers()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.4.4")
    with pytest.raises(UserError, match=r"pydicom 3\.0\.1.*2\.4\.4"):
        packages.DICOM_SEG.require_slicers()


def test_cancelling_ends_the_process_and_says_how_to_go_on(desktop, wheels, small, install):
    install.start(small)
    desktop.wait(lambda: desktop.processes())
    install.cancel()
    desktop.wait(lambda: install.done_seen)
    assert "cancelled" in install.done_seen[0] and small.missing()
    desktop.wait(lambda: not desktop.processes())
    install.start(small)
    desktop.wait(lambda: len(install.done_seen) == 2)
    assert install.done_seen[1] == ""


def test_closing_the_panel_ends_an_installation(desktop, wheels, small, install):
    install.start(small)
    install.close()
    assert not desktop.processes() and not install.done_seen


def test_the_button_appears_when_the_runtime_is_missing(desktop, wheels, pins, monkeypatch):
    from SAMFineTunePanels import packages

    runtime = packages.PackageSet("small", "the runtime", pins, "smallpackage", "1 kB")
    monkeypatch.setattr(packages, "ONNX_RUNTIME", runtime)
    desktop.load_phantom()
    panel = desktop.open()
    ui = panel.status.ui
    assert not ui.installButton.isHidden() and "1 kB" in ui.messageText.plainText
    assert panel.host.session is None and not desktop.processes()
    ui.installButton.click()
    desktop.wait(lambda: ui.installButton.isHidden())
    desktop.wait(lambda: panel.prompts.tool == "positive")  # where it would have been without
    assert panel.host.session.volume_node is not None
    assert runtime.folder in packages.environment()["PYTHONPATH"]


def test_what_was_installed_is_removed_on_demand(desktop, wheels, pins, monkeypatch):
    from SAMFineTunePanels import packages, server_settings

    runtime = packages.PackageSet("small", "the runtime", pins, "smallpackage", "1 kB")
    monkeypatch.setattr(packages, "ONNX_RUNTIME", runtime)
    desktop.load_phantom()
    panel = desktop.open()
    assert panel.server.ui.packagesRow.isHidden()
    panel.status.ui.installButton.click()
    desktop.wait(lambda: panel.host.session is not None and panel.prompts.tool == "positive")
    assert not panel.server.ui.packagesRow.isHidden()
    panel.server.ui.removePackagesButton.click()  # nobody is asked in testing mode, and nothing is removed
    assert not runtime.missing()
    monkeypatch.setattr(server_settings, "confirmed", lambda *_: True)
    panel.server.ui.removePackagesButton.click()
    assert runtime.missing() and not os.path.exists(packages.packages_folder())
    assert panel.server.ui.packagesRow.isHidden() and not panel.status.ui.installButton.isHidden()
    assert panel.host.session is None and not desktop.processes()


def test_processes_behind_the_panel_find_every_set(desktop, pins, monkeypatch):
    from SAMFineTunePanels import packages

    for name in ("ONNX_RUNTIME", "TRAINING", "DICOM_SEG"):
        own = packages.PackageSet(name, "a set", pins, "smallpackage", "1 kB")
        monkeypatch.setattr(packages, name, own)
        os.makedirs(own.folder)
        assert own.folder in packages.environment()["PYTHONPATH"].split(os.pathsep)
