"""Copied into AUTOMATIC1111 or Forge as an extension: answers what the host made of a LoRA file, from inside its process.

    GET /aprendiz-probe/loaded?checkpoint=&plain=&keys=   after a picture with a LoRA: the model's weights themselves
    GET /aprendiz-probe/sdxl?name=&plain=&keys=&shapes=   SDXL of the true shape, each weight drawn when its turn comes
    GET /aprendiz-probe/unmatched?name=                   what of a LoRA belongs nowhere in the model that is open
    GET /aprendiz-probe/card?name=                        the card of the Lora page
    GET /aprendiz-probe/versions                          of what the host runs with
    GET /aprendiz-probe/spent                             processor time of its process so far, in seconds
    GET /aprendiz-probe/model                             whether its model is in memory, and how much its process holds

Weights are held against W + up down alpha / rank, computed here from the same matrices in plain form. `keys` (JSON) says which
tensor of a checkpoint in the original layout a module is, and which third of its rows.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import networks  # the host's own, of its Lora extension
import torch
from modules import devices, script_callbacks, shared, ui_extra_networks
from safetensors import safe_open
from safetensors.torch import load_file

Attention = torch.nn.MultiheadAttention
FORGE = find_spec("modules_forge") is not None
LARGEST = 1 << 26  # numbers in the largest weight of any model here
Pair = tuple[str, torch.Tensor, torch.Tensor]  # a checkpoint's tensor: its name, its values before, and with the LoRA


class Updates:
    """The changes that a LoRA makes, by tensor of a checkpoint."""

    def __init__(self, plain: str, keys: str) -> None:
        self.plain = load_file(plain)
        self.modules: dict[str, list[tuple[str, int | None]]] = {}
        with open(keys, encoding="utf-8") as file:
            for module, (key, third) in json.load(file).items():
                self.modules.setdefault(key, []).append((module, third))

    def take_from(self, difference: torch.Tensor, key: str) -> torch.Tensor:
        """What is left of a tensor's difference without the change that it should have; in place."""
        for module, third in self.modules[key]:
            down, up, alpha = (self.plain[f"{module}.{half}"] for half in ("down", "up", "alpha"))
            update = (up.flatten(1) @ down.flatten(1)) * (float(alpha) / down.shape[0])
            part = difference if third is None else difference.chunk(3)[third]
            part.sub_(update.view(part.shape))
        return difference


def compare(pairs: Iterable[Pair], updates: Updates) -> dict[str, Any]:
    """How the host's weights differ from what they should be."""
    seen, worst, least, others = set(), 0.0, float("inf"), []
    for key, before, after in pairs:
        difference = after.float() - before.float()
        if key not in updates.modules:
            others += [key] if largest(difference) > 0 else []
            continue
        seen.add(key)
        least = min(least, largest(difference))
        worst = max(worst, largest(updates.take_from(difference, key)))
    return {"modules": sum(len(updates.modules[key]) for key in seen), "missing": sorted(updates.modules.keys() - seen),
            "largest_weight_error": worst, "least_change": least, "others_changed": others}


def largest(tensor: torch.Tensor) -> float:
    """The largest absolute value."""
    return max(abs(float(end)) for end in tensor.aminmax())


def random_weights() -> Callable[[Iterable[int]], torch.Tensor]:
    """Gives weights of a shape: a view of the same numbers each time, not to be written to."""
    numbers = torch.randn(LARGEST, generator=torch.Generator().manual_seed(1)).mul_(0.05)

    def of_shape(shape: Iterable[int]) -> torch.Tensor:
        size = torch.Size(shape)
        return numbers[:size.numel()].view(size)

    return of_shape


# AUTOMATIC1111


def a1111_loaded(checkpoint: str) -> Iterator[Pair]:
    """The weights of the model that has just drawn."""
    model = {name.replace("wrapped.", ""): tensor for name, tensor in shared.sd_model.state_dict().items()}
    with safe_open(checkpoint, "pt") as file:
        for key in file.keys():
            yield key, file.get_tensor(key), model[key]


def a1111_sdxl(name: str, shapes: str, unmatched: list[str]) -> Iterator[Pair]:
    """The host's SDXL without memory; each layer gets weights, the host's own patch, and gives them back."""
    from modules import sd_disable_initialization, sd_hijack, sd_models, sd_models_config, sd_models_xl
    from omegaconf import OmegaConf
    with open(shapes, encoding="utf-8") as file:
        keys = json.load(file)
    sd_models.unload_model_weights()
    config = OmegaConf.load(sd_models_config.config_sdxl)
    sd_models.repair_config(config, keys)
    with sd_disable_initialization.DisableInitialization(disable_clip=True), sd_disable_initialization.InitializeOnMeta():
        model = sd_models.instantiate_from_config(config.model)
    sd_models.set_model_type(model, keys)
    sd_models_xl.extend_sdxl(model)
    sd_hijack.model_hijack.hijack(model)
    sd_models.model_data.sd_model = model
    try:
        networks.assign_network_names_to_compvis_modules(model)
        unmatched += a1111_unmatched(name)
        networks.loaded_networks[:] = [networks.load_network(name, networks.available_networks[name])]
        yield from a1111_layers(model)
    finally:
        networks.loaded_networks.clear()
        sd_hijack.model_hijack.undo_hijack(model)
        sd_models.model_data.sd_model = None


def a1111_layers(model: torch.nn.Module) -> Iterator[Pair]:
    weights = random_weights()
    for name, module in model.named_modules():
        if not hasattr(module, "network_layer_name") or type(module) not in (Attention, torch.nn.Linear, torch.nn.Conv2d):
            continue  # what belongs to an Attention is patched with it
        owners = {"in_proj_weight": (module, "in_proj_weight"), "out_proj.weight": (module.out_proj, "weight")} \
            if isinstance(module, Attention) else {"weight": (module, "weight")}
        for owner, leaf in owners.values():
            fill(owner, leaf, weights(getattr(owner, leaf).shape).clone())
            if getattr(owner, "bias", None) is not None:
                fill(owner, "bias", torch.zeros(owner.bias.shape))
        networks.network_apply_weights(module)
        for place, (owner, leaf) in owners.items():
            patched = getattr(owner, leaf)
            yield f"{name}.{place}".replace("wrapped.", ""), weights(patched.shape), patched
            fill(owner, leaf, torch.empty(patched.shape, device="meta"))
        module.network_weights_backup = module.network_bias_backup = None


def fill(owner: torch.nn.Module, leaf: str, values: torch.Tensor) -> None:
    """Give a layer a tensor."""
    setattr(owner, leaf, torch.nn.Parameter(values, requires_grad=False))


def a1111_unmatched(name: str) -> list[str]:
    """What the host says that it could not place; it says so at the level of debugging alone."""
    with listening() as said:
        networks.load_network(name, networks.available_networks[name])
    return [line for line in said if "didn't match keys" in line]


@contextmanager
def listening() -> Iterator[list[str]]:
    """What is logged, at every level."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    root, listener = logging.getLogger(), Listener()
    levels = root.level, [handler.level for handler in root.handlers]
    for handler in root.handlers:
        handler.setLevel(max(handler.level, levels[0]))
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(listener)
        root.setLevel(levels[0])
        for handler, level in zip(root.handlers, levels[1]):
            handler.setLevel(level)


# Forge


def forge_loaded(checkpoint: str) -> Iterator[Pair]:
    """The same, of the U-Net and the text encoder; Forge renames the VAE's tensors."""
    objects = shared.sd_model.forge_objects
    model = {f"model.{name}": tensor for name, tensor in objects.unet.model.state_dict().items()}
    model |= {f"cond_stage_model.{name.removeprefix('clip_l.')}": tensor
              for name, tensor in objects.clip.cond_stage_model.state_dict().items()}
    with safe_open(checkpoint, "pt") as file:
        for key in file.keys():
            if not key.startswith("first_stage_model."):
                yield key, file.get_tensor(key), model[key]


def forge_sdxl(name: str, shapes: str, unmatched: list[str]) -> Iterator[Pair]:
    """The host's SDXL without memory, patched as for a picture; each weight is computed when its turn comes."""
    from backend.patcher.lora import merge_lora_to_weight
    unet, clip = forge_meta_sdxl(shapes)
    unmatched += forge_unmatched(name, unet, clip)
    lora = load_file(networks.available_networks[name].filename)
    unet, clip = networks.load_lora_for_models(unet, clip, lora, 1.0, 1.0, filename=name)
    weights = random_weights()
    for prefix, patcher in (("model.", unet), ("", clip.patcher)):
        (patches,) = patcher.lora_patches.values()
        for key, parameter in patcher.model.named_parameters():
            if key in patches:
                before = weights(parameter.shape)
                yield prefix + key, before, merge_lora_to_weight(patches[key], before, key)


def forge_meta_sdxl(shapes: str) -> tuple[Any, Any]:
    """Patchers around the host's U-Net and text encoders, on the meta device."""
    import backend.loader
    import huggingface_guess
    from backend.nn.clip import IntegratedCLIP
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.patcher.clip import CLIP
    from backend.patcher.unet import UnetPatcher
    from transformers import CLIPTextConfig, CLIPTextModel
    with open(shapes, encoding="utf-8") as file:
        state = {key: torch.empty(shape, device="meta") for key, shape in json.load(file).items()}
    config = huggingface_guess.guess(state)
    folder = Path(backend.loader.dir_path, "huggingface", config.huggingface_repo)
    with torch.device("meta"):
        network = IntegratedUNet2DConditionModel.from_config(config.unet_config)
        encoders = {called: IntegratedCLIP(CLIPTextModel, CLIPTextConfig.from_pretrained(folder / place), True)
                    for called, place in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"))}
    network._internal_dict = config.unet_config
    network.storage_dtype = network.computation_dtype = torch.float32
    network.load_device = network.initial_device = network.offload_device = torch.device("cpu")
    return UnetPatcher.from_model(network, None, config, k_predictor=torch.nn.Identity()), CLIP(encoders)


def forge_names(updates: Updates) -> Updates:
    """The same updates by the names of Forge's parameters: its text encoders have those of transformers."""
    renamed: dict[str, list[tuple[str, int | None]]] = {}
    for key, modules in updates.modules.items():
        for module, third in modules:
            part, _, of_encoder = module.partition(".")
            encoder = {"text_encoder_1": "clip_l", "text_encoder_2": "clip_g"}.get(part)
            renamed.setdefault(f"{encoder}.transformer.{of_encoder}.weight" if encoder else key, []).append(
                (module, None if encoder else third))
    updates.modules = renamed
    return updates


def forge_unmatched(name: str, unet: Any, clip: Any) -> list[str]:
    """What the host's own tables leave over."""
    from backend.patcher.lora import load_lora, model_lora_keys_clip, model_lora_keys_unet
    rest = load_file(networks.available_networks[name].filename)
    for keys in (model_lora_keys_unet(unet.model, {}), model_lora_keys_clip(clip.cond_stage_model, {})):
        _, rest = load_lora(rest, keys)
    return sorted(rest)


def routes(_: Any, app: Any) -> None:
    """Add the probe's answers to the host's API."""

    @app.get("/aprendiz-probe/loaded")
    def loaded(checkpoint: str, plain: str, keys: str) -> dict[str, Any]:
        updates = Updates(plain, keys)
        with torch.no_grad():
            return compare((forge_loaded if FORGE else a1111_loaded)(checkpoint), updates)

    @app.get("/aprendiz-probe/sdxl")
    def sdxl(name: str, plain: str, keys: str, shapes: str) -> dict[str, Any]:
        updates, unmatched = Updates(plain, keys), []
        with torch.no_grad():
            found = compare(forge_sdxl(name, shapes, unmatched), forge_names(updates)) if FORGE \
                else compare(a1111_sdxl(name, shapes, unmatched), updates)
        return {**found, "unmatched": unmatched}

    @app.get("/aprendiz-probe/unmatched")
    def unmatched(name: str) -> list[str]:
        networks.list_available_networks()
        if not FORGE:
            return a1111_unmatched(name)
        objects = shared.sd_model.forge_objects
        return forge_unmatched(name, objects.unet, objects.clip)

    @app.get("/aprendiz-probe/card")
    def card(name: str) -> dict[str, Any]:
        page = next(page for page in ui_extra_networks.extra_pages if page.name == "lora")
        page.refresh()
        item = page.create_item(name, enable_filter=False)
        told = {key: value for key, value in item.items() if isinstance(value, (str, dict))}
        return {**told, "html": page.create_item_html("txt2img", item, page.card_tpl)}

    @app.get("/aprendiz-probe/versions")
    def versions() -> dict[str, str]:
        return {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": version("transformers"),
                "precision": str(devices.dtype).removeprefix("torch.")}


    @app.get("/aprendiz-probe/spent")
    def spent() -> float:
        return time.process_time()

    @app.get("/aprendiz-probe/model")
    def model() -> dict[str, Any]:
        from modules import sd_models
        data = sd_models.model_data  # asking for shared.sd_model would open one
        reforge = sys.modules.get("ldm_patched.modules.model_management")
        is_open = bool(reforge.current_loaded_models if reforge else data.forge_hash) if FORGE else data.sd_model is not None
        held = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
        return {"open": is_open, "mb": int(held[0]) // 1024 if held else None}


script_callbacks.on_app_started(routes)
