"""One flat buffer for everything that is trained: masters, gradients, moving average; the parameters are views.

Clipping, the optimizer, the all-reduce, saving and resuming are then a few operations on a few tensors. Masters are
float32. Where the network computes in another precision, the parameters are views of a second, working buffer, and
`collect` adds their gradients to the float32 ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..methods import Part


class Arena:
    """The trained tensors of all parts, in order. `slices` gives each part's (start, stop) in the flat buffers."""

    def __init__(self, parts: Sequence[Part], device: torch.device, dtype: torch.dtype) -> None:
        self.parts = list(parts)
        self.names = [name for part in parts for name in part.tensors]
        self.slices: dict[str, tuple[int, int]] = {}
        parameters = [p for part in parts for p in part.tensors.values()]
        total = sum(p.numel() for p in parameters)
        self.master = torch.empty(total, device=device)
        self.gradient = torch.zeros_like(self.master)
        split = dtype != torch.float32
        self.working = torch.empty(total, device=device, dtype=dtype) if split else self.master
        self.working_gradient = torch.zeros_like(self.working) if split else self.gradient
        self._spans: dict[str, tuple[int, torch.Size]] = {}
        start = 0
        for part in parts:
            first = start
            for name, parameter in part.tensors.items():
                stop = start + parameter.numel()
                self._spans[name] = (start, parameter.shape)
                self.master[start:stop].copy_(parameter.detach().flatten())
                start = stop
            self.slices[part.name] = (first, start)
        self.reattach()

    def reattach(self) -> None:
        """Make the parameters views of the buffers; also after a module that holds them was moved, which gives it copies."""
        for part in self.parts:
            for name, parameter in part.tensors.items():
                start, shape = self._spans[name]
                stop = start + shape.numel()
                parameter.grad = None
                parameter.data = self.working[start:stop].view(shape)
                parameter.grad = self.working_gradient[start:stop].view(shape)
                parameter.requires_grad_(True)
        self.refresh()

    @contextlib.contextmanager
    def showing(self, flat: Tensor) -> Iterator[None]:
        """While the network computes with other values (a moving average), for samples and validation; free for the masters."""
        if flat is self.master:  # what it computes with is theirs already
            yield
            return
        before = self.working.clone()
        try:
            self.working.copy_(flat)
            yield
        finally:
            self.working.copy_(before)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The trained tensors by name as views of a flat buffer (`master`, a moving average...)."""
        return {name: flat[start:start + shape.numel()].view(shape) for name, (start, shape) in self._spans.items()}

    def zero(self) -> None:
        """Forget the gradients before a step."""
        self.gradient.zero_()

    def collect(self) -> None:
        """Add the working gradients of a micro-batch to the float32 ones."""
        if self.working is not self.master:
            self.gradient.add_(self.working_gradient)
            self.working_gradient.zero_()

    def refresh(self) -> None:
        """Bring the working copies up to date after the masters changed."""
        if self.working is not self.master:
            self.working.copy_(self.master)

    def norm(self) -> Tensor:
        """Length of the whole gradient, on the device."""
        return torch.linalg.vector_norm(self.gradient)

    def clip(self, norm: Tensor, longest: float) -> None:
        """Shorten the gradient to at most `longest`, without asking the device for its length."""
        self.gradient.mul_((longest / (norm + 1e-6)).clamp(max=1.0))
