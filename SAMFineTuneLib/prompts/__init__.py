"""Prompts in RAS: their kinds, the slice planes on which they lie, and the files that hold them."""

# Importing a kind registers it. Their order here is that of the panel's tools.
from SAMFineTuneLib.prompts.point_prompt import PointPrompt  # isort: skip
from SAMFineTuneLib.prompts.box_prompts import Box3DPrompt, BoxPrompt  # isort: skip
from SAMFineTuneLib.prompts.scribble_prompt import ScribblePrompt  # isort: skip
from SAMFineTuneLib.prompts.lasso_prompt import LassoPrompt  # isort: skip
from SAMFineTuneLib.prompts.mask_prompt import MaskPrompt  # isort: skip
from SAMFineTuneLib.prompts.markups_file import read_markups, write_markups
from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, planes_of
from SAMFineTuneLib.prompts.prompt_kind import Prompt
from SAMFineTuneLib.prompts.prompt_set import (
    LARGEST_VALUE,
    ObliqueView,
    PromptSet,
    SegmentPrompts,
    merge_prompts,
    prompt_planes,
    segment_color,
)
from SAMFineTuneLib.prompts.prompts_file import prompts_from_dict, prompts_to_dict, read_prompts, write_prompts

__all__ = [
    "LARGEST_VALUE",
    "Box3DPrompt",
    "BoxPrompt",
    "LassoPrompt",
    "MaskPrompt",
    "ObliqueView",
    "PlanePrompts",
    "PointPrompt",
    "Prompt",
    "PromptSet",
    "ScribblePrompt",
    "SegmentPrompts",
    "merge_prompts",
    "planes_of",
    "prompt_planes",
    "prompts_from_dict",
    "prompts_to_dict",
    "read_markups",
    "read_prompts",
    "segment_color",
    "write_markups",
    "write_prompts",
]
