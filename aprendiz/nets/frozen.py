"""Layers of a frozen network exchanged for ones that give the same and keep or move less: `exchange` is the one place.

    FrozenConv2d       keeps no input, as PyTorch does for a weight that is never trained; a matrix product where that is quicker
    Residual           diffusers' ResnetBlock2D without a division by 1
    PlainAttention     diffusers' attention likewise, without the choices that these families do not make
    Gated              GEGLU that keeps one tensor and computes the others again

Names of modules and tensors stay, so that LoRAs, key maps and files know nothing of it. A layer whose weight is trained after all
computes as the stock one. What each brings is in `docs/speed.md`.

Shapes: B batch, C channels in, O out, H W size, K = C * kernel height * width, P pixels out, N tokens, T attended to, D features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

# Weights per pixel above which a CPU is quicker with one matrix product over unfolded pixels: oneDNN puts the whole weight into
# another order at every call, which for large weights over few pixels takes longer than the convolution itself.
MANY_WEIGHTS = 40_000
SMALL = 1 << 18  # weights of a convolution below which the input that is kept is not worth the calls that save it

Pair = tuple[int, int]  # height, width


def exchange(network: nn.Module) -> None:
    """Exchange what can be and is worth it, in place; before or after LoRA layers are put over it."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0
    from diffusers.models.resnet import ResnetBlock2D
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Conv2d and _is_plain_convolution(child):
                setattr(owner, name, FrozenConv2d(child))
            elif type(child) is GEGLU:
                setattr(owner, name, Gated(child))
            elif type(child) is Attention and type(child.processor) is AttnProcessor2_0 and _is_plain_attention(child):
                child.set_processor(PlainAttention())  # type: ignore[operator]
    # After its convolutions, so that it takes over what those became.
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is ResnetBlock2D and _is_plain_residual(child):
                setattr(owner, name, Residual(child))


def _is_plain_convolution(layer: nn.Conv2d) -> bool:
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return layer.groups == 1 and layer.dilation == (1, 1) and padded and layer.weight.numel() >= SMALL


class FrozenConv2d(nn.Conv2d):
    """A convolution that keeps nothing but its weight for the way back."""

    def __init__(self, stock: nn.Conv2d) -> None:
        with torch.device("meta"):
            super().__init__(stock.in_channels, stock.out_channels, stock.kernel_size, stock.stride, stock.padding,  # type: ignore[arg-type]
                             bias=stock.bias is not None)
        self.weight, self.bias = stock.weight, stock.bias
        self.train(stock.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad):
            return super().forward(input)
        y: Tensor = _Convolution.apply(input, self.weight, self.bias, self.stride, self.padding)  # type: ignore[no-untyped-call]
        return y


class _Convolution(torch.autograd.Function):
    """Convolution by a frozen weight: gradient of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        if by_product(weight, _pixels(x.shape, stride)):
            return _multiply(x, weight, bias, stride, padding)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BOHW: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        if by_product(weight, _pixels(ctx.shape, ctx.stride)):
            return _multiply_back(grad_BOHW, weight, ctx.shape, ctx.stride, ctx.padding), None, None, None, None
        unseen = grad_BOHW.new_empty(ctx.shape)  # of the input only the shape is looked at
        grad_BCHW = torch.ops.aten.convolution_backward(
            grad_BOHW, unseen, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False))[0]
        return grad_BCHW, None, None, None, None


def by_product(weight: Tensor, pixels: int) -> bool:
    """Whether a convolution is one matrix product over unfolded pixels; `pixels` counts those that come out, of all samples."""
    return (weight.shape[-1] > 1 and weight.numel() > MANY_WEIGHTS * pixels
            and weight.device.type == "cpu" and weight.dtype == torch.float32)


def _pixels(shape: torch.Size, stride: tuple[int, int]) -> int:
    return shape[0] * shape[2] * shape[3] // (stride[0] * stride[1])


def _multiply(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    height, width = ((x_BCHW.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i]) // stride[i] + 1 for i in (0, 1))
    columns_BKP = F.unfold(x_BCHW, weight.shape[2:], padding=padding, stride=stride)
    columns_KP = columns_BKP.transpose(0, 1).flatten(1)
    weight_OK = weight.flatten(1)
    y_OP = torch.mm(weight_OK, columns_KP) if bias is None else torch.addmm(bias[:, None], weight_OK, columns_KP)
    return y_OP.view(-1, len(x_BCHW), height, width).transpose(0, 1).contiguous()


def _multiply_back(grad_BOHW: Tensor, weight: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    columns_KP = torch.mm(weight.flatten(1).t(), grad_BOHW.transpose(0, 1).flatten(1))
    columns_BKP = columns_KP.view(len(columns_KP), shape[0], -1).transpose(0, 1)
    return F.fold(columns_BKP, shape[2:], weight.shape[2:], padding=padding, stride=stride)


def _is_plain_residual(block: ResnetBlock2D) -> bool:
    """As in all of SD: time is added, nothing is scaled, dropped or resized."""
    resized = block.upsample is not None or block.downsample is not None
    return (block.time_embedding_norm == "default" and block.time_emb_proj is not None and not block.skip_time_act and not resized
            and block.output_scale_factor == 1.0 and block.dropout.p == 0.0)


class Residual(nn.Module):
    """Two convolutions, each after norm and activation, the time between them, around a shortcut."""

    def __init__(self, stock: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.conv1, self.time_emb_proj = stock.norm1, stock.conv1, stock.time_emb_proj
        self.norm2, self.conv2, self.conv_shortcut = stock.norm2, stock.conv2, stock.conv_shortcut
        self.nonlinearity = stock.nonlinearity
        self.train(stock.training)

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        h: Tensor = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        h = h + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return h + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


def _is_plain_attention(layer: Any) -> bool:
    """As in all of SD: no norms of its own, no scaling, no residual, no dropping."""
    norms = (layer.group_norm, layer.spatial_norm, layer.norm_cross, layer.norm_q, layer.norm_k)
    return (all(norm is None for norm in norms) and math.isclose(layer.scale, (layer.inner_dim / layer.heads) ** -0.5)
            and layer.rescale_output_factor == 1.0 and not layer.residual_connection and layer.to_out[1].p == 0.0)


class PlainAttention:
    """Attention of a layer that does nothing special, called as diffusers calls it."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
        context_BTD = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        count, length, heads = *hidden_states.shape[:2], attn.heads
        query, key, value = attn.to_q(hidden_states), attn.to_k(context_BTD), attn.to_v(context_BTD)
        query, key, value = (one.view(count, -1, heads, one.shape[-1] // heads).transpose(1, 2) for one in (query, key, value))
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[2], count).view(count, heads, -1, key.shape[2])
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        out_BND: Tensor = attn.to_out[0](attended.transpose(1, 2).reshape(count, length, -1))
        return out_BND


class Gated(nn.Module):
    """GEGLU (Shazeer 2020): half of the projection, times the GELU of the other half."""

    def __init__(self, stock: GEGLU) -> None:
        super().__init__()
        self.proj = stock.proj
        self.train(stock.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        y: Tensor = _Gate.apply(self.proj(hidden_states))  # type: ignore[no-untyped-call]
        return y


class _Gate(torch.autograd.Function):
    """value * gelu(gate) of a joined tensor, which alone is kept."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:
        ctx.save_for_backward(joined)
        value, gate = joined.chunk(2, -1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (joined,) = ctx.saved_tensors
        value, gate = joined.chunk(2, -1)
        return torch.cat((F.gelu(gate).mul_(grad), torch.ops.aten.gelu_backward(grad, gate).mul_(value)), -1)
