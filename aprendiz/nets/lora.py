"""LoRA layers (Hu et al. 2021): y = W x + up(down(x)) alpha / rank, for linear and convolution layers.

The layer keeps the frozen module inside and computes in its precision: the two small matrices are parameters of that precision
(working copies of float32 masters, see `arena`), so nothing is cast per call. The scale multiplies the rank-wide activation, and
not at all where it is 1, the default. Linear layers run forward and backward as one function each, whose products are added where
they belong rather than beside each other.

Shapes: r rank; linear down (r, in), up (out, r); convolution down (r, in, kh, kw), up (out, r, 1, 1); N rows, D in, E out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from ..families import Base
    from ..formats.kohya import LoraWeight


class LoraLayer(nn.Module):
    """A frozen linear or convolution layer with a low-rank update beside it.

    keep_Br: which ranks count for each sample of the batch (drop-out, scaled to keep the mean); None keeps all.
    """

    def __init__(self, frozen: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        self.frozen = frozen
        self.scale = scale
        self.on = True
        self.keep_Br: Tensor | None = None
        if isinstance(frozen, nn.Linear):
            shapes = (rank, frozen.in_features), (frozen.out_features, rank)
        elif isinstance(frozen, nn.Conv2d) and frozen.groups == 1:
            shapes = (rank, frozen.in_channels, *frozen.kernel_size), (frozen.out_channels, rank, 1, 1)
        else:
            raise TypeError(f"no LoRA for {type(frozen).__name__}")
        self.down = nn.Parameter(torch.empty(shapes[0]))
        self.up = nn.Parameter(torch.zeros(shapes[1]))

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for callers that ask a layer for its precision."""
        return self.frozen.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.frozen.bias  # type: ignore[return-value]

    @property
    def _joined(self) -> bool:
        """Whether frozen layer and update run as one function: while learning, where the frozen layer is a plain linear one.

        Without gradients there is no work to save, and hooks on the frozen layer are to see it run.
        """
        plain = type(self.frozen) is nn.Linear and not self.weight.requires_grad
        return plain and self.on and self.keep_Br is None and torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        if self._joined:
            joined: Tensor = _LoraLinear.apply(x, self.weight, self.bias, self.down, self.up, self.scale)  # type: ignore[no-untyped-call]
            return joined
        y: Tensor = self.frozen(x)
        if not self.on:
            return y
        if isinstance(self.frozen, nn.Linear):
            low = F.linear(x, self.down)
            channels = -1
        else:
            low = F.conv2d(x, self.down, None, self.frozen.stride, self.frozen.padding, self.frozen.dilation)  # type: ignore[arg-type]
            channels = 1
        if self.scale != 1.0:
            low = low * self.scale
        if self.keep_Br is not None and torch.is_grad_enabled():  # samples and validation use every rank
            # A text encoder sees each prompt in chunks.
            keep_Br = self.keep_Br.repeat_interleave(low.shape[0] // self.keep_Br.shape[0], 0)
            shape = [low.shape[0]] + [1] * (low.ndim - 1)
            shape[channels] = keep_Br.shape[1]
            low = low * keep_Br.view(shape)
        return y + (F.linear(low, self.up) if channels == -1 else F.conv2d(low, self.up))


class _LoraLinear(torch.autograd.Function):
    """y = x W' + b + scale (x down') up', with W and b frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        low_Nr = torch.mm(x_ND, down.t())
        if scale != 1.0:
            low_Nr.mul_(scale)
        y_NE = F.linear(x_ND, weight, bias).addmm_(low_Nr, up.t())
        ctx.save_for_backward(x_ND, low_Nr, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NE.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, low_Nr, weight, down, up = ctx.saved_tensors
        grad_NE = grad.reshape(-1, grad.shape[-1])
        grad_low_Nr = torch.mm(grad_NE, up)
        if ctx.scale != 1.0:
            grad_low_Nr.mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(grad_NE, weight).addmm_(grad_low_Nr, down).view(ctx.shape)
        return grad_x, None, None, torch.mm(grad_low_Nr.t(), x_ND), torch.mm(grad_NE.t(), low_Nr), None


def wrap(module: nn.Module, names: Iterable[str], rank: int, scale: float, generator: torch.Generator) -> dict[str, LoraLayer]:
    """Put LoRA layers over the named layers of a module; down drawn as in sd-scripts (Kaiming uniform, a = sqrt 5), up zero."""
    layers = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        layer = LoraLayer(owner.get_submodule(leaf), rank, scale)
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (1 + 5)) / math.sqrt(layer.down[0].numel())
        with torch.no_grad():
            layer.down.uniform_(-bound, bound, generator=generator)
        setattr(owner, leaf, layer)
        layers[name] = layer
    return layers


def unwrap(module: nn.Module, names: Iterable[str]) -> None:
    """Take the LoRA layers off again, leaving the frozen ones."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        layer = owner.get_submodule(leaf)
        assert isinstance(layer, LoraLayer)
        setattr(owner, leaf, layer.frozen)


def delta(down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """The update itself, up @ down alpha / rank, in float32 and in the shape of the layer's weight."""
    product = up.float().flatten(1) @ down.float().flatten(1) * (alpha / down.shape[0])
    return product if down.ndim == 2 else product.view(up.shape[0], *down.shape[1:])


def fold(base: Base, weights: Sequence[LoraWeight], scale: float) -> Callable[[], None]:
    """Add LoRA weights to the base's own, in place, and return what takes them off again, bit for bit."""
    parts = base.parts()
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for one in weights:
            layer = parts[one.part].get_submodule(one.module)
            target = layer.weight
            assert isinstance(target, Tensor)
            kept.append((target, target.clone()))
            change = delta(one.down.to(target.device), one.up.to(target.device), one.alpha) * scale
            target.copy_(target.float() + change.view(target.shape))

    def undo() -> None:
        with torch.no_grad():
            for target, original in reversed(kept):
                target.copy_(original)

    return undo
