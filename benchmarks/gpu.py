"""`python -m benchmarks.gpu`: a step of true-shape networks on a card: time, share of the card's own matrix rate, memory.

Stable Diffusion 1.5 at 512 pixels and SDXL at 1024, bf16, batch 1 and 4, LoRA rank 16 on attention. Each in three ways: the
textbook's (diffusers + peft under autocast, float32 adapters), ours eager, ours compiled block by block. `ours` is `train.update`
itself on a network with random weights and batches of noise, which cost what real ones do. Operations are those of matrix
products and convolutions, counted on the meta device; the card's own rate is that of a product of 8192 x 8192 matrices, measured
in the same run. `--tiny` runs it anywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aprendiz import train
from aprendiz.data.loader import Batch
from aprendiz.draws import Draws
from aprendiz.families import Base, Family, Source
from aprendiz.lesson import Learned
from aprendiz.nets import frozen
from aprendiz.nets.arena import Arena
from aprendiz.objectives import objective
from aprendiz.optimizers import Optimizer
from aprendiz.prepare import compile_blocks
from aprendiz.registry import families, methods
from aprendiz.settings import Job

from . import bases

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"sd15-512": ("sd1", bases.SD15, 512), "sdxl-1024": ("sdxl", bases.SDXL, 1024)}
TINY = {"sd15-512": ("sd1", bases.TINY_SD15, 64), "sdxl-1024": ("sdxl", bases.TINY_SDXL, 64)}
WAYS = ("textbook", "ours", "ours, compiled")
Step = Callable[[], Any]


def network(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A frozen U-Net of these dimensions, its weights random, made where it is to be."""
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        made: nn.Module = UNet2DConditionModel(**config)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)
    made = made.to_empty(device=device).requires_grad_(False).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.02)
    return made


def inputs(family: Family, config: dict[str, Any], side: int, count: int, device: torch.device) -> tuple[Tensor, Any]:
    """Latents, and text states of 77 tokens with all that the family tells its network."""
    text = torch.randn(count, 77, config["cross_attention_dim"], device=device)
    extra = {}
    if family.name == "sdxl":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        sizes = torch.full((count, 6), float(side), device=device)
        extra = {"pooled_BD": torch.randn(count, pooled, device=device), "size_B6": sizes}
    latents = torch.randn(count, 4, side // 8, side // 8, device=device)
    return latents, family.Conditioning(text_BTD=text, **extra)


def opened(family: Family, made: nn.Module, side: int) -> Base:
    """A base that has a network alone."""
    source = Source(family.name, Path("random"), "folder", "epsilon")
    return Base(family, source, made, None, [], [], "epsilon", dict(bases.SCHEDULE), side)


def job(targets: str = "attention") -> Job:
    """What `ours` is told."""
    found = Job.read({"base": "micro", "data": ".", "rank": 16, "targets": targets, "learning_rate": 1e-4, "steps": 1_000_000})
    return methods()["lora"].settle(found)


def ours(base: Base, latents: Tensor, conditioning: Any, compiled: bool) -> Step:
    """`train.update` on a batch of noise."""
    told, device = job(), latents.device
    frozen.exchange(base.network)
    method = methods()["lora"](base, told)
    arena = Arena(method.parts(), device, base.dtype)
    if compiled:
        compile_blocks(base)
    count = len(latents)
    batch = Batch(
        latents_BCHW=latents, noise_BCHW=torch.randn_like(latents), offset_BC11=latents.new_zeros(count, 4, 1, 1),
        time_B=torch.rand(count, device=device), conditioning=conditioning, tokens=None, sizes=(), mask_B1HW=None,
        weight_B=torch.ones(count, device=device), names=("",) * count, draws=Draws(0), step=0, samples=tuple(range(count)))
    fit: Any = SimpleNamespace(parts=1, loss_scale=1.0, overflowed=lambda arena: False)
    lesson: Any = SimpleNamespace(
        job=told, arena=arena, objective=objective(base, told.objective), method=method,
        optimizer=Optimizer(arena, told.optimizer, 1_000_000),
        processes=SimpleNamespace(sum=lambda tensor: tensor), loader=SimpleNamespace(samples=count))
    learned = Learned(fit)
    return lambda: train.update(lesson, learned, batch)


def textbook(base: Base, latents: Tensor, conditioning: Any) -> Step:
    """diffusers and peft under autocast, as the usual scripts train in bf16."""
    from diffusers import DDPMScheduler
    from peft import LoraConfig
    unet: Any = base.network
    device, schedule = latents.device, DDPMScheduler.from_config(bases.SCHEDULE)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian",
                                target_modules=base.family.lora_targets(base, "attention")["network"]))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    tensors = conditioning.to(base.dtype).tensors()
    added = {"text_embeds": tensors["pooled_BD"], "time_ids": tensors["size_B6"]} if "pooled_BD" in tensors else None

    def step() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=device)
        noisy = schedule.add_noise(latents, noise, timesteps).to(base.dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=base.dtype == torch.bfloat16):
            predicted = unet(noisy, timesteps, tensors["text_BTD"], added_cond_kwargs=added, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def products(family: Family, config: dict[str, Any], side: int, count: int) -> float:
    """Floating-point operations of all matrix products and convolutions of a step, adapters included."""
    meta = torch.device("meta")
    with meta:
        latents, conditioning = inputs(family, config, side, count, meta)
        base = opened(family, network(config, meta, torch.float32), side)
        method = methods()["lora"](base, job())
        for part in method.parts():
            for parameter in part.tensors.values():
                parameter.requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            family.predict(base, latents, torch.zeros(count, dtype=torch.long), conditioning).sum().backward()
    return float(counter.get_total_flops())


def seconds(step: Step, device: torch.device, warm_up: int, steps: int) -> list[float]:
    """Seconds of each step."""
    found = []
    for _ in range(warm_up + steps):
        wait(device)
        began = time.perf_counter()
        step()
        wait(device)
        found.append(time.perf_counter() - began)
    return found[warm_up:]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Floating-point operations a second in a product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / statistics.median(seconds(lambda: a @ b, device, 5, 20))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Every network, batch and way."""
    device = torch.device(asked.device)
    dtype = torch.float32 if asked.tiny and device.type == "cpu" else torch.bfloat16
    rate = matrix_rate(device, dtype, 256 if asked.tiny else 8192)
    told: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                            "torch": torch.__version__, "precision": str(dtype), "matrix_rate_tflops": rate / 1e12, "rows": []}
    for name, (family_name, config, side) in (TINY if asked.tiny else NETWORKS).items():
        family = families()[family_name]
        for count in asked.batch:
            flops = products(family, config, side, count)
            for way in asked.way:
                row = {"network": name, "batch": count, "way": way, **one(family, config, side, count, way, device, dtype, asked)}
                row["share_of_matrix_rate"] = round(flops / row["seconds"] / rate, 4)
                told["rows"].append(row)
                print("{network} batch {batch} {way}: {seconds:.4f} s, {share_of_matrix_rate:.1%} of the matrix rate, "
                      "{peak_gib:.2f} GiB, first step {first_seconds:.1f} s".format(**row), flush=True)
    return told


def one(family: Family, config: dict[str, Any], side: int, count: int, way: str, device: torch.device, dtype: torch.dtype,
        asked: argparse.Namespace) -> dict[str, float]:
    """One way of one network."""
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    base = opened(family, network(config, device, dtype), side)
    latents, conditioning = inputs(family, config, side, count, device)
    if way == "textbook":
        step = textbook(base, latents, conditioning)
    else:
        step = ours(base, latents, conditioning, compiled=way.endswith("compiled"))
    began = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - began
    found = seconds(step, device, asked.warm_up, asked.steps)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"seconds": statistics.median(found), "first_seconds": first, "peak_gib": peak}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--way", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="miniatures, to see that it runs")
    parser.add_argument("--write", metavar="NAME")
    asked = parser.parse_args()
    told = measure(asked)
    if asked.write:
        (RESULTS / f"{asked.write}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
