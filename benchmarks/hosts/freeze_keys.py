"""Freeze what each host takes as the name of a LoRA's module, by asking the host's own code.

    COMFYUI_DIR=... python benchmarks/hosts/freeze_keys.py comfyui
    COMFYUI_DIR=... A1111_DIR=... python benchmarks/hosts/freeze_keys.py automatic1111
    COMFYUI_DIR=... FORGE_DIR=... python benchmarks/hosts/freeze_keys.py forge
    SD_SCRIPTS_DIR=... python benchmarks/hosts/freeze_keys.py sd-scripts
    python benchmarks/hosts/freeze_keys.py diffusers

Each command writes `aprendiz/formats/keys/<host>.json.gz`: the host's version, how the list was made, and for each shape of base
(SD 1.5, 2.1, XL and the embedded one) every accepted name by the weight it lands on. The checkouts are the user's own; nothing of
them is copied. ComfyUI's U-Net, built on the meta device, also gives the original layout's module tree to the two WebUIs, whose
own comes from repositories that they download at their first start.

`--version` and `--commit` name the checkout where it is no git repository.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import gzip
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from aprendiz.formats import names  # noqa: E402

KEYS = ROOT / "aprendiz" / "formats" / "keys"
SHAPES = ("sd1", "sd2", "sdxl", "micro")

SD1: dict[str, Any] = {"sample_size": 64, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
                       "attention_head_dim": 8,
                       "cross_attention_dim": 768, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                       "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}
SD2 = SD1 | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL: dict[str, Any] = {
    "sample_size": 128, "layers_per_block": 2, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
MICRO: dict[str, Any] = {
    "sample_size": 16, "layers_per_block": 2, "block_out_channels": (32, 96, 96), "attention_head_dim": (2, 6, 6),
    "norm_num_groups": 16,
    "cross_attention_dim": 96, "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}
NETWORKS = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL, "micro": MICRO}
# Layers, width and inner width of the text encoders. SD 2's has 24 in hosts; diffusers and sd-scripts leave the last one out.
ENCODERS: dict[str, list[tuple[int, int, int]]] = {
    "sd1": [(12, 768, 3072)], "sd2": [(24, 1024, 4096)], "sdxl": [(12, 768, 3072), (32, 1280, 5120)], "micro": [(4, 96, 384)]}
ENCODER_MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")

# One module's tensors for each kind of adapter, by what follows its name: shapes for a linear layer of 4 in and 4 out.
R, N = 1, 4
KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "kohya": {".lora_down.weight": (R, N), ".lora_up.weight": (N, R), ".alpha": ()},
    "tucker": {".lora_down.weight": (R, N), ".lora_up.weight": (N, R), ".lora_mid.weight": (R, R)},
    "dora": {".lora_down.weight": (R, N), ".lora_up.weight": (N, R), ".dora_scale": (N, 1)},
    "peft": {".lora_A.weight": (R, N), ".lora_B.weight": (N, R)},
    "peft default": {".lora_A.default.weight": (R, N), ".lora_B.default.weight": (N, R)},
    "peft bare": {".lora_A": (R, N), ".lora_B": (N, R)},
    "diffusers": {".lora.down.weight": (R, N), ".lora.up.weight": (N, R)},
    "old diffusers": {"_lora.down.weight": (R, N), "_lora.up.weight": (N, R)},
    "transformers": {".lora_linear_layer.down.weight": (R, N), ".lora_linear_layer.up.weight": (N, R)},
    "loha": {".hada_w1_a": (N, R), ".hada_w1_b": (R, N), ".hada_w2_a": (N, R), ".hada_w2_b": (R, N)},
    "loha tucker": {".hada_w1_a": (R, N), ".hada_w1_b": (R, N), ".hada_w2_a": (R, N), ".hada_w2_b": (R, N),
                    ".hada_t1": (R, R, 1, 1), ".hada_t2": (R, R, 1, 1)},
    "lokr": {".lokr_w1": (2, 2), ".lokr_w2": (2, 2)},
    "lokr split": {".lokr_w1_a": (2, R), ".lokr_w1_b": (R, 2), ".lokr_w2_a": (2, R), ".lokr_w2_b": (R, 2)},
    "lokr tucker": {".lokr_w1": (2, 2), ".lokr_w2_a": (R, 2), ".lokr_w2_b": (R, 2), ".lokr_t2": (R, R, 1, 1)},
    "oft": {".oft_blocks": (2, 2, 2)},
    "glora": {".a1.weight": (R, N), ".a2.weight": (N, R), ".b1.weight": (R, N), ".b2.weight": (N, R)},
    "difference": {".diff": (N, N)},
    "difference of bias": {".diff": (N, N), ".diff_b": (N,)},
    "norm": {".w_norm": (N,), ".b_norm": (N,)},
    "set": {".set_weight": (N, N)},
}


def network_modules(shape: str) -> dict[str, nn.Module]:
    """Linear and convolution layers of a U-Net of this shape, by diffusers' names, on the meta device."""
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        network = UNet2DConditionModel(**NETWORKS[shape])
    return {name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


def encoder_modules(shape: str, part: int) -> list[str]:
    """Layers of a text encoder that a LoRA can be for, by transformers' names."""
    layers = ENCODERS[shape][part][0]
    return [f"text_model.encoder.layers.{n}.{module}" for n in range(layers) for module in ENCODER_MODULES]


def candidates(shape: str) -> dict[str, dict[str, str]]:
    """Names that files give to modules: {layout: {name: what we mean by it}}. Whether they are taken, the host says."""
    found: dict[str, dict[str, str]] = {layout: {} for layout in (
        "kohya", "kohya original", "te", "te1", "te2", "peft", "bare peft", "original", "lycoris", "old diffusers")}
    modules = network_modules(shape)
    for module in modules:
        level = module.split(".")[1] if module.startswith("up_blocks") else ""
        original = names.to_original(module, any(m.startswith(f"up_blocks.{level}.attentions") for m in modules))
        meant, flat = f"unet.{module}", module.replace(".", "_")
        found["kohya"][f"lora_unet_{flat}"] = meant
        found["lycoris"][f"lycoris_{flat}"] = meant
        found["peft"][f"unet.{module}"] = meant
        found["bare peft"][f"base_model.model.{module}"] = meant
        if ".to_" in module:
            found["old diffusers"][f"unet.{module.replace('.to_', '.processor.to_').removesuffix('.0')}"] = meant
        if original:
            found["kohya original"][f"lora_unet_{original.replace('.', '_')}"] = meant
            found["original"][f"diffusion_model.{original}"] = meant
    for part in range(len(ENCODERS[shape])):
        prefix = "text_encoder" if part == 0 else "text_encoder_2"
        for module in encoder_modules(shape, part):
            flat, meant = module.replace(".", "_"), f"{prefix}.{module}"
            found["peft"][meant] = meant
            if part == 0:
                found["te"][f"lora_te_{flat}"] = meant
            found[f"te{part + 1}"][f"lora_te{part + 1}_{flat}"] = meant
    return {layout: entries for layout, entries in found.items() if entries}


def grouped(accepted: Mapping[str, str]) -> dict[str, list[str]]:
    """{name: target} as {target: [names]}, in order."""
    by_target: dict[str, list[str]] = {}
    for name, target in accepted.items():
        by_target.setdefault(target, []).append(name)
    return {target: sorted(by_target[target]) for target in sorted(by_target)}


def checkout(variable: str) -> Path:
    """The folder of a host, from the environment."""
    folder = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not folder.is_dir():
        sys.exit(f"Set {variable} to a checkout of the host.")
    return folder


# --- ComfyUI --------------------------------------------------------------------------------------------------------------------

def blank(*modules: str) -> None:
    """Stand-ins for modules that a host imports and this work never calls, where they are not installed."""
    import importlib.machinery
    import importlib.util
    from unittest.mock import MagicMock

    from diffusers import UNet2DConditionModel  # noqa: F401  before the stand-ins: transformers looks for torchvision too
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
    for name in modules:
        try:
            there = name in sys.modules or importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            empty = MagicMock(name=name)
            empty.__path__, empty.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = empty


def import_comfy() -> None:
    """Put ComfyUI first on the path, on the CPU."""
    sys.path.insert(0, str(checkout("COMFYUI_DIR")))
    blank("torchvision", "torchvision.transforms", "torchaudio", "comfy_aimdo", "comfy_kitchen", "av", "torchsde", "einops",
          "scipy", "scipy.stats")
    import comfy.options  # type: ignore[import-not-found]
    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args  # type: ignore[import-not-found]
    args.cpu = True


def comfy_network(shape: str) -> Any:
    """ComfyUI's model object of this shape, on the meta device."""
    import comfy.model_base  # type: ignore[import-not-found]
    import comfy.model_detection  # type: ignore[import-not-found]
    import comfy.supported_models  # type: ignore[import-not-found]
    from diffusers import UNet2DConditionModel
    if shape == "micro":
        unet = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2],
                "channel_mult": [1, 3, 3], "num_head_channels": 16, "num_heads": -1, "use_spatial_transformer": True,
                "context_dim": 96,
                "transformer_depth": [1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0, 0],
                "transformer_depth_middle": 1, "legacy": False, "adm_in_channels": None, "use_linear_in_transformer": False,
                "dtype": torch.float32, "use_temporal_attention": False}
        config = comfy.supported_models.SD15(unet)
    else:
        with torch.device("meta"):
            network = UNet2DConditionModel(**NETWORKS[shape])
        unet = comfy.model_detection.unet_config_from_diffusers_unet(network.state_dict())
        config = comfy.model_detection.model_config_from_unet_config(unet)
    return comfy.model_base.BaseModel(config, device="meta")


class Names:
    """An object whose state dict has these names and nothing else: all that the hosts' text-encoder maps look at."""

    def __init__(self, found: list[str]) -> None:
        self.found = found

    def state_dict(self) -> dict[str, None]:
        return dict.fromkeys(self.found)


def comfy_encoders(shape: str) -> Names:
    """Weight names of ComfyUI's text encoders for this shape, from its own model where there is one of the shape."""
    from comfy import sd1_clip, sdxl_clip  # type: ignore[import-not-found]
    from comfy.text_encoders import sd2_clip  # type: ignore[import-not-found]
    build = {"sd1": sd1_clip.SD1ClipModel, "micro": sd1_clip.SD1ClipModel, "sd2": sd2_clip.SD2ClipModel,
             "sdxl": sdxl_clip.SDXLClipModel}
    found = list(build[shape](device="meta", dtype=torch.float32).state_dict())
    if shape == "micro":
        found = [name for name in found if ".layers." not in name
                 or int(name.split(".layers.")[1].split(".")[0]) < ENCODERS["micro"][0][0]]
    return Names(found)


def freeze_comfyui() -> dict[str, Any]:
    """ComfyUI: its two key maps as they are, and its loader on one module of each kind of adapter."""
    import_comfy()
    import comfy.lora  # type: ignore[import-not-found]
    shapes = {}
    for shape in SHAPES:
        accepted = dict(comfy.lora.model_lora_keys_unet(comfy_network(shape), {}))
        accepted |= comfy.lora.model_lora_keys_clip(comfy_encoders(shape), {})
        shapes[shape] = grouped({name: str(target) for name, target in accepted.items()})

    def left(tensors: dict[str, torch.Tensor], name: str) -> set[str]:
        taken: set[str] = set()
        logged = comfy.lora.logging
        comfy.lora.logging = types.SimpleNamespace(warning=lambda text: taken.add(text.removeprefix("lora key not loaded: ")))
        try:
            comfy.lora.load_lora(dict(tensors), {name: "w.weight"})
        finally:
            comfy.lora.logging = logged
        return taken
    return {"shapes": shapes, "suffixes": suffixes(left),
            "how": "comfy.lora.model_lora_keys_unet and model_lora_keys_clip on meta models; comfy.lora.load_lora on one module "
                   "a kind"}


def suffixes(left: Callable[[dict[str, torch.Tensor], str], set[str]],
             name: str = "lora_unet_mid_block_attentions_0_proj_in") -> list[str]:
    """Which endings the host's loader takes, tried on one module. `left` gives the tensors that it left out."""
    taken: set[str] = set()
    for tensors in KINDS.values():
        given = {name + suffix: torch.ones(shape) for suffix, shape in tensors.items()}
        remaining = left(given, name)
        taken |= {suffix for suffix in tensors if name + suffix not in remaining}
    return sorted(taken)


# --- AUTOMATIC1111 --------------------------------------------------------------------------------------------------------------

def tree(modules: Mapping[str, nn.Module]) -> nn.Module:
    """A module whose sub-modules have these names."""
    root = nn.Module()
    for name, module in modules.items():
        at = root
        *above, leaf = name.split(".")
        for piece in above:
            if piece not in at._modules:
                at.add_module(piece, nn.Module())
            at = at.get_submodule(piece)
        at.add_module(leaf, module)
    return root


def plain_layers(state: Mapping[str, torch.Tensor]) -> dict[str, nn.Module]:
    """torch's own layers for the weights of a network: hosts look at the exact types."""
    found: dict[str, nn.Module] = {}
    for name, weight in state.items():
        if not name.endswith(".weight"):
            continue
        with torch.device("meta"):
            if weight.ndim == 4:
                layer: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=weight.shape[2] // 2)
            elif weight.ndim == 2:
                layer = nn.Linear(weight.shape[1], weight.shape[0])
            else:
                layer = nn.LayerNorm(weight.shape)
        found[name.removesuffix(".weight")] = layer
    return found


def open_clip_layers(layers: int, width: int, inner: int) -> dict[str, nn.Module]:
    """The text model of open_clip: joined attention of torch's own kind, `mlp.c_fc`, `mlp.c_proj`."""
    found: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for n in range(layers):
            block = f"model.transformer.resblocks.{n}"
            found[f"{block}.ln_1"], found[f"{block}.ln_2"] = nn.LayerNorm(width), nn.LayerNorm(width)
            found[f"{block}.attn"] = nn.MultiheadAttention(width, width // 64, batch_first=True)
            found[f"{block}.mlp.c_fc"], found[f"{block}.mlp.c_proj"] = nn.Linear(width, inner), nn.Linear(inner, width)
    return found


def clip_layers(shape: str) -> dict[str, nn.Module]:
    """CLIP-L's text model as the transformers of the WebUIs' time names it: `transformer.text_model...`."""
    _, width, inner = ENCODERS[shape][0]
    found: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for module in encoder_modules(shape, 0):
            sizes = (width, inner) if module.endswith("fc1") else (inner, width) if module.endswith("fc2") else (width, width)
            found[f"transformer.{module}"] = nn.Linear(*sizes)
    return found


def a1111_model(shape: str) -> Any:
    """What AUTOMATIC1111 calls `shared.sd_model`, as far as its LoRA code looks at it."""
    layers = plain_layers(comfy_network(shape).state_dict())
    model = types.SimpleNamespace(is_sdxl=shape == "sdxl", model=tree(layers))
    if shape == "sdxl":
        embedders = [types.SimpleNamespace(wrapped=tree(clip_layers("sdxl"))),
                     types.SimpleNamespace(wrapped=tree(open_clip_layers(*ENCODERS["sdxl"][1])))]
        model.conditioner = types.SimpleNamespace(embedders=embedders)
    else:
        text = open_clip_layers(*ENCODERS["sd2"][0]) if shape == "sd2" else clip_layers(shape)
        model.cond_stage_model = types.SimpleNamespace(wrapped=tree(text))
    return model


def freeze_automatic1111() -> dict[str, Any]:
    """AUTOMATIC1111: its loader run on every candidate, and what it says did not match."""
    import_comfy()
    from unittest.mock import MagicMock
    sys.path.insert(0, str(checkout("A1111_DIR") / "extensions-builtin" / "Lora"))
    host = MagicMock(name="modules")
    host.__path__ = []
    for name in ("gradio", "modules", "modules.shared", "modules.devices", "modules.sd_models", "modules.errors",
                 "modules.scripts", "modules.sd_hijack",
                 "modules.textual_inversion", "modules.textual_inversion.textual_inversion", "modules.models",
                 "modules.models.sd3",
                 "modules.models.sd3.mmdit", "modules.cache", "modules.hashes", "lora_patches", "lora_logger"):
        sys.modules[name] = host
    host.models.sd3.mmdit.QkvLinear = type("QkvLinear", (nn.Linear,), {})
    host.devices.cpu, host.devices.dtype = torch.device("cpu"), torch.float32
    import networks  # type: ignore[import-not-found]
    host.shared = networks.shared
    shapes: dict[str, Any] = {}
    refused: set[str] = set()
    for shape in SHAPES:
        networks.shared.sd_model = a1111_model(shape)
        networks.assign_network_names_to_compvis_modules(networks.shared.sd_model)
        accepted: dict[str, str] = {}
        for layout, wanted in candidates(shape).items():
            kind = KINDS["peft" if "peft" in layout else "old diffusers" if layout == "old diffusers" else "kohya"]
            given = {name + suffix: torch.ones((1,) * len(size)) for name in wanted for suffix, size in kind.items()}
            try:
                accepted |= a1111_load(networks, fitting(given, networks.shared.sd_model, networks))
            except AssertionError:  # it refuses the whole file: before the first dot stands the name of a module that is no layer
                refused |= {key.partition(".")[0] + "." for key in given}
        shapes[shape] = grouped(accepted)

    networks.shared.sd_model = types.SimpleNamespace(is_sdxl=False,
                                                     model=tree({"diffusion_model.middle_block.1.proj_in": nn.Linear(N, N)}),
                                                     cond_stage_model=nn.Module())
    networks.assign_network_names_to_compvis_modules(networks.shared.sd_model)

    def left(tensors: dict[str, torch.Tensor], name: str) -> set[str]:
        try:
            return set() if name in a1111_load(networks, tensors) else set(tensors)
        except (AssertionError, AttributeError, KeyError,
                RuntimeError):  # an adapter that it does not know, or not for this layer
            return set(tensors)
    return {"shapes": shapes, "suffixes": suffixes(left), "refuses": sorted(refused),
            "how": "networks.load_network of extensions-builtin/Lora on every candidate name, with the original layout's module "
                   "names"}


def fitting(given: dict[str, torch.Tensor], model: Any, networks: Any) -> dict[str, torch.Tensor]:
    """Tensors of the sizes that the host's layers have, for it copies them: rank 1, all ones."""
    sized = {}
    for key, tensor in given.items():
        prefix = key.partition(".")[0]
        name = networks.convert_diffusers_name_to_compvis(prefix, "model_transformer_resblocks" in model.network_layer_mapping)
        layer = model.network_layer_mapping.get(name)
        if isinstance(layer, nn.Conv2d) and key.endswith("down.weight"):
            tensor = torch.ones(1, 1, *layer.kernel_size)
        sized[key] = tensor
    return sized


def a1111_load(networks: Any, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """The names that AUTOMATIC1111's loader took, and the layers they went to."""
    said: list[str] = []
    networks.sd_models.read_state_dict = lambda file: tensors
    networks.os = types.SimpleNamespace(path=types.SimpleNamespace(getmtime=lambda file: 0.0))
    networks.logging = types.SimpleNamespace(debug=said.append)
    loaded = networks.load_network("candidate", types.SimpleNamespace(filename="candidate"))
    failed = set(ast.literal_eval(said[0].split("didn't match keys: ", 1)[1])) if said else set()
    took = {key: None for key in tensors if key not in failed}
    prefixes = {key.partition(".")[0] for key in took}
    found = {module.network_key.partition(".")[0]: target for target, module in loaded.modules.items()}
    assert prefixes == set(found), "two names went to one layer"
    return found


# --- Forge ----------------------------------------------------------------------------------------------------------------------

def freeze_forge() -> dict[str, Any]:
    """Forge: its two key maps on the original layout's weight names, and its loader on one module of each kind."""
    import_comfy()
    states = {shape: comfy_network(shape) for shape in SHAPES if shape != "micro"}
    sys.path.insert(0, str(checkout("FORGE_DIR")))
    from unittest.mock import MagicMock
    for name in ("backend", "backend.patcher"):  # the packages without what they import at their start
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(checkout("FORGE_DIR").joinpath(*name.split(".")))]
    sys.modules["backend"].memory_management = sys.modules["backend"].utils = MagicMock()  # type: ignore[attr-defined]
    blank("gguf", "bitsandbytes")
    from backend.patcher import lora  # type: ignore[import-not-found]
    shapes = {}
    for shape, network in states.items():
        unet = Names(list(network.state_dict()))
        unet.diffusion_model = types.SimpleNamespace(config=network.model_config.unet_config)  # type: ignore[attr-defined]
        unet.config = types.SimpleNamespace(huggingface_repo=shape)  # type: ignore[attr-defined]
        encoders = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[shape]
        text = Names([f"{prefix}.transformer.{module}.weight" for part,
                      prefix in enumerate(encoders) for module in encoder_modules(shape, part)])
        accepted = dict(lora.model_lora_keys_unet(unet, {})) | dict(lora.model_lora_keys_clip(text, {}))
        shapes[shape] = grouped({name: str(target) for name, target in accepted.items()})

    def left(tensors: dict[str, torch.Tensor], name: str) -> set[str]:
        _, remaining = lora.load_lora(dict(tensors), {name: "w.weight"})
        return set(remaining)
    return {"shapes": shapes, "suffixes": suffixes(left),
            "how": "backend.patcher.lora.model_lora_keys_unet and model_lora_keys_clip on the original layout's weight names; "
                   "load_lora on one "
                   "module a kind. Bases of other shapes than SD 1.5, 2.x and XL do not open in it"}


# --- sd-scripts -----------------------------------------------------------------------------------------------------------------

def freeze_sd_scripts() -> dict[str, Any]:
    """sd-scripts: the module names of its own networks.lora, convolutions included; it writes and reads no others."""
    ENCODERS["sd2"] = [(23, 1024, 4096)]
    sys.path.insert(0, str(checkout("SD_SCRIPTS_DIR")))
    blank("torchvision", "torchvision.transforms", "torchaudio", "einops", "cv2", "imagesize", "toml", "rich.logging")
    from library import original_unet, sdxl_original_unet  # type: ignore[import-not-found]
    from networks import lora  # type: ignore[import-not-found]
    shapes = {}
    for shape in ("sd1", "sd2", "sdxl"):
        with torch.device("meta"):
            if shape == "sdxl":
                network = sdxl_original_unet.SdxlUNet2DConditionModel()
            else:
                chosen = {k: NETWORKS[shape][k] for k in ("sample_size", "attention_head_dim", "cross_attention_dim")}
                network = original_unet.UNet2DConditionModel(**chosen, use_linear_projection=shape == "sd2")
            text = [clip_tree(shape, part) for part in range(len(ENCODERS[shape]))]
            made = lora.LoRANetwork(text if len(text) > 1 else text[0], network, lora_dim=1, conv_lora_dim=1,
                                    is_sdxl=shape == "sdxl")
        shapes[shape] = {one.lora_name: [one.lora_name] for one in made.text_encoder_loras + made.unet_loras}
    return {"shapes": shapes, "suffixes": [".alpha", ".lora_down.weight", ".lora_up.weight"],
            "how": "networks.lora.LoRANetwork with conv_lora_dim on its own U-Nets, meta device. Bases of other shapes do not "
                   "open in it"}


def clip_tree(shape: str, part: int) -> nn.Module:
    """A text encoder with the class names that sd-scripts looks for."""
    attention, mlp = type("CLIPAttention", (nn.Module,), {}), type("CLIPMLP", (nn.Module,), {})
    root = nn.Module()
    layers, width, inner = ENCODERS[shape][part]
    blocks = nn.ModuleList()
    for _ in range(layers):
        block = nn.Module()
        block.self_attn, block.mlp = attention(), mlp()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(block.self_attn, name, nn.Linear(width, width))
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        blocks.append(block)
    root.text_model = nn.Module()
    root.text_model.encoder = nn.Module()
    root.text_model.encoder.layers = blocks
    return root


# --- diffusers ------------------------------------------------------------------------------------------------------------------

def freeze_diffusers() -> dict[str, Any]:
    """diffusers: its own conversion of all candidates of a layout at once, and whether the modules that come out are there."""
    import diffusers
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
    ENCODERS["sd2"] = [(23, 1024, 4096)]
    shapes = {}
    for shape in SHAPES:
        mixin = StableDiffusionXLLoraLoaderMixin if shape == "sdxl" else StableDiffusionLoraLoaderMixin
        there = {f"unet.{name}" for name in network_modules(shape)}
        for part, prefix in enumerate(("text_encoder", "text_encoder_2")[:len(ENCODERS[shape])]):
            there |= {f"{prefix}.{name}" for name in encoder_modules(shape, part)}
        config = types.SimpleNamespace(**NETWORKS[shape])
        accepted: dict[str, str] = {}
        for layout, wanted in candidates(shape).items():
            kind = KINDS["peft" if "peft" in layout else "old diffusers" if layout == "old diffusers" else "kohya"]
            taken = diffusers_targets(mixin, list(wanted), kind, config)
            accepted |= {name: target for name, target in taken.items() if target in there}
        shapes[shape] = grouped(accepted)

    def left(tensors: dict[str, torch.Tensor], name: str) -> set[str]:
        kind = {key.removeprefix(name): tuple(tensor.shape) for key, tensor in tensors.items()}
        meant = "unet.mid_block.attentions.0.proj_in"
        spelt = meant if any("lora_A" in key or ".lora." in key or "_lora." in key or "linear" in key for key in kind) else name
        return set() if diffusers_targets(StableDiffusionLoraLoaderMixin, [spelt], kind,
                                          types.SimpleNamespace(**SD1)) else set(tensors)
    return {"shapes": shapes, "suffixes": sorted(set(suffixes(left)) - {".dora_scale"}), "version": diffusers.__version__,
            "how": "lora_state_dict of the pipelines' LoRA mixins on each layout's names; taken if the module that comes out is "
                   "there"}


def diffusers_targets(mixin: Any, wanted: list[str], kind: Mapping[str, tuple[int, ...]], config: Any) -> dict[str, str]:
    """Where diffusers puts the modules of these names. Every tensor is filled with its module's number, to be known again."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    given = {name + suffix: torch.full(size, float(number)) for number, name in enumerate(wanted) for suffix,
             size in kind.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = mixin.lora_state_dict(given, unet_config=config)[0]
            found = convert_unet_state_dict_to_peft({key: value for key, value in made.items() if key.startswith("unet.")})
            for prefix in ("text_encoder.", "text_encoder_2."):
                text = {key: value for key, value in made.items() if key.startswith(prefix)}
                found |= convert_state_dict_to_peft(convert_state_dict_to_diffusers(text)) if text else {}
    except (ValueError, KeyError, IndexError):
        halves = [wanted[:len(wanted) // 2], wanted[len(wanted) // 2:]]
        return {} if len(wanted) == 1 else {n: t for half in halves for n,
                                            t in diffusers_targets(mixin, half, kind, config).items()}
    seen: dict[str, dict[str, None]] = {}
    for key, tensor in found.items():
        if ".lora_" in key and tensor.numel():
            seen.setdefault(wanted[int(tensor.flatten()[0])], {})[key.rsplit(".lora_", 1)[0]] = None
    return {name: next(iter(targets)) for name, targets in seen.items() if len(targets) == 1}


HOSTS: dict[str, tuple[str, Callable[[], dict[str, Any]], str]] = {
    "comfyui": ("ComfyUI", freeze_comfyui, "COMFYUI_DIR"),
    "automatic1111": ("AUTOMATIC1111", freeze_automatic1111, "A1111_DIR"),
    "forge": ("Forge", freeze_forge, "FORGE_DIR"),
    "sd-scripts": ("sd-scripts", freeze_sd_scripts, "SD_SCRIPTS_DIR"),
    "diffusers": ("diffusers", freeze_diffusers, ""),
}


def git_says(folder: Path, *words: str) -> str:
    """What git says of a checkout; empty where it is none."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 and (folder / ".git").exists() else ""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("host", choices=HOSTS)
    arguments.add_argument("--version", default="", help="the host's version, where its checkout does not tell")
    arguments.add_argument("--commit", default="", help="the host's commit, where its checkout is no git repository")
    given = arguments.parse_args()
    title, freeze, variable = HOSTS[given.host]
    found = freeze()
    folder = checkout(variable) if variable else Path()
    frozen = {"host": title, "version": given.version or found.pop("version", "")
              or (git_says(folder, "describe", "--tags") if variable else ""),
              "commit": given.commit or (git_says(folder, "rev-parse", "HEAD") if variable else ""),
              "date": datetime.date.today().isoformat(), "made_by": "benchmarks/hosts/freeze_keys.py", **found}
    KEYS.mkdir(parents=True, exist_ok=True)
    file = KEYS / f"{given.host}.json.gz"
    content = json.dumps(frozen, indent=0, sort_keys=False).encode("utf-8")
    file.write_bytes(gzip.compress(content, 9, mtime=0))
    for shape, targets in frozen["shapes"].items():
        print(f"{title} {shape}: {sum(map(len, targets.values()))} names for {len(targets)} weights")
    print(", ".join(frozen["suffixes"]), f"\n{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
