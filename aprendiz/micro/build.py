"""Make the embedded base again, from nothing: `python -m aprendiz.micro.build --out DIR`.

    tokenizer      CLIP's vocabulary, cut down to the words that are needed            seconds
    vae            128 x 128 pixels to 4 x 16 x 16 latents, and the scale of these     half an hour
    scenes         drawn, captioned and encoded once                                   a quarter of an hour
    text           the text encoder, on text alone                                     minutes
    unet           the U-Net, with the text encoder                                    hours
    decoder        the VAE's decoder once more, the latents staying as they are        a quarter of an hour
    evaluator      the network that counts what pictures show                          half an hour
    pack           all of it in half precision, as a diffusers folder                  seconds
    figures        how prompts are followed, and the evaluator's own errors            minutes

Times are of two CPU cores; a GPU takes minutes for all. What is done is not done again: stop it at any moment, and the same
command goes on. `--quick` runs every stage for a few steps, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load, save
from transformers import CLIPTextModel, CLIPTokenizer

from ..files import write_json
from ..formats.names import TEXT_1, file_module
from ..nets import evaluator
from . import measure
from .pictures import Prompt
from .scenes import CATEGORIES, HELD_OUT_SHAPES, Picture
from .tokens import write_tokenizer
from .train_evaluator import reconstruct, train_evaluator
from .train_text import train_text_encoder
from .train_unet import SCHEDULE, encode_scenes, read_scenes, train_unet
from .train_vae import finish_decoder, train_vae
from .training import QUICK, Build, Size, logger


def make_tokenizer(build: Build) -> None:
    """tokenizer/, clip_token_ids.json"""
    write_tokenizer(build.folder)


def make_vae(build: Build) -> None:
    """vae/"""
    train_vae(build, build.path("vae"))


def make_scenes(build: Build) -> None:
    """scenes/"""
    encode_scenes(build, AutoencoderKL.from_pretrained(build.path("vae")), build.path("scenes"))


def make_text(build: Build) -> None:
    """text/"""
    train_text_encoder(build, tokenizer(build), build.path("text"))


def make_unet(build: Build) -> None:
    """trained/unet, trained/text_encoder"""
    scale = AutoencoderKL.load_config(build.path("vae"))["scaling_factor"]
    scenes = read_scenes(build.path("scenes"), tokenizer(build))
    train_unet(build, scenes, tokenizer(build), build.path("text"), scale, build.path("trained"))


def make_decoder(build: Build) -> None:
    """finished_vae/"""
    finish_decoder(build, build.path("vae"), build.path("finished_vae"))


def make_evaluator(build: Build) -> None:
    """evaluator.safetensors"""
    vae = AutoencoderKL.from_pretrained(build.path("finished_vae")).to(build.device)
    train_evaluator(build, vae, build.path("evaluator.safetensors"))


def make_pack(build: Build) -> None:
    """base/, the diffusers folder in half precision."""
    scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(build.path("finished_vae")), tokenizer=tokenizer(build), scheduler=scheduler,
        unet=UNet2DConditionModel.from_pretrained(build.path("trained") / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(build.path("trained") / "text_encoder"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False).to(dtype=torch.float16)
    folder = build.path("base")
    pipeline.save_pretrained(folder)
    _name_for_all(folder / "text_encoder" / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):  # transformers 5 keeps tokenizer.json alone
        shutil.copy(build.path("tokenizer") / name, folder / "tokenizer" / name)
    shutil.copy(build.path("clip_token_ids.json"), folder / "clip_token_ids.json")
    for name in ("model_index.json", "unet/config.json", "vae/config.json"):
        _edit(folder / name, lambda config: config.pop("_name_or_path", None))
    # With "float16" here a stock load without a dtype mixes precisions and fails (transformers 5).
    _edit(folder / "text_encoder" / "config.json", lambda config: config.update(dtype="float32"))


def _name_for_all(file: Path) -> None:
    """Put `text_model.` in front of a text encoder's names: transformers 5 leaves it out, 4 and the hosts look for it."""
    weights = {file_module(TEXT_1, name): tensor for name, tensor in load(file.read_bytes()).items()}
    file.write_bytes(save(weights, metadata={"format": "pt"}))


def make_figures(build: Build) -> None:
    """figures.json: prompt following of the packed base beside what the VAE and the evaluator allow; the evaluator's errors."""
    judge = evaluator.load(build.path("evaluator.safetensors"))
    write_json(build.path("figures.json"), figures(build.path("base"), judge, build.size.measured))


def figures(base: Path, judge: evaluator.Evaluator, count: int = 96) -> dict[str, Any]:
    """Of any base in micro's form: shares in [0, 1] of prompts followed, and the evaluator's recall and false positives."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    following = {}
    for name in CATEGORIES:
        following[name] = {"generated": asdict(measure.follow(stock_generator(pipeline), name, count, judge)),
                           "through the VAE": asdict(measure.ceiling(name, count, judge, through_vae(pipeline.vae))),
                           "drawn": asdict(measure.ceiling(name, count, judge))}
        logger.info("figures: %s %s", name, following[name])
    found = {f"{shape}, {name}": {"recall": measure.recall(shape, name, 5 * count, judge),
                                  "false positives": measure.false_positives(shape, name, 10 * count, judge)}
             for name in ("single_simple", "single") for shape in HELD_OUT_SHAPES}
    return {"following": following, "evaluator": found}


def stock_generator(pipeline: StableDiffusionPipeline) -> measure.Generate:
    """Pictures by diffusers' own pipeline, each from its own seed, 16 at a time."""
    def generate(prompts: Sequence[Prompt]) -> list[Any]:
        pictures: list[Any] = []
        for start in range(0, len(prompts), 16):
            some = prompts[start:start + 16]
            seeds = [torch.Generator().manual_seed(prompt.seed) for prompt in some]
            pictures += pipeline([prompt.text for prompt in some], width=measure.SIZE, height=measure.SIZE, generator=seeds,
                                 num_inference_steps=measure.STEPS, guidance_scale=measure.GUIDANCE).images
        return pictures
    return generate


def through_vae(vae: AutoencoderKL) -> Callable[[Sequence[Picture]], list[Picture]]:
    """What a VAE makes of pictures, one at a time."""
    return lambda pictures: [reconstruct(vae, [picture])[0].permute(1, 2, 0).numpy() for picture in pictures]


def tokenizer(build: Build) -> CLIPTokenizer:
    """The build's own."""
    return CLIPTokenizer.from_pretrained(build.path("tokenizer"))


def _edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    write_json(file, config)


STAGES: dict[str, Callable[[Build], None]] = {
    "tokenizer": make_tokenizer, "vae": make_vae, "scenes": make_scenes, "text": make_text, "unet": make_unet,
    "decoder": make_decoder, "evaluator": make_evaluator, "pack": make_pack, "figures": make_figures,
}


def run(build: Build, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Run the stages that are not done yet, in order; each leaves a mark in `done/` once all of its files are there."""
    for name in stages:
        mark = build.path("done") / name
        if mark.exists():
            logger.info("%s: done before", name)
            continue
        logger.info("%s: begins", name)
        STAGES[name](build)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        logger.info("%s: done", name)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m aprendiz.micro.build", description="Make the embedded base again.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the base and everything on the way to it")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage; may be given several times")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training itself")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures beside it")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it works")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(chosen.threads)
    torch.set_float32_matmul_precision("high")
    size = QUICK if chosen.quick else Size()
    build = Build(chosen.out.resolve(), torch.device(chosen.device), size, chosen.workers)
    build.folder.mkdir(parents=True, exist_ok=True)
    run(build, tuple(chosen.stage or STAGES))


if __name__ == "__main__":
    main()
