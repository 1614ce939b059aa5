"""Settings of the model: which one answers, with which adapter and on which device; models and prepared slices on the
disk.
"""

import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import (
    choose_in,
    chosen_in,
    confirmed,
    enable,
    fill_menu,
    read_setting,
    set_text,
    write_setting,
)
from .shown_views import looked_at_slice_node

DEVICES = (
    ("auto", _("Automatic")),
    ("cpu", _("Processor (CPU)")),
    ("cuda", _("Graphics card (CUDA)")),
)
NO_ADAPTER = ("", _("None"))
BUNDLED = "compact"
_THIS_MODEL, _CHOOSE_AGAIN = _("This model"), _("choose the model again")
_ORDER = ("bundled", "installed", "download", "import")
_WHERE = {"bundled": _(" (bundled)"), "download": _(" (download)"), "import": _(" (import its file)")}


class ModelSettings:
    """Lists the models of the worker or server, bundled ones first."""

    def __init__(self, host, ui):
        self.host, self.ui = host, ui
        self._rows = {}  # by ID, as the worker lists them
        self._asked = False
        self._wanted = None  # (model, adapter, device) that were chosen last
        host.connect(
            (ui.modelSelector, "activated(int)", self._model_chosen),
            (ui.adapterSelector, "activated(int)", self._adapter_chosen),
            (ui.deviceSelector, "activated(int)", self._device_chosen),
            (ui.importButton, "clicked()", self.import_file),
            (ui.downloadButton, "clicked()", self.download),
            (ui.removeButton, "clicked()", self.remove),
            (ui.embedButton, "clicked()", self.embed),
            (ui.clearCacheButton, "clicked()", self.clear_cache),
        )
        fill_menu(ui.modelSelector, ((BUNDLED, _("Compact (bundled)")),))
        fill_menu(ui.adapterSelector, (NO_ADAPTER,))
        fill_menu(ui.deviceSelector, DEVICES, read_setting("Device", "auto"))
        host.listen("StatusChanged", self._status_changed)
        host.listen("Finished", self._finished)
        host.listen("Failed", lambda event: self._follow_refusal())
        host.listen("SessionStarted", lambda _: self._reset())
        host.listen("SessionEnded", lambda _: self._reset())
        host.listen("TabShown", lambda _: self._ask_again())
        host.listen("Turn", self.refresh)

    # ---- the list

    def _reset(self):
        self._asked = False

    def _status_changed(self, event):
        if event.status.state == "ready" and not self._asked:
            self._ask_again()

    def _ask_again(self):
        if self.host.session is None or not self.host.ready:
            return
        self._asked = True
        client = self.host.client
        self.host.ask(client.ask("models"), self._models_known)
        self.host.ask(client.ask("adapters"), self._adapters_known)
        self._ask_cache()

    def _models_known(self, rows):
        rows = [row for row in rows if row.get("promptable", True)]
        rows.sort(key=lambda row: _ORDER.index(row["where"]) if row["where"] in _ORDER else 9)
        self._rows = {row["id"]: row for row in rows}
        entries = [(row["id"], row["name"] + _WHERE.get(row["where"], "")) for row in rows]
        fill_menu(self.ui.modelSelector, entries)
        self._select(self.model_id)

    def _select(self, model_id):
        choose_in(self.ui.modelSelector, model_id)
        self._describe()

    def _adapters_known(self, rows):
        entries = [NO_ADAPTER, *((row["id"], row["id"]) for row in rows)]
        fill_menu(self.ui.adapterSelector, entries, self.adapter_id)

    @property
    def row(self):
        """What the worker reported about the selected model; None before."""
        return self._rows.get(chosen_in(self.ui.modelSelector))

    def _describe(self):
        row = self.row
        if row is None:
            return
        parts = [row.get("description", ""), readable_size(row.get("bytes"))]
        parts.append(_("licence: {licence}").format(licence=row["licence"]) if row.get("licence") else "")
        parts.append(_("needs PyTorch") if row.get("needs_torch") else "")
        set_text(self.ui.modelLabel, "; ".join(part.rstrip(".") for part in parts if part))

    def refresh(self):
        row, ready = self.row, self.host.ready
        where = row["where"] if row is not None else ""
        enable(
            (self.ui.importButton, ready),
            (self.ui.downloadButton, ready and where == "download"),
            (self.ui.removeButton, ready and where == "installed"),
            (self.ui.embedButton, ready and self.host.has_volume and not self.host.runs("embed")),
            (self.ui.clearCacheButton, ready),
            (self.ui.modelSelector, self._rows),
        )

    # ---- choosing

    def _model_chosen(self, index):
        self._describe()
        row = self.row
        if row is None:
            return
        if row["where"] == "download":
            self.host.say(_("{model} is not on this computer yet; press Download to see its size and licence.").format(
                model=row["name"]))
        elif row["where"] == "import":
            way = _("Get the file of {model} and import it.").format(model=row["name"])
            self.host.say(row.get("how_to_get") or way)
        else:
            self.use(row)

    def use(self, row):
        """Use this model, after installing PyTorch if it needs that."""
        if row.get("needs_torch") and not self.host.remote and not torch_is_there():
            if not self.host.act(install_torch, self.host):
                self._select(self.model_id)
                return
        self._use(row["id"], "")
        self._select(row["id"])
        choose_in(self.ui.adapterSelector, "")

    @property
    def model_id(self):
        """ID of the model in use."""
        session = self.host.session
        return BUNDLED if session is None else session.parameters.get("Model", BUNDLED)

    @property
    def adapter_id(self):
        return "" if self.host.session is None else self.host.session.parameters.get("Adapter")

    @property
    def device(self):
        return chosen_in(self.ui.deviceSelector)

    def _adapter_chosen(self, index):
        self._use(self.model_id, chosen_in(self.ui.adapterSelector))

    def use_adapter(self, model_id, adapter_id):
        """Use an adapter that was just added to this computer."""
        self._use(model_id, adapter_id)
        self._asked = False
        self._ask_again()

    def _device_chosen(self, index):
        write_setting("Device", self.device)
        if self.host.session is not None:
            self._use(self.model_id, self.adapter_id)

    def _use(self, model_id, adapter_id):
        self.host.act(self.host.start().set_model, model_id, adapter=adapter_id, device=self.device)
        self._wanted = self._in_use

    @property
    def _in_use(self):
        session = self.host.session
        return session and (self.model_id, self.adapter_id, session.device)

    def _follow_refusal(self):
        """Show what is in use when the last choice was refused."""
        session = self.host.session
        if session is None:
            return
        if session.device != self.device:
            choose_in(self.ui.deviceSelector, session.device)
            write_setting("Device", session.device)
        if self._wanted not in (None, self._in_use):
            self._select(self.model_id)
            choose_in(self.ui.adapterSelector, self.adapter_id)
        self._wanted = None

    # ---- adding and removing

    def import_file(self):
        kinds = _("Models (*.pth *.pt *.safetensors)")
        window, folder = slicer.util.mainWindow(), read_setting("ImportFolder")
        path = qt.QFileDialog.getOpenFileName(window, _("Import a model"), folder, kinds)
        path = path[0] if isinstance(path, (tuple, list)) else path  # differs between bindings
        if path:
            self.import_path(path)

    def import_path(self, path):
        import os

        write_setting("ImportFolder", os.path.dirname(path))
        request = self.host.act(self.host.client.import_model, path)
        if request is not None:
            self.host.say(_("Importing {file}.").format(file=os.path.basename(path)))
            self.host.ask(request, self._imported)

    def _imported(self, value):
        if value is None:  # cancelled
            return
        terms = _(" Terms: {terms}").format(terms=value["terms"]) if value.get("terms") else ""
        self.host.say(_("{model} was imported.{terms}").format(model=value["model"], terms=terms))
        self.host.ask(self.host.client.ask("models"), lambda rows: self._added(rows, value["model"]))

    def _added(self, rows, model_id):
        self._models_known(rows)
        self._select(model_id)
        if self.row is not None and self.row["id"] == model_id:
            self.use(self.row)

    def download(self):
        """Download the selected model, after the user has agreed to its size and licence."""
        row = self.row
        if row is None or row["where"] != "download":
            return
        text = "\n\n".join(part for part in (
            _("{model}: {size} to download, kept on this computer until you remove it.").format(
                model=row["name"], size=readable_size(row.get("bytes")) or _("size not stated")),
            _("Licence: {licence}. {note}").format(licence=row["licence"], note=row.get("licence_note", "")),
            _("From {source}").format(source=row["source"]) if row.get("source") else "",
            row.get("needs", ""),
        ) if part)
        if not confirmed(text, _("Agree and download")):
            return
        asked = self.host.act(self.host.client.download, row["id"])
        if asked is not None:
            self.host.ask(asked[0], self._imported)

    def remove(self):
        row = self.row
        if row is None or row["where"] != "installed":
            return
        if not confirmed(_("{model} will be deleted from this computer ({size}).").format(
                             model=row["name"], size=readable_size(row["bytes"])),
                         _("Delete")):
            return
        if self.host.session is not None and self.model_id == row["id"]:
            self._use(BUNDLED, "")
        request = self.host.act(self.host.client.ask, "remove_model", row["id"])
        if request is not None:
            self.host.ask(request, lambda _: self._ask_again())

    # ---- embeddings

    def embed(self):
        node = looked_at_slice_node()
        if self.host.session is not None and node is not None:
            self.host.act(self.host.session.embed_around, node)

    def _finished(self, event):
        if event.what == "embed" and self.host.ready:
            self._ask_cache()

    def _ask_cache(self):
        self.host.ask(self.host.client.ask("cache_info"), self._cache_known)

    def _cache_known(self, info):
        size = readable_size(info.get("bytes", 0)) or _("no space")
        set_text(self.ui.cacheLabel, _("Prepared slices take {size}.").format(size=size))

    def clear_cache(self):
        request = self.host.act(self.host.client.ask, "clear_cache")
        if request is not None:
            self.host.ask(request, self._cache_cleared)

    def _cache_cleared(self, value):
        self.host.say(_("{size} freed.").format(size=readable_size(value.get("freed", 0)) or _("Nothing")))
        self._ask_cache()


def torch_is_there():
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def install_torch(host, what=_THIS_MODEL, then=_CHOOSE_AGAIN):
    """Install PyTorch through Slicer's extension PyTorch, which knows the right build and asks by its own dialog.

    Args: what: what needs PyTorch; then: what the user does after installing the extension.
    """
    try:
        import PyTorchUtils
    except ImportError:
        host.warn(_(
            "{what} needs PyTorch: install the extension PyTorch in Slicer's Extensions Manager, restart Slicer, and "
            "{then}."
        ).format(what=what, then=then))
        return False
    logic = PyTorchUtils.PyTorchUtilsLogic()
    if not logic.torchInstalled():
        logic.installTorch(askConfirmation=True)
    if not logic.torchInstalled():
        host.warn(_("PyTorch was not installed, which {what} needs.").format(what=what.lower()))
        return False
    return True


def readable_size(count):
    """ "375 MB"; empty when unknown or nothing."""
    from SAMFineTuneLib.wording import readable_size

    return readable_size(count) if count else ""
