"""The same functions in wider networks, for programs that hard-code the shapes of Stable Diffusion.

They put 32 groups into every GroupNorm, and their VAE and text encoder have one shape. Repeating each hidden channel makes
such shapes of micro's without changing what it computes: a layer that reads repeated channels has its weights repeated and
divided, a layer that writes them has its rows repeated. Normalisation sees the same means and deviations.

    U-Net          twice as wide, 32 groups; context 8 times as wide where it follows the wide text encoder
    VAE            8 times as wide, one idle layer more a block: exactly the shape of SD 1.x
    text encoder   8 times as wide, 12 heads, 8 idle layers more, all of CLIP's rows: exactly CLIP ViT-L/14's

Channels repeat block by block (all, then all again), so that groups and heads keep their members. No group straddles the
seam of a skip connection, because micro's widths are c and 3c.

Shapes: S channels of the small network, W channels of the wide one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..formats import clip_vocab

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from ..families import Base
    from ..formats.kohya import LoraWeight

UNET_TIMES, VAE_TIMES, TEXT_TIMES = 2, 8, 8
CLIP_L_HEADS, CLIP_L_LAYERS = 12, 12
BASE = Path(__file__).parent / "base"


@dataclass(frozen=True)
class Spread:
    """Which small channel each wide channel takes its value from, and times what."""

    source_W: Tensor
    factor_W: Tensor

    def over(self, weight: Tensor, dim: int) -> Tensor:
        """A weight with dimension `dim` spread from S to W."""
        shape = [1] * weight.ndim
        shape[dim] = -1
        return weight.index_select(dim, self.source_W) * self.factor_W.to(weight.dtype).view(shape)

    def times(self, factor: float) -> Spread:
        """The same channels, all multiplied."""
        return replace(self, factor_W=self.factor_W * factor)


def repeat(parts: Sequence[int], times: int) -> Spread:
    """Each part of the channels as often as this, part by part; parts are what a layer reads side by side."""
    starts = [sum(parts[:i]) for i in range(len(parts))]
    source_W = torch.cat([torch.arange(start, start + part).repeat(times) for start, part in zip(starts, parts)])
    return Spread(source_W, torch.ones(len(source_W)))


@dataclass(frozen=True)
class Rule:
    """How one layer is widened; None: that side is no hidden one and stays."""

    inputs: Spread | None
    outputs: Spread | None

    def weight(self, weight: Tensor) -> Tensor:
        """Of a linear or convolution layer."""
        return self.up(self.down(weight))

    def up(self, weight: Tensor) -> Tensor:
        """What it writes (dimension 0): the rows of a weight, a bias, the up matrix of a LoRA."""
        return self.outputs.over(weight, 0) if self.outputs else weight

    def down(self, weight: Tensor) -> Tensor:
        """What it reads (dimension 1): the columns of a weight, the down matrix of a LoRA."""
        return self.inputs.over(weight, 1) if self.inputs else weight


Rules = dict[str, Rule]


def _plain_rule(module: Any, times: int, reads: Sequence[int] | None = None) -> Rule:
    """Both sides hidden. reads: the parts that the layer reads, where they are several."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        parts = reads or [module.weight.shape[1]]
        return Rule(repeat(parts, times).times(1 / times), repeat([module.weight.shape[0]], times))
    return Rule(None, repeat(reads or [module.weight.shape[0]], times))


def _layers(module: nn.Module) -> list[tuple[str, Any]]:
    """The modules that have weights of their own, by name."""
    return [(name, layer) for name, layer in module.named_modules() if "weight" in dict(layer.named_parameters(recurse=False))]


def _widened(small: nn.Module, rules: Rules) -> dict[str, Tensor]:
    """The state dict after its rules."""
    state = {}
    for name, layer in _layers(small):
        for leaf, parameter in layer.named_parameters(recurse=False):
            rule = rules[name]
            wide = rule.weight(parameter) if parameter.ndim > 1 else rule.up(parameter)
            state[f"{name}.{leaf}"] = wide.detach().float().contiguous()
    return state


def _config(module: Any) -> dict[str, Any]:
    return {name: value for name, value in module.config.items() if not name.startswith("_")}


# U-Net


def unet_rules(unet: UNet2DConditionModel, times: int = UNET_TIMES, context_times: int = 1) -> Rules:
    """Rules by module name. context_times: how much wider the text states are that it will be given."""
    seams = _seams(unet)
    rules = {}
    for name, layer in _layers(unet):
        rule = _plain_rule(layer, times, seams.get(name))
        if name == "conv_in":
            rule = replace(rule, inputs=None)
        elif name == "conv_out":
            rule = replace(rule, outputs=None)
        elif name == "time_embedding.linear_1":
            rule = replace(rule, inputs=_same_frequencies(layer.weight.shape[1], times))
        elif name.endswith(("attn2.to_k", "attn2.to_v")):
            rule = replace(rule, inputs=repeat([layer.weight.shape[1]], context_times).times(1 / context_times))
        elif name.endswith("ff.net.0.proj"):  # value and gate of GEGLU, each repeated by itself
            rule = replace(rule, outputs=repeat([layer.weight.shape[0] // 2] * 2, times))
        rules[name] = rule
    return rules


def _seams(unet: UNet2DConditionModel) -> dict[str, list[int]]:
    """For layers of the up blocks that read the hidden channels and a skip side by side: the widths of both."""
    widths, layers = unet.config["block_out_channels"], unet.config["layers_per_block"]
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * (layers + (level < len(widths) - 1))
    seams: dict[str, list[int]] = {}
    hidden = widths[-1]
    for block, width in enumerate(reversed(widths)):
        for layer in range(layers + 1):
            parts = [hidden, skips.pop()]
            seams |= {f"up_blocks.{block}.resnets.{layer}.{name}": parts for name in ("norm1", "conv1", "conv_shortcut")}
            hidden = width
    return seams


def _same_frequencies(width: int, times: int) -> Spread:
    """Sine and cosine features of the time: the wide network has `times` as many frequencies, every such one is an old one."""
    source_W = torch.arange(width * times) // times
    return Spread(source_W, (torch.arange(width * times) % times == 0).float())


def widen_unet(unet: UNet2DConditionModel, times: int = UNET_TIMES, context_times: int = 1) -> UNet2DConditionModel:
    """The same function with `times` the width, the groups and the heads."""
    from diffusers import UNet2DConditionModel
    config = _config(unet)
    config |= {"block_out_channels": [times * width for width in config["block_out_channels"]],
               "norm_num_groups": times * config["norm_num_groups"],
               "attention_head_dim": [times * heads for heads in config["attention_head_dim"]],
               "cross_attention_dim": context_times * config["cross_attention_dim"]}
    with torch.device("meta"):
        wide = UNet2DConditionModel.from_config(config)
    wide.load_state_dict(_widened(unet, unet_rules(unet, times, context_times)), assign=True)
    return wide.eval().requires_grad_(False)


# VAE


def vae_rules(vae: AutoencoderKL, times: int = VAE_TIMES) -> Rules:
    """Rules by module name; pictures and latents stay as they are."""
    rules = {}
    for name, layer in _layers(vae):
        rule = _plain_rule(layer, times)
        if name.endswith("quant_conv"):
            rule = Rule(None, None)
        elif name.endswith("conv_in"):
            rule = replace(rule, inputs=None)
        elif name.endswith("conv_out"):
            rule = replace(rule, outputs=None)
        elif name.endswith("to_q"):  # one head, `times` as wide: products grow by `times`, the scale shrinks by its root
            rule = replace(rule, outputs=repeat([layer.weight.shape[0]], times).times(times ** -0.5))
        rules[name] = rule
    return rules


def widen_vae(vae: AutoencoderKL, times: int = VAE_TIMES) -> AutoencoderKL:
    """The same function in the shape of SD 1.x's VAE: a second layer in each block, which adds nothing."""
    from diffusers import AutoencoderKL
    config = _config(vae)
    config |= {"block_out_channels": [times * width for width in config["block_out_channels"]],
               "norm_num_groups": times * config["norm_num_groups"], "layers_per_block": 2}
    with torch.device("meta"):
        wide = AutoencoderKL.from_config(config)
    wide.load_state_dict(_with_idle(_widened(vae, vae_rules(vae, times)), wide), assign=True)
    return wide.eval().requires_grad_(False)


def _with_idle(state: Mapping[str, Tensor], wide: nn.Module) -> dict[str, Tensor]:
    """A state dict with the layers that it lacks: zeros (ones in normalisation), with which a residual layer adds nothing."""
    norms = (nn.GroupNorm, nn.LayerNorm)
    idle = {f"{name}.{leaf}": torch.full(tuple(parameter.shape), float(isinstance(layer, norms) and leaf == "weight"))
            for name, layer in _layers(wide) for leaf, parameter in layer.named_parameters(recurse=False)
            if f"{name}.{leaf}" not in state}
    return {**state, **idle}


# Text encoder


def full_vocabulary(encoder: CLIPTextModel, clip_ids: Sequence[int]) -> CLIPTextModel:
    """The same encoder with all of CLIP's rows; rows that it does not know are the mean of those it does."""
    rows = encoder.get_input_embeddings().weight.detach()
    table = rows.mean(0, keepdim=True).repeat(clip_vocab.SIZE, 1)
    table[torch.tensor(list(clip_ids))] = rows
    state = encoder.state_dict()
    state[next(name for name in state if name.endswith("token_embedding.weight"))] = table
    return _text_encoder(encoder, state, vocab_size=clip_vocab.SIZE, bos_token_id=clip_vocab.SIZE - 2,
                         eos_token_id=clip_vocab.SIZE - 1, pad_token_id=clip_vocab.SIZE - 1)


def text_rules(encoder: CLIPTextModel, times: int = TEXT_TIMES) -> Rules:
    """Rules by module name: the heads move into wider ones, whose other channels are zero."""
    config = encoder.config
    head = config.hidden_size // config.num_attention_heads
    wide_head = config.hidden_size * times // CLIP_L_HEADS
    heads = _in_wider_heads(config.num_attention_heads, head, wide_head, CLIP_L_HEADS)
    rules = {}
    for name, layer in _layers(encoder):
        rule = _plain_rule(layer, times)
        if isinstance(layer, nn.Embedding):
            rule = Rule(repeat([layer.weight.shape[1]], times), None)
        elif name.endswith("q_proj"):  # the scale is of the head's width
            rule = replace(rule, outputs=heads.times((wide_head / head) ** 0.5))
        elif name.endswith(("k_proj", "v_proj")):
            rule = replace(rule, outputs=heads)
        elif name.endswith("out_proj"):
            rule = replace(rule, inputs=heads)
        rules[name] = rule
    return rules


def _in_wider_heads(count: int, width: int, wide_width: int, wide_count: int) -> Spread:
    channel_W = torch.arange(wide_width * wide_count)
    head_W, within_W = channel_W // wide_width, channel_W % wide_width
    used_W = (head_W < count) & (within_W < width)
    return Spread(torch.where(used_W, head_W * width + within_W, 0), used_W.float())


def widen_text_encoder(encoder: CLIPTextModel, times: int = TEXT_TIMES) -> CLIPTextModel:
    """The same function, its states repeated `times`, in the shape of CLIP ViT-L/14: 12 heads, 12 layers, the last ones idle."""
    config = encoder.config
    return _text_encoder(encoder, _widened(encoder, text_rules(encoder, times)), hidden_size=config.hidden_size * times,
                         intermediate_size=config.intermediate_size * times, projection_dim=config.hidden_size * times,
                         num_attention_heads=CLIP_L_HEADS, num_hidden_layers=CLIP_L_LAYERS)


def _text_encoder(like: CLIPTextModel, state: Mapping[str, Tensor], **shape: int) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel
    with torch.device("meta"):
        wide = CLIPTextModel(CLIPTextConfig(**like.config.to_dict() | shape))
    wide.load_state_dict(_with_idle(state, wide), assign=True)
    for module in wide.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):  # the positions 0, 1, 2...; no state dict has them
            module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
    return wide.eval().requires_grad_(False)


# LoRA


def widen_lora(weights: Sequence[LoraWeight], base: Path = BASE) -> list[LoraWeight]:
    """A LoRA of micro for the wide networks of `write_micro_checkpoint`: the same change of the same function."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel
    rules = {"network": unet_rules(UNet2DConditionModel.from_pretrained(base / "unet"), context_times=TEXT_TIMES),
             "text_encoder_1": text_rules(CLIPTextModel.from_pretrained(base / "text_encoder"))}
    by_part = {part: {_bare(name): rule for name, rule in found.items()} for part, found in rules.items()}
    return [replace(one, down=rule.down(one.down), up=rule.up(one.up))
            for one in weights for rule in [by_part[one.part][_bare(one.module)]]]


def _bare(module: str) -> str:
    return module.removeprefix("text_model.")  # versions of transformers differ in this


# The checkpoint


def write_micro_checkpoint(file: Path) -> list[Path]:
    """Write micro as one file in the original layout, with the .yaml that hosts need beside it; the files written.

    Half precision, about 450 MB. Hosts open it as a Stable Diffusion 1.x of unusual width; LoRAs for it: `widen_lora`.
    """
    from ..formats.checkpoint import open_base
    from ..formats.single_file import write_single_file
    from ..settings import BaseSettings
    return write_single_file(widen_base(open_base(BaseSettings(path="micro"), torch.float32)), file, dtype=torch.float16)


def widen_base(base: Base) -> Base:
    """Micro in the shapes of Stable Diffusion 1.x, as far as other programs insist on them, and with CLIP's own tokenizer."""
    encoder = full_vocabulary(base.text_encoders[0], json.loads((BASE / "clip_token_ids.json").read_text(encoding="utf-8")))
    return replace(base, network=widen_unet(base.network, context_times=TEXT_TIMES), vae=widen_vae(base.vae),
                   text_encoders=[widen_text_encoder(encoder)], tokenizers=[clip_vocab.tokenizer()])
