"""Writing a base as one `.safetensors` file in the original layout, which all hosts open.

Tensors of the file it was opened from that belong to no module (layers that the network never sees, `logit_scale`, markers) go
along, so that what is written has every key that was read. What shapes and names cannot tell stands in a `.yaml` beside the file,
as the original programs have it: v-prediction where no marker says it, and unusual widths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from . import original
from .original import Layout, Piece, TextLayout
from .weights import open_weights, write_tensors
from .writing import make_folder, write_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..families import Base

DROPPED = ("model_ema.", "optimizer", "lr_scheduler", "loss.")


def write_single_file(base: Base, file: Path, metadata: Mapping[str, str] | None = None,
                      dtype: torch.dtype | None = None) -> list[Path]:
    """Write a base's U-Net, VAE and text encoders; the files written (a `.yaml` beside it where one is needed).

    dtype: of the file's tensors, None for each module's own. metadata: texts for its header. An older file of this name is
    replaced. Raises ModelError where its family has no such layout, RunError where it cannot be written.
    """
    layout = base.family.layout()
    if layout is None:
        raise ModelError("{family} models are not written as one file in the original layout.", family=base.family.title)
    tensors: dict[str, Tensor] = {}
    network = dict(base.network.state_dict())
    attention = original.attention_of(network)
    tensors |= _placed(network, original.NETWORK, {name: original.network_piece(name, attention) for name in network})
    if base.vae is not None:
        vae, levels = dict(base.vae.state_dict()), len(base.vae.config.block_out_channels)  # type: ignore[union-attr, arg-type]
        tensors |= _placed(vae, original.VAE, {name: original.vae_piece(name, levels) for name in vae})
    for text, encoder in zip(layout.texts, base.text_encoders):
        tensors |= _text(text, encoder)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    tensors |= _markers(base, layout) | _left_over(base, layout, tensors)
    yaml = needed_yaml(base, layout)
    make_folder(file.parent)
    write_tensors(file, tensors, _metadata(base, metadata or {}))
    if yaml is None:
        return [file]
    beside = file.with_suffix(".yaml")
    write_whole(beside, yaml.encode("utf-8"))
    return [file, beside]


def _placed(state: Mapping[str, Tensor], prefix: str, pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """A module's tensors under their original names, in the form that they have there."""
    import torch
    placed: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        piece, tensor = pieces[name], tensor.detach().cpu()
        if piece.third is not None:
            thirds.setdefault(prefix + piece.key, {})[piece.third] = tensor
            continue
        tensor = tensor.T if piece.transpose else tensor
        placed[prefix + piece.key] = (tensor[:, :, None, None] if piece.square else tensor).contiguous()
    return placed | {name: torch.cat([parts[i] for i in range(3)]) for name, parts in thirds.items()}


def _text(text: TextLayout, encoder: Any) -> dict[str, Tensor]:
    state = dict(encoder.state_dict())
    placed = _placed(state, text.prefix, {name: original.text_piece(name, text.openclip) for name in state})
    if text.unused:
        # Hosts count on layers that the network never sees; the last one that it sees stands in for them.
        count = encoder.config.num_hidden_layers
        last = f"{text.prefix}transformer.resblocks.{count - 1}."
        for extra in range(count, count + text.unused):
            placed |= {name.replace(last, f"{text.prefix}transformer.resblocks.{extra}."): tensor.clone()
                       for name, tensor in placed.items() if name.startswith(last)}
    return placed


def _markers(base: Base, layout: Layout) -> dict[str, Tensor]:
    """The keys that tell hosts of v-prediction and of noise that ends in pure noise."""
    import torch
    markers = {"v_pred": base.prediction == "v", "ztsnr": base.zero_terminal_snr}
    return {name: torch.zeros(1) for name, there in markers.items() if there and (layout.markers or name == "ztsnr")}


def _left_over(base: Base, layout: Layout, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file that the base was opened from holds beside the modules; its own unused layers rather than a stand-in."""
    source = base.source.path
    if base.source.kind != "file" or not source.is_file():
        return {}
    weights = open_weights(source)
    unused = tuple(f"{text.prefix}transformer.resblocks.{encoder.config.num_hidden_layers + i}."
                   for text, encoder in zip(layout.texts, base.text_encoders) for i in range(text.unused))
    return {name: weights.read(name) for name in weights.places
            if not name.startswith(DROPPED) and (name not in written or (unused and name.startswith(unused)))}


def _metadata(base: Base, metadata: Mapping[str, str]) -> dict[str, str]:
    """The header's texts: the caller's, and what shapes do not tell."""
    config: Any = base.network.config
    own: dict[str, Any] = {"network": {"heads": _heads(config), "groups": config.norm_num_groups}}
    if base.vae is not None:
        own["vae"] = {"groups": base.vae.config.norm_num_groups, "scale": base.vae.config.scaling_factor}
    own |= {f"text_encoder_{i}": {"heads": encoder.config.num_attention_heads} for i, encoder in enumerate(base.text_encoders, 1)}
    said = {"modelspec.prediction_type": base.prediction, "modelspec.resolution": f"{base.resolution}x{base.resolution}"}
    return {"format": "pt", **said, **metadata, original.OWN: json.dumps(own)}


def _heads(config: Any) -> list[int]:
    """Heads of each level of a U-Net (diffusers' attention_head_dim is their number)."""
    heads = config.attention_head_dim
    return list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(config.block_out_channels)


def needed_yaml(base: Base, layout: Layout) -> str | None:
    """The .yaml that hosts need beside the file, None where they know the model by its keys.

    It is the original programs' description of a latent diffusion model with CLIP (SD1) or OpenCLIP (SD2); SDXL needs none.
    """
    config: Any = base.network.config
    vae: Any = base.vae.config if base.vae is not None else None
    usual = tuple(config.block_out_channels) == (320, 640, 1280, 1280)
    if len(layout.texts) > 1 or vae is None or (usual and base.prediction == "epsilon"):
        return None
    heads, width = _heads(config), config.block_out_channels[0]
    told = f"num_heads: {heads[0]}" if len(set(heads)) == 1 else f"num_head_channels: {width // heads[0]}"
    attended = [2 ** i for i, kind in enumerate(config.down_block_types) if kind.startswith("CrossAttn")]
    openclip = layout.texts[0].openclip
    return YAML.format(
        start=base.schedule.get("beta_start", 0.00085), end=base.schedule.get("beta_end", 0.012), size=base.resolution // 8,
        parameterization="v" if base.prediction == "v" else "eps", scale=vae.scaling_factor, width=width, attended=attended[::-1],
        multipliers=[n // width for n in config.block_out_channels], heads=told, depth=1,
        context=config.cross_attention_dim, linear=bool(config.use_linear_projection), residual=config.layers_per_block,
        vae_width=vae.block_out_channels[0], vae_multipliers=[n // vae.block_out_channels[0] for n in vae.block_out_channels],
        vae_residual=vae.layers_per_block, latent=vae.latent_channels,
        text=OPENCLIP_YAML if openclip else "ldm.modules.encoders.modules.FrozenCLIPEmbedder")


OPENCLIP_YAML = """ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params:
        freeze: True
        layer: penultimate"""
YAML = """\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "{parameterization}"
    linear_start: {start}
    linear_end: {end}
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: {size}
    channels: {latent}
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {scale}
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        use_checkpoint: False
        image_size: 32
        in_channels: {latent}
        out_channels: {latent}
        model_channels: {width}
        attention_resolutions: {attended}
        num_res_blocks: {residual}
        channel_mult: {multipliers}
        {heads}
        use_spatial_transformer: True
        use_linear_in_transformer: {linear}
        transformer_depth: {depth}
        context_dim: {context}
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {latent}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {latent}
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: {vae_width}
          ch_mult: {vae_multipliers}
          num_res_blocks: {vae_residual}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: {text}
"""
