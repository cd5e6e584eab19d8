"""In diffusers' own pipelines: our LoRA files of the true shapes load whole, patch weights exactly, change the picture."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import true_checkpoint
import true_lora
from safetensors.torch import load_file

from aprendiz.families import Base
from aprendiz.formats import checkpoint, names
from aprendiz.settings import BaseSettings

ROW = Path(__file__).parents[2] / "benchmarks" / "hosts" / "diffusers-lora.json"

pytestmark = pytest.mark.quality


def weightless(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter one zero, seen in the parameter's shape: it takes no memory, and adapters find a device."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return module


def pipeline_of(family: str, base: Base) -> Any:
    """diffusers' pipeline around a base's parts."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                              clip_sample=False)
    tokenizers = [*base.tokenizers, None, None]
    if family == "sdxl":
        return StableDiffusionXLPipeline(base.vae, *base.text_encoders, *tokenizers[:2], base.network, scheduler)
    return StableDiffusionPipeline(base.vae, *base.text_encoders, tokenizers[0], base.network, scheduler, None, None,
                                   requires_safety_checker=False)


def adapted_modules(pipeline: Any) -> dict[str, Any]:
    """The layers under an adapter, by part and module as files have them."""
    parts = {"network": pipeline.unet, "text_encoder_1": pipeline.text_encoder}
    if hasattr(pipeline, "text_encoder_2"):
        parts["text_encoder_2"] = pipeline.text_encoder_2
    return {f"{part}.{names.file_module(part, name)}": layer
            for part, module in parts.items() for name, layer in module.named_modules()
            if hasattr(layer, "lora_A") and not isinstance(layer, torch.nn.ModuleDict)}


def largest_error(layers: dict[str, Any], plain: dict[str, torch.Tensor]) -> float:
    """Each layer given a random weight in its turn, merged by peft, and compared with W + up down alpha / rank."""
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for name, layer in layers.items():
        down, up, alpha = (plain[f"{name}.{half}"] for half in ("down", "up", "alpha"))
        parameter = layer.base_layer.weight
        weight, nothing = torch.randn(parameter.shape, generator=generator) * 0.05, parameter.data
        update = (up.flatten(1) @ down.flatten(1)) * (float(alpha) / down.shape[0])
        parameter.data = weight.clone()
        layer.merge()
        worst = max(worst, float((parameter.data - weight - update.view(weight.shape)).abs().max()))
        parameter.data = nothing
    return worst


def keep(family: str, row: dict[str, Any]) -> None:
    """Write the row; figures of another test stay."""
    rows = json.loads(ROW.read_text(encoding="utf-8")) if ROW.is_file() else {}
    rows |= {"host": "diffusers"} | {name: importlib.metadata.version(package) for name, package in (
        ("version", "diffusers"), ("peft", "peft"), ("transformers", "transformers"))}
    rows[family] = rows.get(family, {}) | row
    ROW.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("family", "modules"), [("sd1", 350), ("sdxl", 1052)])
def test_a_lora_of_the_true_shape_loads_whole_and_patches_every_weight_exactly(
        family: str, modules: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lora = true_lora.write(family, tmp_path)
    base = true_lora.true_base(family)
    for part in base.parts().values():
        weightless(part)
    pipeline = pipeline_of(family, base)
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(str(lora.file.parent), weight_name=lora.file.name)
    layers, plain = adapted_modules(pipeline), load_file(lora.plain)
    told = [record.getMessage() for record in caplog.records]
    assert not [text for text in told if "unexpected" in text.lower() or "not" in text.lower()], told
    assert set(layers) == {name.removesuffix(".down") for name in plain if name.endswith(".down")}
    assert len(layers) == modules == lora.modules
    worst = largest_error(layers, plain)
    assert worst <= 1e-6
    keep(family, {"modules": modules, "matched": len(layers), "unmatched": 0, "largest_weight_error": worst})


def test_a_lora_of_the_true_shape_changes_the_picture(tmp_path: Path) -> None:
    lora = true_lora.write("sd1", tmp_path)
    file = true_checkpoint.write_sd1(tmp_path / "true.safetensors")
    base = checkpoint.open_base(BaseSettings(path=str(file)), torch.float32)
    from transformers import CLIPTokenizer
    assert isinstance(base.tokenizers[0], CLIPTokenizer)
    pipeline = pipeline_of("sd1", base)

    def picture(draw: Callable[..., Any]) -> np.ndarray:
        generator = torch.Generator().manual_seed(7)
        return np.asarray(draw("a cat", width=64, height=64, num_inference_steps=3, generator=generator).images[0], np.float64)

    before = picture(pipeline)
    assert np.array_equal(picture(pipeline), before)
    pipeline.load_lora_weights(str(lora.file.parent), weight_name=lora.file.name)
    difference = float(np.abs(picture(pipeline) - before).mean())
    assert difference > 0.5
    keep("sd1", {"picture_difference": round(difference, 3)})
