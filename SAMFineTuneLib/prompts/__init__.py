"""Prompts in RAS: what they are, on which slice planes they lie, and the files that hold them."""

from SAMFineTuneLib.prompts.markups_file import read_markups, write_markups
from SAMFineTuneLib.prompts.on_planes import box_remark, on_planes, prompt_planes
from SAMFineTuneLib.prompts.prompts import (
    Box3DPrompt,
    BoxPrompt,
    MaskPrompt,
    ObliqueView,
    PlanePrompts,
    PointPrompt,
    Prompt,
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
    segment_color,
)
from SAMFineTuneLib.prompts.prompts_file import (
    merge_prompts,
    prompts_from_dict,
    prompts_to_dict,
    read_prompts,
    write_prompts,
)

__all__ = [
    "Box3DPrompt",
    "BoxPrompt",
    "MaskPrompt",
    "ObliqueView",
    "PlanePrompts",
    "PointPrompt",
    "Prompt",
    "PromptSet",
    "ScribblePrompt",
    "SegmentPrompts",
    "box_remark",
    "merge_prompts",
    "on_planes",
    "prompt_planes",
    "prompts_from_dict",
    "prompts_to_dict",
    "read_markups",
    "read_prompts",
    "segment_color",
    "write_markups",
    "write_prompts",
]
