"""Train, how: the preset, and what is under Advanced, as settings of a training."""

METHODS = ("lora", "adapter", "vanilla")
SCOPES = ("encoder+decoder", "decoder")
HEADS = (("promptable", "automatic"), ("promptable",), ("automatic",))
CROSS_VALIDATION, SHOTS, NO_EVIDENCE = range(3)
ORIENTATIONS = ("auto", "axial", "coronal", "sagittal", "all")
PRESETS = ("quick", "balanced", "thorough")
DEVICES = ("auto", "cpu", "cuda")
_CT_WINDOW = "ct-abdomen"  # what the panel sees a CT in unless told otherwise


def settings_of(ui, wanted, all_ct):
    """Settings.to_dict() of what the widgets say; `wanted` labels, none for every label. UserError."""
    from SAMFineTuneLib.images.window import choose_window
    from SAMFineTuneLib.models.method import Method
    from SAMFineTuneLib.training.cases import LabelChoice
    from SAMFineTuneLib.training.settings import Settings

    window = ui.windowEdit.text.strip() or (_CT_WINDOW if all_ct else None)
    if window is not None:
        choose_window(_any_volume(), window)
    evidence, count = ui.evidenceSelector.currentIndex, ui.evidenceSpinBox.value
    rank = ui.rankSpinBox.value
    return Settings.of_preset(
        PRESETS[ui.presetSelector.currentIndex],
        method=Method(METHODS[ui.methodSelector.currentIndex], SCOPES[ui.scopeSelector.currentIndex], rank, rank),
        heads=HEADS[ui.headsSelector.currentIndex],
        labels=LabelChoice(tuple(wanted)),
        shots=max(1, count) if evidence == SHOTS else None,
        folds=0 if evidence == NO_EVIDENCE else (count or None) if evidence == CROSS_VALIDATION else None,
        steps=ui.stepsSpinBox.value or None,
        batch=ui.batchSpinBox.value or None,
        orientation=ORIENTATIONS[ui.orientationSelector.currentIndex],
        window=window,
        seed=ui.seedSpinBox.value,
        device=DEVICES[ui.deviceSelector.currentIndex],
    ).to_dict()


def values_of(ui):
    """What the widgets say, to be kept in the scene."""
    chosen = {name: getattr(ui, name).currentIndex for name in _SELECTORS}
    return chosen | {name: getattr(ui, name).value for name in _NUMBERS} | {"windowEdit": ui.windowEdit.text}


def show_values(ui, values):
    """Put them back; what a newer version has added is left out."""
    for name in _SELECTORS:
        getattr(ui, name).setCurrentIndex(int(values.get(name, 0)))
    for name in _NUMBERS:
        if name in values:
            getattr(ui, name).setValue(int(values[name]))
    ui.windowEdit.setText(str(values.get("windowEdit", "")))


_SELECTORS = ("presetSelector", "methodSelector", "scopeSelector", "headsSelector", "evidenceSelector",
              "orientationSelector")  # fmt: skip
_NUMBERS = ("rankSpinBox", "evidenceSpinBox", "stepsSpinBox", "batchSpinBox", "seedSpinBox")


def _any_volume():
    """Something to try a window on."""
    import numpy as np

    from SAMFineTuneLib.images.volume import Volume

    return Volume(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
