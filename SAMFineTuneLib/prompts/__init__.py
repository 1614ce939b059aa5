"""Prompts in RAS: what they are, on which slice planes they lie, and the files that hold them."""

from SAMFineTuneLib.prompts.on_planes import on_planes, prompt_planes
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
    "on_planes",
    "prompt_planes",
    "segment_color",
]
