"""*Load micro*: the embedded base as ComfyUI's own model objects, so that its stock nodes draw with it.

Nothing is registered and nothing of the host is changed. The network keeps its small widths: ComfyUI builds it from a
configuration, only its normalisation is told its true number of groups. The VAE is widened to Stable Diffusion's shape, which
ComfyUI insists on (`aprendiz/micro/widen.py`); the text encoder gets all of CLIP's rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..aprendiz.errors import ModelError
from ..aprendiz.views.panel import NO_DIFFUSERS
from .schema import made

ROWS = 49408  # of CLIP's vocabulary


def load() -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE. Raises ModelError where the files are damaged."""
    from ..aprendiz.formats.checkpoint import MICRO
    return _model(MICRO), _clip(MICRO), _vae(MICRO)


def _tensors(file: Path) -> dict[str, Any]:
    import comfy.utils
    return dict(comfy.utils.load_torch_file(str(file), safe_load=True))


def _config(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return read


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """The network's diffusers configuration in the words of the original layout, which ComfyUI speaks."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    attends = [name.startswith("CrossAttn") for name in config["down_block_types"]]
    depth = config["transformer_layers_per_block"]
    return {
        "image_size": config["sample_size"], "in_channels": config["in_channels"], "out_channels": config["out_channels"],
        "model_channels": widths[0], "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth * on for on in attends for _ in range(layers)],
        "transformer_depth_output": [depth * on for on in attends for _ in range(layers + 1)],
        "transformer_depth_middle": depth, "context_dim": config["cross_attention_dim"],
        "num_heads": -1, "num_head_channels": widths[0] // config["attention_head_dim"][0],
        "use_spatial_transformer": True, "use_linear_in_transformer": config["use_linear_projection"], "legacy": False,
        "adm_in_channels": None, "use_temporal_attention": False,
    }


def _model(folder: Path) -> Any:
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    import torch
    config = _config(folder / "unet")
    scale = _config(folder / "vae")["scaling_factor"]
    shape = unet_config(config)
    chosen = comfy.supported_models.SD15({**shape, "dtype": torch.float32})
    chosen.unet_config |= {"num_heads": shape["num_heads"], "num_head_channels": shape["num_head_channels"]}
    chosen.latent_format = comfy.latent_formats.SD15(scale_factor=scale)
    model = comfy.model_base.BaseModel(chosen, device=torch.device("cpu"))
    for module in model.diffusion_model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = config["norm_num_groups"]
    names = comfy.utils.unet_to_diffusers(shape)
    weights = _tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")
    _fill(model.diffusion_model, {names[name]: tensor for name, tensor in weights.items() if name in names}, "unet")
    return comfy.model_patcher.ModelPatcher(model, load_device=memory.get_torch_device(),
                                            offload_device=memory.unet_offload_device())


def _clip(folder: Path) -> Any:
    import comfy.model_management as memory
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base
    import folder_paths
    import torch
    config = _config(folder / "text_encoder")
    shape = {name: config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
                                             "hidden_act", "max_position_embeddings")}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"clip_l_model_config": shape, "dtype": torch.float32, "initial_device": memory.text_encoder_offload_device()}
    clip = made(comfy.sd.CLIP, target=target, embedding_directory=folder_paths.get_folder_paths("embeddings"),
                model_options=options)
    weights = _tensors(folder / "text_encoder" / "model.safetensors")
    prefix = "" if any(name.startswith("text_model.") for name in weights) else "text_model."
    weights = {prefix + name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}
    table = "text_model.embeddings.token_embedding.weight"
    rows = weights[table]
    known = json.loads((folder / "clip_token_ids.json").read_text(encoding="utf-8"))
    whole = rows.mean(0, keepdim=True).repeat(ROWS, 1)
    whole[torch.tensor(known)] = rows
    weights[table] = whole
    _fill(clip.cond_stage_model.clip_l.transformer, weights, "text_encoder", lacks=("text_projection.weight",))
    return clip


def _vae(folder: Path) -> Any:
    import comfy.sd
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ModelError(NO_DIFFUSERS, reason=str(error)) from error
    from ..aprendiz.micro.widen import widen_vae
    small = AutoencoderKL.from_pretrained(str(folder / "vae"))
    vae = comfy.sd.VAE(sd={name: tensor.detach().clone() for name, tensor in widen_vae(small).state_dict().items()})
    return vae


def _fill(module: Any, weights: dict[str, Any], part: str, lacks: tuple[str, ...] = ()) -> None:
    """Load weights, all of them and none missing but `lacks`."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    if unexpected or [name for name in missing if name not in lacks]:
        raise RuntimeError(f"micro's {part} does not fit this ComfyUI: missing {missing[:3]}, unexpected {unexpected[:3]}")
