"""Settings of a training: the preset, and those under Advanced."""

from slicer.i18n import tr as _

from .model_settings import DEVICES
from .qt_helpers import choose_in, chosen_in, fill_menu

CROSS_VALIDATION, SHOTS, NO_EVIDENCE = "folds", "shots", "none"
MENUS = {  # name of the selector -> its entries
    "presetSelector": (
        ("quick", _("Quick: 250 steps")),
        ("balanced", _("Balanced: 800 steps")),
        ("thorough", _("Thorough: 2000 steps")),
    ),
    "methodSelector": (
        ("lora", _("LoRA: small additions")),
        ("adapter", _("Adapters: small layers")),
        ("vanilla", _("Whole weights (large adapter)")),
    ),
    "scopeSelector": (
        ("encoder+decoder", _("Image encoder and mask decoder")),
        ("decoder", _("Mask decoder only")),
    ),
    "headsSelector": (
        ("promptable+automatic", _("Prompts, and finds the labels by itself")),
        ("promptable", _("Prompts only")),
        ("automatic", _("Finds the labels by itself only")),
    ),
    "evidenceSelector": (
        (CROSS_VALIDATION, _("Leaving cases out in turn")),
        (SHOTS, _("Learning from this many cases only")),
        (NO_EVIDENCE, _("Not at all")),
    ),
    "orientationSelector": (
        ("auto", _("As they were acquired")),
        ("axial", _("Axial")),
        ("coronal", _("Coronal")),
        ("sagittal", _("Sagittal")),
        ("all", _("All three")),
    ),
}
_CT_WINDOW = "ct-abdomen"  # of CT, unless the user says otherwise


def fill_menus(ui):
    """Give all selectors their entries."""
    for name, entries in MENUS.items():
        fill_menu(getattr(ui, name), entries)
    fill_menu(ui.deviceSelector, DEVICES)


def settings_of(ui, wanted, all_ct):
    """Read the settings of a training from the widgets.

    Args:
        wanted: labels to learn; none means every label.
        all_ct: whether all cases are CT.

    Returns:
        `TrainingSettings.to_dict()`.

    Raises:
        UserError: the contrast is not a window.
    """
    from SAMFineTuneLib.cases.labelled_case import LabelChoice
    from SAMFineTuneLib.images.intensity_window import choose_window
    from SAMFineTuneLib.models.adapters.tuning_method import Method
    from SAMFineTuneLib.training.training_settings import TrainingSettings

    window = ui.windowEdit.text.strip() or (_CT_WINDOW if all_ct else None)
    if window is not None:
        choose_window(_any_volume(), window)
    evidence, count = chosen_in(ui.evidenceSelector), ui.evidenceSpinBox.value
    rank = ui.rankSpinBox.value
    return TrainingSettings.of_preset(
        chosen_in(ui.presetSelector),
        method=Method(chosen_in(ui.methodSelector), chosen_in(ui.scopeSelector), rank, rank),
        heads=tuple(chosen_in(ui.headsSelector).split("+")),
        labels=LabelChoice(tuple(wanted)),
        shots=max(1, count) if evidence == SHOTS else None,
        folds=0 if evidence == NO_EVIDENCE else (count or None) if evidence == CROSS_VALIDATION else None,
        steps=ui.stepsSpinBox.value or None,
        batch=ui.batchSpinBox.value or None,
        orientation=chosen_in(ui.orientationSelector),
        window=window,
        seed=ui.seedSpinBox.value,
        device=chosen_in(ui.deviceSelector),
    ).to_dict()


def values_of(ui):
    """Read the values of the widgets, to be kept in the scene."""
    chosen = {name: chosen_in(getattr(ui, name)) for name in MENUS}
    return chosen | {name: getattr(ui, name).value for name in _NUMBERS} | {"windowEdit": ui.windowEdit.text}


def show_values(ui, values):
    """Show values that the scene kept; unknown ones, from a newer version, are ignored."""
    for name in MENUS:
        choose_in(getattr(ui, name), values.get(name))
    for name in _NUMBERS:
        if name in values:
            getattr(ui, name).setValue(int(values[name]))
    ui.windowEdit.setText(str(values.get("windowEdit", "")))


_NUMBERS = ("rankSpinBox", "evidenceSpinBox", "stepsSpinBox", "batchSpinBox", "seedSpinBox")


def _any_volume():
    """A volume on which a window can be checked."""
    import numpy as np

    from SAMFineTuneLib.images.volume import Volume

    return Volume(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
