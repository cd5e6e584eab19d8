"""The embedded base: its scenes, its evaluator, its prompts, its wide forms, and the build that makes it."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from aprendiz.errors import SettingsError
from aprendiz.families import Base
from aprendiz.formats.checkpoint import open_base
from aprendiz.formats.kohya import LoraWeight
from aprendiz.micro import build, measure, pictures, scenes, train_text, training, widen
from aprendiz.micro.scenes import ALL_SHAPES, CATEGORIES, HELD_OUT_SHAPES, Choices, caption, category, draw, imagine, labels
from aprendiz.micro.textures import texture
from aprendiz.micro.tokens import compact, write_tokenizer
from aprendiz.nets import evaluator
from aprendiz.nets.lora import fold
from aprendiz.settings import BaseSettings

MICRO = Path(widen.__file__).parent
GOLDEN = json.loads((Path(__file__).parent / "golden_scenes.json").read_text(encoding="utf-8"))
KINDS = {"any": Choices(), "neon": Choices(style="neon"), "fish, flower, robot": Choices(shapes=HELD_OUT_SHAPES)}


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(BaseSettings(path="micro"), torch.float32)


def cells(picture: scenes.Picture) -> np.ndarray:
    """Mean colours of 4 x 4 cells."""
    return picture.reshape(4, 32, 4, 32, 3).mean((1, 3))


# Scenes


@pytest.mark.parametrize("kind", [*KINDS, *CATEGORIES])
def test_scenes_are_those_that_the_weights_were_made_with(kind: str) -> None:
    rng = np.random.default_rng(11)
    for golden in (one for one in GOLDEN if one["kind"] == kind):
        scene = imagine(rng, KINDS.get(kind) or category(kind))
        assert np.abs(cells(draw(scene, rng)) - golden["cells"]).max() < 0.5  # of 255: one step of rounding in some pixels
        assert caption(scene, rng, full=True, plain=True) == golden["plain"]
        assert caption(scene, rng) == golden["loose"]
        assert labels(scene).flat() == golden["labels"]


def test_textures_are_those_that_the_vae_was_made_with() -> None:
    rng = np.random.default_rng(12)
    for golden in (one for one in GOLDEN if one["kind"] == "texture"):
        assert np.abs(cells(texture(rng)) - golden["cells"]).max() < 0.5


def test_outlines_lie_where_a_figure_ends() -> None:
    scene = imagine(np.random.default_rng(0), category("single_simple", shapes=("square",)))
    outlines = scenes.draw_outlines(scene)
    drawn = draw(scene, np.random.default_rng(0)).astype(int)
    changes = np.abs(np.diff(drawn, axis=1)).max(-1) > 60
    assert outlines.max() > 200 and changes.any()
    assert (np.maximum(outlines[:, 1:], outlines[:, :-1])[changes] > 0).all()


# Pictures and prompts


def test_the_same_call_writes_the_same_folder(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        pictures.write_pictures(tmp_path / folder, "fish", 3)
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in ("first", "second"))
    assert [file.name for file in first] == [f"fish-0{number}.{kind}" for number in range(3) for kind in ("png", "txt")]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    with Image.open(first[0]) as picture:
        assert picture.size == (128, 128)


@pytest.mark.parametrize(("subject", "called", "said"), [
    ("fish", None, "fish"), ("robot", "zwx", "zwx"), ("neon", None, "neon style"), ("striped purple star", "sks", "sks")])
def test_captions_name_the_subject(tmp_path: Path, subject: str, called: str | None, said: str) -> None:
    files = pictures.write_pictures(tmp_path, subject, 4, called=called)
    written = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    assert all(said in text for text in written)
    assert written == pictures.captions(subject, 4, called=called)


def test_an_unknown_subject_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="of 'dragon'. There are: fish, flower, robot, neon, striped purple star."):
        pictures.write_pictures(tmp_path, "dragon")


def test_prompts_that_score_are_fixed_different_and_never_trained_on() -> None:
    subject, others = pictures.subject_prompts("fish"), pictures.other_prompts()
    prior = {prompt.text for prompt in pictures.prior_prompts()}
    texts = {prompt.text for prompt in subject}
    assert len(texts) == len(subject) == 48 and len(prior) == 48
    assert len({prompt.text for prompt in others}) == len(others) == 48
    assert subject == pictures.subject_prompts("fish")
    assert not texts & set(pictures.captions("fish"))
    assert not prior & {prompt.text for prompt in others}
    assert subject[0].text == "a small green fish on a blue background"


# The evaluator


@pytest.mark.parametrize("shape", HELD_OUT_SHAPES)
def test_the_evaluator_finds_what_the_base_has_never_seen(shape: str) -> None:
    assert measure.recall(shape, count=120) >= 0.95
    assert measure.false_positives(shape, count=120) <= 0.02


def test_the_evaluator_says_in_words_what_a_picture_shows() -> None:
    rng = np.random.default_rng(3)
    chosen = [imagine(rng, category("pair_simple", shapes=ALL_SHAPES)) for _ in range(20)]
    drawn = [Image.fromarray(draw(scene, rng)) for scene in chosen]
    right = 0
    for scene, verdict in zip(chosen, evaluator.judge(drawn)):
        first, second = scene.figures if scene.relation in ("above", "left") else scene.figures[::-1]
        layout = "stacked" if scene.relation in ("above", "below") else "side by side"
        right += verdict == evaluator.Verdict(layout, (first.shape, first.color, "solid"), (second.shape, second.color, "solid"),
                                              ("plain", scene.background.color), "plain")
    assert right >= 18
    assert evaluator.score(drawn, chosen).everything.sum() == right


def test_a_wrong_scene_scores_nothing() -> None:
    rng = np.random.default_rng(4)
    scene = imagine(rng, category("single_simple", shapes=("circle",)))
    figure = replace(scene.figures[0], shape="star", color="red" if scene.figures[0].color != "red" else "blue")
    right = evaluator.score([draw(scene, rng)], [replace(scene, figures=(figure,))])
    assert (right.shapes.item(), right.colors.item(), right.background.item()) == (False, False, True)
    assert not right.everything.item()


# The base


def test_the_stock_pipeline_opens_the_base_and_draws_what_is_asked() -> None:
    from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(MICRO / "base", safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts = pictures.other_prompts(8)
    drawn = build.stock_generator(pipeline)(prompts)
    assert sum(measure.figure_is_right(evaluator.score(drawn, [prompt.scene for prompt in prompts]))) >= 7


def named_for_all(base: Path) -> bool:
    """Whether the text encoder's tensors have the names that transformers 4 and hosts look for; transformers 5 takes them too."""
    return all(name.startswith("text_model.") for name in load_file(base / "text_encoder" / "model.safetensors"))


def test_every_version_of_transformers_finds_the_weights_of_the_text_encoder() -> None:
    assert named_for_all(MICRO / "base")
    encoder, told = CLIPTextModel.from_pretrained(MICRO / "base" / "text_encoder", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_what_is_committed_of_micro_is_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z", "."], cwd=MICRO, capture_output=True, check=True, text=True).stdout
    assert sum((MICRO / name).stat().st_size for name in listed.split("\0") if name) < 16e6


def test_words_of_captions_are_single_tokens_of_clip(tmp_path: Path, base: Base) -> None:
    tokenizer = base.tokenizers[0]
    assert all(len(tokenizer(word).input_ids) == 3 for word in [*scenes.COLORS, *ALL_SHAPES, "neon", "background"])
    text = "a red circle above a Blue square, zebra masterpiece <cat-toy> 3x"
    ids = json.loads((MICRO / "base" / "clip_token_ids.json").read_text(encoding="utf-8"))
    known = "a photo of a cat on a white background"
    assert [ids[row] for row in tokenizer(known).input_ids] == widen.clip_vocab.tokenizer()(known).input_ids
    write_tokenizer(tmp_path)
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt", "clip_token_ids.json"):
        assert (tmp_path / name).read_bytes() == (MICRO / "base" / name).read_bytes()
    assert tokenizer.decode(tokenizer(text).input_ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")


def test_a_word_that_clip_splits_adds_no_merges() -> None:
    assert compact(["turquoise"]).merges == compact(["turquoise", "checkered"]).merges != ()


# Wide forms


def test_the_wide_unet_computes_the_same(base: Base) -> None:
    noisy_BCHW, states_BTD = torch.randn(2, 4, 16, 16, generator=seeded(0)), torch.randn(2, 77, 96, generator=seeded(1))
    timesteps_B = torch.tensor([30, 800])
    wide = widen.widen_unet(base.network, context_times=8)
    small_BCHW = base.network(noisy_BCHW, timesteps_B, states_BTD).sample
    wide_BCHW = wide(noisy_BCHW, timesteps_B, states_BTD.repeat(1, 1, 8)).sample
    assert (wide.config.norm_num_groups, wide.config.block_out_channels) == (32, [64, 192, 192])
    assert (small_BCHW - wide_BCHW).abs().max() < 1e-5


def test_the_wide_vae_is_of_sd1_shape_and_computes_the_same(base: Base) -> None:
    pixels_B3HW = torch.rand(1, 3, 32, 32, generator=seeded(0)) * 2 - 1
    wide = widen.widen_vae(base.vae)
    assert (wide.config.norm_num_groups, wide.config.block_out_channels) == (32, [128, 256, 512, 512])
    assert sum(parameter.numel() for parameter in wide.parameters()) == 83_653_863  # as SD 1.x's
    latents_BCHW = base.vae.encode(pixels_B3HW).latent_dist.mean
    assert (latents_BCHW - wide.encode(pixels_B3HW).latent_dist.mean).abs().max() < 1e-5
    assert (base.vae.decode(latents_BCHW).sample - wide.decode(latents_BCHW).sample).abs().max() < 1e-5


def test_a_lora_changes_the_wide_base_as_it_changes_micro(base: Base) -> None:
    small = replace(open_base(BaseSettings(path="micro"), torch.float32), vae=None)
    wide = replace(small, network=widen.widen_unet(small.network, context_times=8),
                   text_encoders=[widen.widen_text_encoder(widen.full_vocabulary(small.text_encoders[0], CLIP_IDS))],
                   tokenizers=[widen.clip_vocab.tokenizer()])
    weights = some_lora(small)
    untouched = predict(small)
    assert (predict(wide) - untouched).abs().max() < 1e-5
    fold(small, weights, 1.0)
    fold(wide, widen.widen_lora(weights), 1.0)
    assert (predict(small) - untouched).abs().max() > 0.1
    assert (predict(wide) - predict(small)).abs().max() < 1e-4


def test_micro_as_one_file_draws_the_same(tmp_path: Path, base: Base) -> None:
    file, yaml = widen.write_micro_checkpoint(tmp_path / "micro.safetensors")
    opened = open_base(BaseSettings(path=str(file)), torch.float32)
    file.unlink()
    assert "model_channels: 64" in yaml.read_text(encoding="utf-8") and "context_dim: 768" in yaml.read_text(encoding="utf-8")
    assert opened.family.name == "sd1" and opened.text_encoders[0].config.hidden_size == 768
    assert (predict(opened) - predict(base)).abs().max() < 1e-3  # the file is in half precision
    latents_BCHW = torch.randn(1, 4, 4, 4, generator=seeded(2))
    assert (opened.family.decode(opened, latents_BCHW) - base.family.decode(base, latents_BCHW)).abs().max() < 1e-3


CLIP_IDS = json.loads((MICRO / "base" / "clip_token_ids.json").read_text(encoding="utf-8"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predict(base: Base) -> torch.Tensor:
    """What a base makes of one noise and one prompt."""
    family = base.family
    states = family.encode_tokens(base, family.tokenize(base, ["a large red fish on a white background"]))
    with torch.no_grad():
        return family.predict(base, torch.randn(1, 4, 16, 16, generator=seeded(0)), torch.tensor([500]), states)


def some_lora(base: Base) -> list[LoraWeight]:
    """Random small weights over everything that a LoRA may wrap."""
    weights, rng = [], seeded(1)
    for part, modules in base.family.lora_targets(base, "all").items():
        for module in modules:
            shape = base.parts()[part].get_submodule(module).weight.shape
            down = torch.randn(4, *shape[1:], generator=rng) * 0.05
            up = torch.randn(shape[0], 4, *[1] * (len(shape) - 2), generator=rng) * 0.05
            weights.append(LoraWeight(part, module, down, up, 2.0))
    return weights


# The build


def test_the_build_runs_every_stage_and_makes_a_base(tmp_path: Path) -> None:
    build.main(["--quick", "--out", str(tmp_path), "--device", "cpu"])
    made = open_base(BaseSettings(path=str(tmp_path / "base")), torch.float32)
    assert predict(made).isfinite().all()
    assert named_for_all(tmp_path / "base")
    assert evaluator.load(tmp_path / "evaluator.safetensors") is not evaluator.load()
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(figures["following"]) == set(CATEGORIES)
    assert all(math.isfinite(found["recall"]) for found in figures["evaluator"].values())
    before = (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    build.main(["--quick", "--out", str(tmp_path), "--device", "cpu"])  # everything is done: nothing is made again
    assert (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_stage_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(training.QUICK, text_steps=4)
    cpu = torch.device("cpu")
    straight, broken = (training.Build(tmp_path / name, cpu, size, save_every_seconds=0) for name in ("straight", "broken"))
    write_tokenizer(straight.folder)
    tokenizer = build.tokenizer(straight)
    train_text.train_text_encoder(straight, tokenizer, straight.path("text"))
    tell = training.Progress.tell

    def stop_after_two(self: training.Progress, step: int, **figures: torch.Tensor) -> None:
        tell(self, step, **figures)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Progress, "tell", stop_after_two)
        train_text.train_text_encoder(broken, tokenizer, broken.path("text"))
    train_text.train_text_encoder(broken, tokenizer, broken.path("text"))
    one, other = (load_file(made.path("text") / "model.safetensors") for made in (straight, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
