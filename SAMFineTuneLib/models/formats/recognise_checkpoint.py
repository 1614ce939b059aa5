"""Recognises a checkpoint file: wrapper, prefix, architecture and sizes, and whether every tensor fits.

The architecture follows from names and shapes. The network is built without memory (on PyTorch's meta device), and its
tensors are compared with the file's one by one: a file that fits only in part is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.formats.checkpoint import read_checkpoint, unwrap
from SAMFineTuneLib.models.formats.finetune_sam_lora import merge_lora
from SAMFineTuneLib.models.spec import ARCHITECTURES
from SAMFineTuneLib.typed_json import loaded
from SAMFineTuneLib.wording import counted, some_names

if TYPE_CHECKING:
    from torch import Tensor, nn

_MASK_TOKENS = "mask_decoder.mask_tokens.weight"
# Names of an image encoder's first tensor; what precedes one of them in a file is a prefix.
_MARKERS = ("patch_embed.proj.weight", "patch_embed.seq.0.c.weight", "patch_embed.stride2.0.weight")
# Tensors that segmenting never uses: a classification head, tables, finetune-SAM's branch for 3-D input.
_IDLE = re.compile(
    r"image_encoder\.(norm_head|head)\..+|.*\.attn\.(attention_bias_idxs|ab)|.*\.Depth_Adapter\..+|pixel_(mean|std)"
)
_FROM_0_TO_1: dict[str, Any] = {"pixel_range": "minmax", "pixel_mean": (0,) * 3, "pixel_std": (1,) * 3}
_PIXELS: dict[str, dict[str, Any]] = {
    "lite_medsam": {"interpolation": "area", **_FROM_0_TO_1},
    "sam_med2d": {"resize": "squash", "interpolation": "nearest"},
    "finetune_sam": {"resize": "squash"},
    "compact": {
        "pixel_mean": (110.0,), "pixel_std": (60.0,), "channels": 1, "coordinates": "centred", "zoom": True,
        "ranks_all": True, "one_piece": True,
    },
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Recognition:
    """A recognised checkpoint file. Tensor names are SAM's own, without the file's prefix."""

    path: Path
    architecture: str
    wrapper: str
    """The key under which the file keeps its state dict; empty when the file is the state dict."""
    prefix: str
    """The common beginning of the tensors' names in the file; mostly empty."""
    input_size: int
    embedding_size: int
    low_res_size: int
    channels: int
    mask_tokens: int
    state_dict: Mapping[str, Tensor]
    """The tensors for the network, complete only when `problems` is empty."""
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    """Tensors that the network does not have."""
    misshapen: tuple[str, ...]
    """Tensors of another shape than the network's, as `name (shape) instead of (shape)`."""
    ignored: tuple[str, ...]
    """Known tensors and entries that are not needed: classification heads, optimiser states."""
    lora: tuple[str, ...] = ()
    """Layers whose LoRA was merged into their weights."""
    settings: Mapping[str, Any] | None = None
    """finetune-SAM's `args.json` from beside the file."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the file cannot be loaded, as clauses; empty when every tensor fits."""
        kinds = (
            (self.missing, "it lacks {}"),
            (self.misshapen, "it has {} of another shape"),
            (self.unexpected, "it has {} that the network does not have"),
        )
        return tuple(text.format(_tensors(names)) for names, text in kinds if names)

    @property
    def encoder_only(self) -> bool:
        """Whether the file has an image encoder only."""
        return bool(self.matched) and all(name.startswith("image_encoder.") for name in self.matched)

    def require_fit(self) -> None:
        """Raise UserError naming the tensors unless the file is complete and all its values are finite."""
        if not self.problems:
            import torch

            broken = [name for name, value in self.state_dict.items() if not torch.isfinite(value).all()]
            if not broken:
                return
            raise UserError(
                f"{self.path} holds values that are not numbers, in {_tensors(broken)}: its training failed or the "
                "file is damaged; use an earlier checkpoint or another copy."
            )
        title = ARCHITECTURES[self.architecture]
        if self.encoder_only and not self.misshapen and not self.unexpected:
            raise UserError(
                f"{self.path} holds only the image encoder of {title}; {self.problems[0]}: give a complete checkpoint "
                "of the same size as its base, whose prompt encoder and mask decoder complete it."
            )
        raise UserError(f"{self.path} looks like {title}, but does not fit: {'; '.join(self.problems)}.")

    def spec_fields(self) -> dict[str, Any]:
        """Fields of a `ModelSpec` that follow from the file.

        The pixel rule is the usual one of the architecture; a file cannot tell another (MedSAM has SAM's tensors, but
        other pixels).
        """
        measured = ("architecture", "input_size", "embedding_size", "low_res_size", "channels")
        fields = {name: getattr(self, name) for name in measured} | _PIXELS.get(self.architecture, {})
        if self.architecture == "finetune_sam":
            if (self.settings or {}).get("normalize_type") == "medsam":
                fields |= _FROM_0_TO_1
            # The authors build one token more than classes and never read the first.
            fields["classes"] = ("background", *(f"class {i}" for i in range(1, self.mask_tokens - 1)))
        return fields

    def summary(self) -> str:
        """A few lines for users: the kind of file, the tensors that match, and those that are not used."""
        lines = [f"{ARCHITECTURES[self.architecture]}, input {self.input_size} x {self.input_size} pixels"]
        if self.wrapper or self.prefix:
            lines.append(f"wrapped in {self.wrapper!r}, names begin with {self.prefix!r}")
        lines.append(f"{len(self.matched)} tensors match")
        if self.lora:
            lines.append(f"LoRA merged into {len(self.lora)} layers")
        if self.ignored:
            lines.append(f"not used: {some_names(self.ignored)}")
        return "\n".join(lines + [f"does not fit: {problem}" for problem in self.problems])


def recognise(path: str | Path, base: str | Path | None = None) -> Recognition:
    """Recognise a checkpoint file.

    Args:
        path: the file.
        base: a complete checkpoint, whose prompt encoder and mask decoder complete a file with an image encoder only.

    Returns:
        The recognised file. `problems` says what does not fit; `require_fit` raises it.

    Raises:
        UserError: when the file is not a known kind of checkpoint.
    """
    path = Path(path)
    wrapper, tensors, others = unwrap(read_checkpoint(path), path)  # raises a sentence if PyTorch is missing
    from torch import nn

    prefix, state = _plain_names(tensors, path)
    _require_weights(state, path)
    state, lora = merge_lora(state)
    idle = sorted(name for name in state if _IDLE.fullmatch(name))
    for name in idle:
        del state[name]
    own = set(state)
    if base is not None:
        state |= _rest_of(base, state, path)
    tokens = state[_MASK_TOKENS].shape[0] if _MASK_TOKENS in state else 4
    settings = _settings(path, tokens)
    finetuned = bool(lora or settings) or tokens != 4 or any("_Adapter." in name for name in state)
    try:
        architecture, network = build_network(state, finetuned)
    except UserError as error:
        raise UserError(f"{path} cannot be loaded: {error}") from error
    if any(".Adapter.channel." in name for name in state):
        architecture = "sam_med2d"
    elif finetuned:
        architecture = "finetune_sam"
    stem = next(module for module in network.image_encoder.modules() if isinstance(module, nn.Conv2d))
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    misshapen = {name for name, shape in expected.items() if name in state and tuple(state[name].shape) != shape}
    fitting = {name: state[name] for name in expected if name in state and name not in misshapen}
    return Recognition(
        path=path,
        architecture=architecture,
        wrapper=wrapper,
        prefix=prefix,
        input_size=network.image_encoder.img_size,
        embedding_size=network.grid_size,
        low_res_size=4 * network.grid_size,
        channels=stem.in_channels,
        mask_tokens=tokens,
        state_dict=fitting,
        matched=tuple(name for name in fitting if name in own),
        missing=tuple(name for name in expected if name not in state),
        unexpected=tuple(name for name in state if name not in expected),
        misshapen=tuple(f"{name} {tuple(state[name].shape)} instead of {expected[name]}" for name in sorted(misshapen)),
        ignored=(*idle, *others),
        lora=lora,
        settings=settings,
    )


def build_network(state: Mapping[str, Tensor], finetuned: bool = False) -> tuple[str, nn.Module]:
    """Build the network that fits tensors with SAM's names, without memory for its weights.

    Args:
        state: the tensors; load them with `load_state_dict(state, assign=True)`.
        finetuned: build finetune-SAM's variant, whose windows differ and whose tensors may look just like SAM's.

    Returns:
        The architecture and the network.
    """
    import torch

    from SAMFineTuneLib.models.architectures import tuning_layers
    from SAMFineTuneLib.models.architectures.class_head import TOKENS, add_class_head

    with torch.device("meta"):
        if "image_encoder.patch_embed.stride2.0.weight" in state:
            from SAMFineTuneLib.models.architectures.compact import CompactModel

            name, network = "compact", CompactModel()
        else:
            from SAMFineTuneLib.models.architectures.sam import build_sam

            name, network = build_sam(state, finetuned)
        # The Adapters and the class head that a checkpoint merged by this library keeps.
        tuning_layers.add_bottlenecks_of(network, state)
        if TOKENS in state:
            add_class_head(network, len(state[TOKENS]))
        return name, network.eval()


def _plain_names(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """The prefix of a file's names, and its tensors under SAM's names."""
    marked = [(name, m) for name in tensors for m in _MARKERS if name == m or name.endswith(f".{m}")]
    if not marked:
        if any(".trunk." in name for name in tensors):
            raise UserError(f"{path} is a SAM 2 checkpoint, which this version cannot run yet.")
        raise UserError(f"{path} is not a known SAM: its tensors are {some_names(tuple(tensors))}.")
    whole = marked[0][0].removesuffix(marked[0][1])
    prefix = whole.removesuffix("image_encoder.")
    bare = "" if prefix != whole else "image_encoder."
    plain = {}
    for name, tensor in tensors.items():
        plain[bare + name.removeprefix(prefix) if name.startswith(prefix) else name] = tensor
    return prefix, plain


def _require_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError for tensors that are quantised, counts, complex, sparse, or without values."""
    import torch

    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    odd = [name for name, value in state.items()
           if value.dtype not in kinds or value.layout is not torch.strided or value.is_meta]  # fmt: skip
    odd = [name for name in odd if not _IDLE.fullmatch(name) and not name.endswith(".num_batches_tracked")]
    if odd:
        raise UserError(
            f"{path} holds weights that are not plain floating point numbers, in {_tensors(odd)}: save the model's "
            "state dict as it was trained."
        )


def _rest_of(base: str | Path, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Prompt encoder and mask decoder of the checkpoint `base`, for an image encoder alone."""
    if any(name.startswith(("prompt_encoder.", "mask_decoder.")) for name in state):
        raise UserError(f"{path} is more than an image encoder, so it takes no base.")
    complete = recognise(base)
    complete.require_fit()
    name = "image_encoder.pos_embed"
    if name not in state or name not in complete.state_dict:
        raise UserError(f"{complete.path} cannot complete {path}: only SAM's ViT encoders take a base.")
    if state[name].shape[1] != complete.embedding_size:
        raise UserError(
            f"{complete.path} cannot complete {path}: its embedding has {complete.embedding_size} x "
            f"{complete.embedding_size} cells, the image encoder's {state[name].shape[1]} x {state[name].shape[2]}."
        )
    return {name: value for name, value in complete.state_dict.items() if not name.startswith("image_encoder.")}


def _settings(path: Path, mask_tokens: int) -> dict[str, Any] | None:
    """finetune-SAM's `args.json` beside the file, when it describes a network with this many mask tokens."""
    try:
        settings = loaded((path.parent / "args.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.parent / 'args.json'}, which says how pictures are prepared for {path.name}, cannot be read "
            f"({error}); get it again, or move the checkpoint to a folder of its own."
        ) from error
    known = isinstance(settings, dict) and "finetune_type" in settings
    if not known or settings.get("num_cls") != mask_tokens - 1:
        return None
    if settings.get("thd"):
        raise UserError(f"{path} was trained by finetune-SAM on 3-D input (thd in args.json), which cannot be run yet.")
    return settings


def _tensors(names: Sequence[str]) -> str:
    """`2 tensors (a, b)`."""
    return f"{counted(len(names), 'tensor')} ({some_names(names)})"
