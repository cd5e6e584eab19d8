"""Run by ComfyUI's own Python: load a LoRA as its *Load LoRA* node does, and compute every patched weight with its own code.

    python comfyui_lora.py COMFYUI_DIR FAMILY LORA PLAIN

Prints one line of JSON: version, modules, the tensors not loaded, the largest difference of a patched weight from W + up down
alpha / rank, and the least change that a weight saw. The models are of the true shape on the meta device; each weight is drawn
when its turn comes.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import torch


def main() -> None:
    host, family, file, plain = sys.argv[1:]
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, host)
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.model_patcher
    import comfy.sd
    import comfy.utils
    import comfyui_version

    said: list[str] = []
    logging.getLogger().addHandler(Listener(said))
    network, encoders = patcher(comfy, unet(comfy, family)), text(comfy, family)
    lora, reference = comfy.utils.load_torch_file(file, safe_load=True), comfy.utils.load_torch_file(plain, safe_load=True)
    network, encoders = comfy.sd.load_lora_for_models(network, encoders, lora, 1.0, 1.0)
    patches = {**network.patches, **encoders.patcher.patches}
    modules = {name.removesuffix(".down") for name in reference if name.endswith(".down")}
    targets = {target(comfy, family, network.model, name): name for name in modules}
    worst, least, same = 0.0, float("inf"), set(targets) == set(patches)
    numbers = torch.randn(1 << 25, generator=torch.Generator().manual_seed(1)).mul_(0.05)  # as many as the largest weight has
    for key in patches.keys() & targets.keys():
        name = targets[key]
        down, up, alpha = (reference[f"{name}.{half}"] for half in ("down", "up", "alpha"))
        update = (up.flatten(1) @ down.flatten(1)) * (float(alpha) / down.shape[0])
        shape = (up.shape[0], *down.shape[1:])
        weight = numbers[:update.numel()].view(shape)
        change = comfy.lora.calculate_weight(patches[key], weight.clone(), key).sub_(weight)
        least = min(least, largest(change))
        worst = max(worst, largest(change.sub_(update.view(shape))))
    not_loaded = [line for line in said if "not loaded" in line.lower()]
    print(json.dumps({"version": comfyui_version.__version__, "modules": len(patches), "right_weights": same,
                      "not_loaded": not_loaded,
                      "largest_weight_error": worst, "least_change": least}))


def largest(tensor: torch.Tensor) -> float:
    """The largest absolute value, without a copy."""
    return max(abs(float(end)) for end in tensor.aminmax())


class Listener(logging.Handler):
    """Keeps what the host logs."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {"use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
            "in_channels": 4,
            "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
            "num_heads": 8,
            "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False},
    "sdxl": {"use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
             "in_channels": 4,
             "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
             "transformer_depth": [0, 0, 2, 2, 10, 10],
             "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
             "num_head_channels": 64, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
             "use_temporal_attention": False},
}


def unet(comfy: Any, family: str) -> Any:
    """The host's model of this family, as it finds it from a U-Net's settings."""
    import comfy.model_base
    import comfy.model_detection
    config = comfy.model_detection.model_config_from_unet_config({**CONFIGS[family], "dtype": torch.float32})
    config.unet_config.setdefault("dtype", torch.float32)
    return (comfy.model_base.SDXL if family == "sdxl" else comfy.model_base.BaseModel)(config, device="meta")


def text(comfy: Any, family: str) -> Any:
    """The host's CLIP object of this family, without tokens."""
    from comfy import sd1_clip, sdxl_clip
    model = (sdxl_clip.SDXLClipModel if family == "sdxl" else sd1_clip.SD1ClipModel)(device="meta", dtype=torch.float32)
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.patcher = model, patcher(comfy, model)
    clip.tokenizer, clip.layer_idx, clip.use_clip_schedule, clip.apply_hooks_to_conds = None, None, False, None
    clip.tokenizer_options = {}
    return clip


def patcher(comfy: Any, model: Any) -> Any:
    """The host's patcher around a model."""
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def target(comfy: Any, family: str, model: Any, name: str) -> str:
    """The host's weight for one of our modules, by the host's own table of diffusers' names."""
    part, _, module = name.partition(".")
    if part == "network":
        return "diffusion_model." + comfy.utils.unet_to_diffusers(model.model_config.unet_config)[f"{module}.weight"]
    return f"{'clip_g' if part == 'text_encoder_2' else 'clip_l'}.transformer.{module}.weight"


main()
