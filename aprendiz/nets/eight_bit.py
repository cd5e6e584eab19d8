"""Frozen layers in 8 bits: an int8 matrix and one scale for each output channel, restored to the layer's precision when used.

w = q s with q in -127..127 and s the channel's largest |w| / 127, so no weight is further than s / 2 from its own: for
bell-shaped weights about 1 % of a channel's length. Activations are not quantised, and the gradient is that of the layer as
stored; neither the restored weight nor, in a convolution, its input is kept for it. Shapes: O output channels, I inputs to each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

SMALLEST = 4096  # weights; what is smaller is not worth it


class EightBitLinear(nn.Linear):
    """A frozen linear layer in 8 bits. `weight` is made anew each time it is asked for: writing into it changes nothing."""

    stored: Tensor
    scale_O: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        _take_over(self, layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return restored(self.stored, self.scale_O)

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.stored, self.scale_O, self.bias)  # type: ignore[no-any-return, no-untyped-call]


class EightBitConv2d(nn.Conv2d):
    """A frozen convolution in 8 bits. `weight` is made anew each time it is asked for: writing into it changes nothing."""

    stored: Tensor
    scale_O: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation
        self.transposed, self.output_padding, self.padding_mode = layer.transposed, layer.output_padding, layer.padding_mode
        _take_over(self, layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return restored(self.stored, self.scale_O)

    def forward(self, x: Tensor) -> Tensor:
        how = self.stride, self.padding, self.dilation, self.groups
        return _Conv2d.apply(x, self.stored, self.scale_O, self.bias, how)  # type: ignore[no-any-return, no-untyped-call]


def _take_over(new: EightBitLinear | EightBitConv2d, layer: nn.Linear | nn.Conv2d) -> None:
    stored, scale_O = quantised(layer.weight.detach())
    new.register_buffer("stored", stored)
    new.register_buffer("scale_O", scale_O)
    new.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
    new.train(layer.training)


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 in the weight's shape, and the scale of each output channel in the weight's precision."""
    flat_OI = weight.flatten(1).float()
    # The scale is rounded before it is used, so that it is the one that the integers are multiplied by later. It never becomes 0.
    scale_O = (flat_OI.abs().amax(1) / 127).clamp(min=1e-7).to(weight.dtype)
    stored = (flat_OI / scale_O.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return stored.view(weight.shape), scale_O


def restored(stored: Tensor, scale_O: Tensor) -> Tensor:
    """The weight in the scale's precision."""
    return stored.to(scale_O.dtype) * scale_O.view(-1, *[1] * (stored.ndim - 1))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, scale_O: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(stored, scale_O)
        return F.linear(x, restored(stored, scale_O), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stored, scale_O = ctx.saved_tensors
        return gradient @ restored(stored, scale_O), None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, scale_O: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(stored, scale_O)
        ctx.shape, ctx.how = x.shape, how
        return F.conv2d(x, restored(stored, scale_O), bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stored, scale_O = ctx.saved_tensors
        back = conv2d_input(ctx.shape, restored(stored, scale_O), gradient, *ctx.how)
        return back, None, None, None, None


def fits(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether a layer can be kept in 8 bits, and is worth it."""
    if isinstance(layer, (EightBitLinear, EightBitConv2d)) or not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return False
    plain = not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))
    return plain and not layer.weight.requires_grad and layer.weight.is_floating_point() and layer.weight.numel() >= SMALLEST


def store(chosen: Iterable[nn.Module]) -> float:
    """Put the frozen layers inside these modules into 8 bits, where they are. The largest relative error of any of them.

    The error is the length of a layer's change over that of its weight.
    """
    worst = 0.0
    for module in chosen:
        for name, layer in list(module.named_modules()):
            if not name or not fits(layer):
                continue
            parent, _, leaf = name.rpartition(".")
            made = EightBitLinear(layer) if isinstance(layer, nn.Linear) else EightBitConv2d(layer)
            worst = max(worst, relative_error(layer.weight, made.weight))
            setattr(module.get_submodule(parent), leaf, made)
    return worst


def relative_error(exact: Tensor, near: Tensor) -> float:
    """|near - exact| / |exact|, in float32."""
    length = torch.linalg.vector_norm(exact.detach().float())
    return float(torch.linalg.vector_norm(near.float() - exact.detach().float()) / length) if float(length) else 0.0


def saved(module: nn.Module) -> int:
    """Bytes that `store` would save on the frozen layers inside a module."""
    total = 0
    for name, layer in module.named_modules():
        if name and fits(layer):
            weight = layer.weight
            total += weight.numel() * (weight.element_size() - 1) - len(weight) * weight.element_size()
    return total
