"""A fine-tuning that goes on from an earlier adapter: it begins with its weights, and refuses one that does not fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("scipy")

from case_files import blob, case_folder, image_of, save  # noqa: E402
from tuned_models import CLASSES, NETWORKS, folder_of, load_adapter, trained_adapter  # noqa: E402

from SAMFineTuneLib.cases.cases import find_cases  # noqa: E402
from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.training.fine_tuning import Stopped, fine_tune, make_plan  # noqa: E402
from SAMFineTuneLib.training.plan import attached  # noqa: E402
from SAMFineTuneLib.training.training_settings import Settings  # noqa: E402
