"""The original single-file layout of Stable Diffusion 1, 2 and XL, as its own programs and all hosts read it.

Where each tensor of diffusers' and transformers' modules stands in such a file, and what the shapes in the file tell of a model's
configuration. One description serves reading and writing. Standard library only.

    U-Net          model.diffusion_model.     input_blocks, middle_block, output_blocks (`names`)
    VAE            first_stage_model.         its attention as 1 x 1 convolutions
    text encoders  cond_stage_model.transformer.text_model.   CLIP-L as transformers names it (SD1)
                   cond_stage_model.model.    OpenCLIP: q, k, v in one matrix, text projection transposed (SD2)
                   conditioner.embedders.0 and .1, each of these in turn (SDXL)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import names
from .weights import Shapes

NETWORK, VAE = "model.diffusion_model.", "first_stage_model."
OWN = "aprendiz.shapes"  # metadata of ours: what shapes cannot tell, for models of unusual widths
GROUPS = 32              # of every GroupNorm, in all programs that read this layout


@dataclass(frozen=True)
class TextLayout:
    """One text encoder: where it stands in a file and in a diffusers folder, and what its shapes do not tell.

    unused: last layers which are in the file and which the network never sees; diffusers leaves them out.
    """

    prefix: str
    folder: str
    tokenizer: str
    openclip: bool
    activation: str
    pad: str
    projection: bool = False
    unused: int = 0


@dataclass(frozen=True)
class Layout:
    """A family in this layout. Either all attention has `heads` heads, or heads are `head_width` wide.

    markers: whether v-prediction is told by keys of the file (`v_pred`, `ztsnr`); elsewhere by a .yaml beside it.
    """

    texts: tuple[TextLayout, ...]
    vae_scale: float
    heads: int | None = None
    head_width: int | None = None
    markers: bool = False


@dataclass(frozen=True)
class Piece:
    """Where a module's tensor stands. third: which third of the rows; transpose: columns for rows; square: 1 x 1 convolution."""

    key: str
    third: int | None = None
    transpose: bool = False
    square: bool = False


def network_piece(name: str, attention: Mapping[str, bool]) -> Piece:
    """Of a U-Net's tensor. attention: whether the level of each upsampler ('up_blocks.0') has attention."""
    module, _, leaf = name.rpartition(".")
    original = names.to_original(module, attention.get(".".join(name.split(".")[:2]), True))
    return Piece(f"{original}.{leaf}")


def attention_of(tensors: Mapping[str, Any]) -> dict[str, bool]:
    """Which up blocks of a U-Net have attention, from its tensors' names."""
    blocks = {".".join(name.split(".")[:2]) for name in tensors if name.startswith("up_blocks.")}
    return {block: any(name.startswith(f"{block}.attentions.") for name in tensors) for block in blocks}


VAE_NAMES = (("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
             ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
             ("mid_block.attentions.0.to_q", "mid.attn_1.q"), ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
             ("mid_block.attentions.0.to_v", "mid.attn_1.v"), ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
             ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"))


def vae_piece(name: str, levels: int) -> Piece:
    """Of a VAE's tensor; the decoder's levels count the other way round there."""
    square = re.search(r"attentions\.0\.to_\w+(\.0)?\.weight$", name) is not None
    for ours, original in VAE_NAMES:
        name = name.replace(ours, original)
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{levels - 1 - int(found[1])}.upsample.", name)
    return Piece(name, square=square)


OPENCLIP_NAMES = (("embeddings.token_embedding.weight", "token_embedding.weight"),
                  ("embeddings.position_embedding.weight", "positional_embedding"),
                  ("encoder.layers.", "transformer.resblocks."), ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"),
                  ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("final_layer_norm", "ln_final"))


def text_piece(name: str, openclip: bool) -> Piece:
    """Of a text encoder's tensor, whether transformers names it with or without `text_model.`."""
    name = name.removeprefix("text_model.")
    if not openclip:
        return Piece(f"text_model.{name}")
    if name == "text_projection.weight":
        return Piece("text_projection", transpose=True)
    for ours, original in OPENCLIP_NAMES:
        name = name.replace(ours, original)
    if found := re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
        return Piece(f"{found[1]}.attn.in_proj_{found[3]}", third="qkv".index(found[2]))
    return Piece(name)


def network_config(shapes: Shapes, layout: Layout, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """diffusers' configuration of a U-Net, from its shapes in a file; None where it is built in a way that they do not tell.

    own: 'heads' of each level (or num_heads, num_head_channels, as in a .yaml) and 'groups', where they are not the family's.
    """
    widths: list[int] = []
    depths: list[list[int]] = []
    block = 1
    while f"input_blocks.{block}.0.in_layers.2.weight" in shapes or f"input_blocks.{block}.0.op.weight" in shapes:
        if f"input_blocks.{block}.0.op.weight" not in shapes:
            if not widths or f"input_blocks.{block - 1}.0.op.weight" in shapes:
                widths.append(shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0])
                depths.append([])
            depths[-1].append(_count(shapes, f"input_blocks.{block}.1.transformer_blocks."))
        block += 1
    even = all(width % own.get("groups", GROUPS) == 0 for width in widths)
    if not widths or not even or any(len(level) != 2 or len(set(level)) > 1 for level in depths):
        return None
    deep = [level[0] for level in depths]
    reads = next(shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    projection = next(shape for name, shape in shapes.items() if name.endswith("proj_in.weight"))
    heads = (own.get("heads") or _heads(widths, own.get("num_heads"), own.get("num_head_channels"))
             or _heads(widths, layout.heads, layout.head_width))
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1], "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths, "layers_per_block": 2, "cross_attention_dim": reads[1], "attention_head_dim": list(heads),
        "transformer_layers_per_block": [max(1, n) for n in deep], "use_linear_projection": len(projection) == 2,
        "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in deep],
        "up_block_types": ["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(deep)],
        "norm_num_groups": own.get("groups", GROUPS),
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1]}
    return config


def _heads(widths: list[int], heads: int | None, head_width: int | None) -> list[int]:
    """Heads of each level, told as their number or as their width; [] where neither is told."""
    return [heads] * len(widths) if heads else [max(1, width // head_width) for width in widths] if head_width else []


def vae_config(shapes: Shapes, scale: float, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """diffusers' configuration of a VAE, from its shapes in a file; None where it is built in a way that they do not tell.

    own: 'groups', where they are not the usual 32.
    """
    levels = _count(shapes, "encoder.down.")
    widths = [shapes.get(f"encoder.down.{i}.block.0.conv2.weight", (0,))[0] for i in range(levels)]
    if not widths or any(width % own.get("groups", GROUPS) for width in widths):
        return None
    return {
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, "encoder.down.0.block."), "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": own.get("groups", GROUPS), "scaling_factor": scale,
        "use_quant_conv": "quant_conv.weight" in shapes, "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def text_config(shapes: Shapes, layout: TextLayout, own: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' configuration of a CLIP text encoder, from its shapes in a file. own: 'heads', where they are not 64 wide."""
    if layout.openclip:
        tokens, positions = shapes["token_embedding.weight"], shapes["positional_embedding"]
        layers, inner = _count(shapes, "transformer.resblocks."), shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
        projection = shapes.get("text_projection", (0, tokens[1]))[1]
    else:
        tokens = shapes["text_model.embeddings.token_embedding.weight"]
        positions = shapes["text_model.embeddings.position_embedding.weight"]
        layers, inner = _count(shapes, "text_model.encoder.layers."), shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
        projection = tokens[1]
    end = tokens[0] - 1
    return {
        "vocab_size": tokens[0], "hidden_size": tokens[1], "intermediate_size": inner,
        "num_hidden_layers": layers - layout.unused, "num_attention_heads": own.get("heads") or max(1, tokens[1] // 64),
        "max_position_embeddings": positions[0],
        "hidden_act": layout.activation, "projection_dim": projection, "bos_token_id": end - 1, "eos_token_id": end,
        "pad_token_id": 0 if layout.pad == "!" else end,
    }


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered things stand under a prefix."""
    numbers = {int(found[1]) for name in shapes if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    return max(numbers) + 1 if numbers else 0


def read_own(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What we wrote into a file of unusual widths, {} where nothing of ours is there."""
    try:
        own = json.loads(metadata.get(OWN, "{}"))
    except ValueError:
        return {}
    return own if isinstance(own, dict) else {}


def parameterization(yaml: str) -> str | None:
    """What a .yaml of the original programs says that the network predicts: 'v', 'epsilon', or None if it is no such file."""
    if found := re.search(r"^\s*parameterization:\s*['\"]?(\w+)", yaml, re.MULTILINE):
        return "v" if found[1].lower() == "v" else "epsilon"
    if found := re.search(r"denoiser_scaling\.(\w*?)Scaling", yaml):
        return "v" if found[1] == "V" else "epsilon"
    return "epsilon" if "unet_config:" in yaml or "network_config:" in yaml else None


def yaml_numbers(yaml: str) -> dict[str, float]:
    """Numbers that a .yaml gives and shapes do not: num_heads, num_head_channels, scale_factor."""
    found = re.findall(r"^\s*(num_heads|num_head_channels|scale_factor):\s*(-?[\d.]+)\s*(?:#.*)?$", yaml, re.MULTILINE)
    return {name: float(value) for name, value in found if float(value) > 0}
