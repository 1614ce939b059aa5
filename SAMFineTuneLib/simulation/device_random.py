"""Random numbers drawn where synthetic pictures are: on the processor or on the graphics card."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Random:
    """All numbers follow from `seed`, equal each time on the same kind of device.

    `shared` draws what all pictures of a batch have in common, such as the number of turns of a loop.
    """

    def __init__(self, seed: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.shared = np.random.default_rng(seed)
        self._generator = torch.Generator(self.device)
        self._generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers from `low` to `high`."""
        return low + (high - low) * torch.rand(shape, generator=self._generator, device=self.device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers from `low` to `high` whose logarithms are uniform."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """Numbers of mean 0 and standard deviation 1."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with `probability`."""
        return torch.rand(shape, generator=self._generator, device=self.device) < probability

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers `low` to `high - 1`."""
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)

    def gumbel(self, *shape: int) -> Tensor:
        """Gumbel noise: added to logarithms of weights, it makes the largest sum a draw by weight."""
        return -torch.empty(shape, device=self.device).exponential_(generator=self._generator).log()
