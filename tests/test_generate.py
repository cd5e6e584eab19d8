"""Drawing: the same request gives the same picture, whatever stands beside it, and nothing of the base is disturbed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_flow
import torch
from PIL import Image

from aprendiz import generate, registry, samplers
from aprendiz.commands.drawing import read_count, weighted
from aprendiz.errors import AprendizError, ModelError, ProblemsError, RunError, SettingsError
from aprendiz.families import Base
from aprendiz.formats import checkpoint, kohya, png
from aprendiz.generate import draw
from aprendiz.request import Request, check, size_of
from aprendiz.settings import SAMPLERS, BaseSettings

FAMILIES = ("sd1", "sd2", "sdxl", "tiny_flow")
STAR = "a large red star on a white background"


def tiny(family: str) -> Base:
    return tiny_flow.FAMILY.tiny(0) if family == "tiny_flow" else registry.families()[family].tiny(0)


@pytest.fixture(scope="module")
def micro() -> Base:
    return checkpoint.open_base(BaseSettings(), torch.float32)


@pytest.fixture(scope="module")
def star(micro: Base) -> Image.Image:
    return draw(micro, [Request(prompt=STAR, seed=3)])[0]


def small(prompt: str = "a cat", **changes: Any) -> Request:
    return replace(Request(prompt=prompt, width=32, height=32, steps=3), **changes)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def furthest(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def redness(picture: Image.Image) -> np.ndarray:
    found = pixels(picture)
    return (found[..., 0] > 150) & (found[..., 1] < 110) & (found[..., 2] < 110)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_gives_one_picture_alone_or_in_any_batch(family: str) -> None:
    base = tiny(family)
    long = "a cat, " * 60  # more than one chunk of tokens
    requests = [small("a cat", seed=1), small(long, seed=2), small("a dog", seed=3, sampler="euler_a"),
                small("a cat", seed=4, guidance=2.0), small("a dog", seed=5, guidance=1.0), small("a cat", seed=6, width=48),
                small("", seed=7, negative=long)]
    together = draw(base, requests)
    alone = [draw(base, [request])[0] for request in requests]
    assert [picture.size for picture in together] == [(32, 32)] * 5 + [(48, 32), (32, 32)]
    assert max(furthest(one, other) for one, other in zip(together, alone)) <= 1
    again = draw(tiny(family), requests, batch_size=1)
    assert all(furthest(one, other) == 0 for one, other in zip(alone, again))
    assert furthest(together[0], together[3]) > 1 and furthest(together[0], together[1]) > 1


def sample_a_known_distribution(
        name: str, steps: int, prediction: str, zero_terminal_snr: bool) -> tuple[list[float], torch.Tensor]:
    """The timesteps and what a sampler finds where data is normal, so that the expected x0 of any noisy value is known exactly.

    Its mean is 0.7 and its deviation 0.5.
    """
    mean, variance = 0.7, 0.25
    base: Any = SimpleNamespace(prediction=prediction, zero_terminal_snr=zero_terminal_snr, schedule={})
    sampler = samplers.scheduler(base, name, steps, (8, 8))
    alphas = torch.cumprod(1 - samplers.betas(base), 0).sqrt()
    noise = torch.randn((16, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(i) for i in range(16)]
    extra = {"generator": generators} if name in samplers.DRAWS_NOISE and prediction != "flow" else {}
    x = noise * (1.0 if prediction == "flow" else float(sampler.init_noise_sigma))
    times = samplers.begin(sampler, 0)
    for time in times:
        if prediction == "flow":
            noisy, alpha, sigma = x, 1 - float(time) / 1000, float(time) / 1000
        else:
            noisy, alpha = sampler.scale_model_input(x, time), float(np.interp(float(time), np.arange(1000), alphas.numpy()))
            sigma = (1 - alpha**2) ** 0.5
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (noisy - alpha * mean)
        epsilon = (noisy - alpha * clean) / sigma
        answer = {"epsilon": epsilon, "v": alpha * epsilon - sigma * clean, "flow": epsilon - clean}[prediction]
        x = sampler.step(answer.float(), time, x, return_dict=False, **extra)[0]
    return [float(time) for time in times], x


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction,zero_terminal_snr", [("epsilon", False), ("v", False), ("v", True), ("flow", False)])
def test_every_sampler_finds_a_distribution_whose_best_prediction_is_known(
        name: str, prediction: str, zero_terminal_snr: bool) -> None:
    _, x = sample_a_known_distribution(name, 8 if name == "lcm" else 20, prediction, zero_terminal_snr)
    assert abs(float(x.mean()) - 0.7) < 0.06
    # Latent consistency steps jump to the expected picture, so their spread is smaller.
    assert (0.25 if name == "lcm" and prediction != "flow" else 0.37) < float(x.std()) < 0.56


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_more_steps_begin_in_the_noise_too_and_draw_no_worse(name: str, prediction: str) -> None:
    for steps in (61, 600, 1000):
        times, x = sample_a_known_distribution(name, steps, prediction, False)
        falling = list(zip(times, times[1:]))
        assert times[0] == 999 and all(after <= before for before, after in falling)
        # Heun and PLMS ask twice at a timestep; Karras' spacing is one of noise levels, finer than timesteps at its end.
        if name not in ("heun", "pndm", "dpm++_2m_karras", "dpm++_sde"):
            assert len(times) == steps and all(after < before for before, after in falling)
        assert abs(float(x.mean()) - 0.7) < 0.05 and 0.43 < float(x.std()) < 0.52, steps


@pytest.mark.parametrize("count", ["2,5", "two", "1.5", ""])
def test_a_count_is_one_whole_number(count: str, answers: Callable[[str, object], None]) -> None:
    with pytest.raises(SettingsError, match=f"^count is '{count}'. It takes one whole number.$") as caught:
        read_count(Namespace(count=count))
    answers("generate --count " + count, caught.value)


def test_a_weight_beyond_all_numbers_is_refused(tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    file = tmp_path / "fish.safetensors"
    file.write_bytes(b"")
    for text in ("1e400", "-1e999"):
        with pytest.raises(SettingsError, match=f"^The weight '{text}' of .*fish.safetensors is no number.") as caught:
            weighted(f"{file}:{text}")
        answers(f"generate --lora fish.safetensors:{text}", str(caught.value).replace(str(tmp_path), "..."))
    assert weighted(f"{file}:-1e2") == (file, -100.0)


@pytest.mark.parametrize("prompt", [f"a (cat:{'9' * 44})", "(((a cat:90):-90):90)", "(" * 20_000 + "a cat"])
def test_a_prompt_whose_weights_leave_no_numbers_is_refused(prompt: str, answers: Callable[[str, object], None]) -> None:
    check([small("a (cat:1.5) and ((((a dog))))", negative="(a fish:-2)")])
    for request in (small(prompt), small("a cat", negative=prompt)):
        with pytest.raises(ProblemsError, match="Weights go up to 1000") as caught:
            check([request])
    answers(f"generate --negative '{prompt[:60]}'", caught.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_without_touching_the_training_it_interrupts(name: str) -> None:
    base = tiny("sd1")
    base.network.train()
    base.text_encoders[0].train()
    base.network.down_blocks[0].eval()  # type: ignore[union-attr, operator]
    modes = [module.training for part in base.parts().values() for module in part.modules()]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    picture = draw(base, [small(sampler=name, image=Image.new("RGB", (32, 32), "red"), strength=0.7), small(sampler=name)])[1]
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[arg-type]
    assert [module.training for part in base.parts().values() for module in part.modules()] == modes
    assert torch.is_grad_enabled() and picture.size == (32, 32) and pixels(picture).std() > 0


def test_modes_come_back_after_an_error_too() -> None:
    base = tiny("sd1")
    base.network.train()
    base.vae = None
    with pytest.raises(ModelError, match="has no VAE"):
        draw(base, [small()])
    assert base.network.training and torch.is_grad_enabled()


def test_micro_draws_the_star_that_the_stock_pipeline_draws(micro: Base, star: Image.Image) -> None:
    red, rest = redness(star), pixels(star)[~redness(star)]
    assert 0.08 < red.mean() < 0.35 and red[40:88, 40:88].mean() > 0.5
    assert np.median(rest) > 225
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    scheduler: Any = DDIMScheduler.from_config(micro.schedule)
    pipeline: Any = StableDiffusionPipeline(micro.vae, micro.text_encoders[0], micro.tokenizers[0], micro.network, scheduler,
                                            safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    stock = pipeline(STAR, num_inference_steps=20, guidance_scale=5.0, generator=noise).images[0]
    assert furthest(star, stock) <= 1


def test_micro_follows_a_negative_prompt_and_guidance(micro: Base, star: Image.Image) -> None:
    star_alone = Request(prompt="a star", seed=1, steps=10)
    against, plain = draw(micro, [replace(star_alone, negative="a red star"), replace(star_alone, guidance=1.0)])
    assert furthest(plain, against) > 10 and redness(against).mean() < 0.02
    assert furthest(draw(micro, [Request(prompt=STAR, seed=3, guidance=5.0, negative="")])[0], star) == 0


def test_strength_zero_is_the_reconstruction_and_more_strength_moves_further(micro: Base, star: Image.Image) -> None:
    square = "a blue square on a yellow background"
    same, some, most = draw(micro, [Request(prompt=square, image=star, strength=s, steps=10) for s in (0.0, 0.4, 0.95)])
    pixels_3HW = torch.from_numpy(np.asarray(star).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        through = micro.family.decode(micro, micro.family.encode_images(micro, pixels_3HW)[0])[0].permute(1, 2, 0)
    assert np.abs(((through.numpy() + 1) * 127.5) - pixels(same)).max() <= 1
    distances = [np.abs(pixels(one) - pixels(star)).mean() for one in (same, some, most)]
    assert distances[0] < 12 and distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("family,name", [
    *((family, "ddim") for family in FAMILIES),
    *(("sd1", name) for name in ("euler", "heun", "lms", "dpm++_2m_karras", "dpm++_sde", "pndm")),
])
def test_inpainting_keeps_every_pixel_outside_the_mask(family: str, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    image, mask = Image.fromarray(noise), Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 16))
    inside = np.asarray(mask) > 0
    drawn = draw(tiny(family), [small(image=image, mask=mask, strength=1.0, sampler=name)])[0]
    assert np.array_equal(np.asarray(drawn)[~inside], noise[~inside])
    assert np.abs(pixels(drawn)[inside] - noise[inside].astype(int)).mean() > 5


def test_inpainting_changes_what_the_prompt_says_within_the_mask(micro: Base) -> None:
    yellow = draw(micro, [Request(prompt="a large blue square on a yellow background", seed=1)])[0]
    mask = Image.new("L", yellow.size, 255)
    asked = Request(prompt="a large red star on a yellow background", seed=2, image=yellow, mask=mask, strength=1.0, steps=10)
    drawn = draw(micro, [asked])[0]
    assert redness(drawn).mean() > 0.08 and redness(yellow).mean() < 0.01


def test_the_size_is_as_asked_else_the_pictures_else_the_bases() -> None:
    base: Any = SimpleNamespace(resolution=64)
    assert size_of(base, Request(prompt="")) == (64, 64)
    assert size_of(base, Request(prompt="", width=32)) == (32, 64)
    assert size_of(base, Request(prompt="", image=Image.new("RGB", (50, 40)))) == (48, 40)
    assert size_of(base, Request(prompt="", image=Image.new("RGB", (4000, 1000)))) == (128, 32)
    assert size_of(base, Request(prompt="", width=24, height=16, image=Image.new("RGB", (50, 40)))) == (24, 16)


def test_a_side_that_is_not_asked_for_follows_from_the_pictures_shape() -> None:
    base: Any = SimpleNamespace(resolution=128)
    tall, thread = Image.new("RGB", (64, 256)), Image.new("RGB", (2, 5000))
    assert size_of(base, Request(prompt="", image=tall, width=64)) == (64, 256)
    assert size_of(base, Request(prompt="", image=tall, height=128)) == (32, 128)
    assert size_of(base, Request(prompt="", image=tall, width=104)) == (104, 416)
    assert size_of(base, Request(prompt="", image=thread, height=64)) == (8, 64)
    assert size_of(base, Request(prompt="", image=thread, width=64)) == (64, 8192)


@pytest.mark.parametrize("changes,sentences", [
    ({"width": 100}, ["width is 100, which is no multiple of 8. The nearest is 96."]),
    ({"width": 100, "height": 101}, ["width is 100", "height is 101"]),
    ({"steps": -1}, ["steps is -1. It must lie between 1 and 1000."]),
    ({"guidance": float("nan")}, ["guidance is nan"]),
    ({"sampler": "euler a"}, ["sampler is 'euler a'", "Did you mean 'euler_a'?"]),
    ({"sampler": "lcm", "steps": 51}, ["steps is 51, but the sampler lcm takes at most 50."]),
    ({"mask": Image.new("L", (32, 32))}, ["A mask was given without a picture to change."]),
    ({"mask": Image.new("L", (32, 16)), "image": Image.new("RGB", (32, 32))},
     ["The mask is 32 x 16 pixels and the picture 32 x 32."]),
    ({"strength": 1.5}, ["strength is 1.5. It must lie between 0 and 1."]),
])
def test_an_impossible_request_is_refused_in_words_before_anything_is_drawn(
        changes: dict[str, Any], sentences: list[str], answers: Callable[[str, object], None]) -> None:
    with pytest.raises(ProblemsError) as raised:
        draw(tiny("sd1"), [small(**changes), small(**changes)])
    assert all(sentence in str(raised.value) for sentence in sentences)
    assert len(raised.value.problems) == len([s for s in sentences if not s.startswith("Did")])
    answers(f"generate with {', '.join(changes)}", raised.value)


def test_progress_counts_every_step_of_every_picture_once() -> None:
    told: list[tuple[int, int]] = []
    image = Image.new("RGB", (32, 32), "red")
    draw(tiny("sd1"), [small(), small(seed=1, sampler="heun"), small(image=image, strength=0.5)], lambda *at: told.append(at))
    assert told[-1] == (3 + 3 + 2, 8) and told == sorted(told) and {total for _, total in told} == {8}


def test_a_freed_text_encoder_does_where_the_states_are_given() -> None:
    base = tiny("sdxl")
    request = small(negative="a dog", seed=2)
    expected = draw(base, [request])[0]
    states = generate.encode_prompts(base, ["a cat", "a dog"])
    base.text_encoders, base.tokenizers = [], []
    assert furthest(draw(base, [request, request], states=states, batch_size=1)[1], expected) == 0
    with pytest.raises(ModelError, match="has no text encoder"):
        draw(base, [small("another")], states=states)


def lora(base: Base, file: Path, strength: float = 0.05) -> Path:
    random = torch.Generator().manual_seed(5)
    weights = []
    for part, names in base.family.lora_targets(base, "all").items():
        for name in names:
            weight = base.parts()[part].get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            down = torch.randn((2, *weight.shape[1:]), generator=random) * strength
            up = torch.randn((weight.shape[0], 2, *[1] * (weight.ndim - 2)), generator=random)
            weights.append(kohya.LoraWeight(part, name, down, up, 2.0))
    kohya.write(file, weights, base.family, {}, torch.float32)
    return file


@pytest.mark.parametrize("family", ("sd1", "sd2", "sdxl"))
def test_loras_change_the_picture_by_their_weights_and_leave_no_trace(family: str, tmp_path: Path) -> None:
    base = tiny(family)
    file = lora(base, tmp_path / "one.safetensors")
    before = {part: {name: tensor.clone() for name, tensor in module.state_dict().items()}
              for part, module in base.parts().items()}
    bare = draw(base, [small()])[0]
    drawn = {}
    for weights in ((0.0,), (1.0,), (0.5, 0.5), (1.0, -1.0)):
        with generate.with_loras(base, [(file, weight) for weight in weights]) as applied:
            drawn[weights] = draw(base, [small()])[0]
        assert [one.weight for one in applied] == list(weights) and all(len(one.hash) == 12 for one in applied)
    assert furthest(drawn[0.0,], bare) == 0 and furthest(drawn[1.0,], bare) > 3
    assert furthest(drawn[0.5, 0.5], drawn[1.0,]) <= 1 and furthest(drawn[1.0, -1.0], bare) <= 1
    assert all(torch.equal(tensor, before[part][name]) for part, module in base.parts().items()
               for name, tensor in module.state_dict().items())


def test_a_lora_of_another_size_is_refused_and_the_base_stays_whole(
        tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    base, module = tiny("sd1"), "down_blocks.0.attentions.0.proj_in"
    weight = kohya.LoraWeight("network", module, torch.ones(1, 7, 1, 1), torch.ones(7, 1, 1, 1), 1.0)
    kohya.write(tmp_path / "strange.safetensors", [weight], base.family, {}, torch.float32)
    fits = lora(base, tmp_path / "fits.safetensors")
    before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    with pytest.raises(ModelError, match=r"strange\.safetensors is a LoRA for another model: 1 of its 1 modules") as raised:
        with generate.with_loras(base, [(fits, 1.0), (tmp_path / "strange.safetensors", 1.0)]):
            pass
    answers("generate with a LoRA of another size", raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.network.state_dict().items())


def test_files_tell_what_they_were_drawn_from_and_are_never_overwritten(tmp_path: Path) -> None:
    base = tiny("sd1")
    file = lora(base, tmp_path / "zwx fish.safetensors")
    request = small("a cat, (fluffy:1.2)", negative="a dog", seed=9, sampler="dpm++_2m_karras", guidance=4.5)
    out = tmp_path / "deep" / "folder" / "cat.png"
    files = generate.generate(base, [request, replace(request, seed=10)], out, [(file, 0.8)])
    files += generate.generate(base, [request], out, [(file, 0.8)])
    assert [one.name for one in files] == ["cat.png", "cat-2.png", "cat-3.png"]
    assert furthest(Image.open(files[0]), Image.open(files[2])) == 0
    told = png.read(files[1])
    assert told is not None and told.prompt == "a cat, (fluffy:1.2) <lora:zwx fish:0.8>" and told.negative == "a dog"
    expected = {"Steps": "3", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "4.5", "Seed": "10", "Size": "32x32",
                "RNG": "CPU"}
    assert {name: told.settings[name] for name in expected} == expected
    assert told.settings["Lora hashes"].startswith("zwx fish: ")


def test_a_folder_gets_numbered_files_and_goes_on_counting(tmp_path: Path) -> None:
    base = tiny("sd1")
    for expected in (["00001.png", "00002.png"], ["00003.png", "00004.png"]):
        files = generate.generate(base, [small(), small(seed=1)], tmp_path / "all")
        assert [file.name for file in files] == expected


def test_a_place_that_cannot_be_written_is_told_before_the_first_step(
        tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    told: list[Any] = []
    with pytest.raises(RunError, match="cannot be written") as raised:
        generate.generate(tiny("sd1"), [small()], tmp_path / "file" / "cat.png", on_step=lambda *at: told.append(at))
    answers("generate into a folder that is a file", raised.value)
    with pytest.raises(SettingsError, match="cannot be written as TIFF") as raised_too:
        generate.generate(tiny("sd1"), [small()], tmp_path / "new" / "cat.tiff", on_step=lambda *at: told.append(at))
    answers("generate into a .tiff", raised_too.value)
    assert told == [] and not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", [
    "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model: one",
    'two\nlines\nNegative prompt: and\ntwo\nSteps: 20, Sampler: DDIM, Lora hashes: "one: abc, two: def", Note: "say \\"hi\\""',
    "año nuevo, 猫\nSteps: 1, Sampler: DDIM, Seed: 2",
])
@pytest.mark.parametrize("suffix", (".png", ".jpg", ".webp"))
def test_parameters_come_back_from_the_file_as_they_were(text: str, suffix: str, tmp_path: Path) -> None:
    given = png.Parameters.parse(text)
    assert given.text() == text and len(given.settings) >= 3
    file = png.save(Image.new("RGB", (8, 8)), tmp_path / f"one{suffix}", given)
    assert png.read(file) == given
    if suffix == ".png":
        with Image.open(file) as picture:
            assert picture.info["parameters"] == text


def test_a_prompt_alone_is_no_settings_and_a_plain_picture_says_nothing(tmp_path: Path) -> None:
    assert png.Parameters.parse("just a prompt, colour: red") == png.Parameters("just a prompt, colour: red")
    assert png.read(png.save(Image.new("RGB", (8, 8)), tmp_path / "one.png")) is None
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(AprendizError, match="cannot be read as a picture"):
        png.read(tmp_path / "text.png")
