"""The method of a fine-tuning: which tensors are added or trained. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from SAMFineTuneLib.errors import UserError

METHODS = ("lora", "adapter", "vanilla")
SCOPES = ("decoder", "encoder+decoder")
HEADS = ("promptable", "automatic")


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning. Every instance is valid: a wrong value raises `UserError`.

    `rank`, `alpha` and `dropout` are LoRA's, whose scale is alpha / rank; `blocks` are the image encoder's blocks,
    counted from 0, that get LoRA or Adapters. `classes` are the automatic head's, background first.
    """

    method: str = "lora"
    scope: str = "encoder+decoder"
    rank: int = 4
    alpha: float = 4
    dropout: float = 0.0
    blocks: tuple[int, ...] | None = None
    heads: tuple[str, ...] = ("promptable",)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(sorted(set(self.blocks))))
        if problem := _problem(self):
            raise UserError(problem)

    @property
    def trains_encoder(self) -> bool:
        """Whether the method changes the image encoder's embeddings."""
        return self.scope != "decoder" and (self.blocks is None or bool(self.blocks) or self.method == "vanilla")

    def __str__(self) -> str:
        name = {"lora": f"LoRA of rank {self.rank}", "adapter": "Adapters", "vanilla": "whole weights"}[self.method]
        return f"{name}, {' and '.join(self.scope.split('+'))}"


def _problem(method: Method) -> str | None:
    """The first wrong value of a method, as a sentence."""
    for name, allowed in (("method", METHODS), ("scope", SCOPES)):
        if getattr(method, name) not in allowed:
            return f"Unknown {name} {getattr(method, name)!r}; choose one of {', '.join(allowed)}."
    if not method.heads or not set(method.heads) <= set(HEADS) or len(set(method.heads)) < len(method.heads):
        return f"The heads are {method.heads!r}; choose promptable, automatic, or both."
    if "automatic" in method.heads and len(method.classes) < 2:
        return "The automatic head needs the names of its classes: background and at least one more."
    if "automatic" not in method.heads and method.classes:
        return "Classes belong to the automatic head; add it, or leave them out."
    if not all(isinstance(name, str) and name for name in method.classes):
        return "The names of the classes must be texts."
    if isinstance(method.rank, bool) or not isinstance(method.rank, int) or not 1 <= method.rank <= 256:
        return f"The rank of LoRA is {method.rank!r}; choose a whole number from 1 to 256."
    if not isinstance(method.alpha, (int, float)) or not 0 < method.alpha <= 1024:
        return f"The alpha of LoRA is {method.alpha!r}; choose a number above 0."
    if not isinstance(method.dropout, (int, float)) or not 0 <= method.dropout < 1:
        return f"The dropout of LoRA is {method.dropout!r}; choose a number from 0 to below 1."
    if method.blocks is not None and not all(isinstance(index, int) and index >= 0 for index in method.blocks):
        return f"The blocks are {method.blocks!r}; choose whole numbers from 0."
    return None
