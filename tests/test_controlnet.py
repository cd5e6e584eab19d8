"""ControlNet: untrained it changes nothing, what is stopped goes on bit for bit, and its files are those that hosts read."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lessons import losses, pictures, teach
from PIL import Image
from safetensors.torch import load_file, save_file

from aprendiz.__main__ import main
from aprendiz.commands.training import tell_result
from aprendiz.data.conditions import canny
from aprendiz.errors import ModelError, ProblemsError
from aprendiz.families import Base, PictureSize
from aprendiz.formats import checkpoint, controlnet, recognise
from aprendiz.generate import draw, generate
from aprendiz.nets.controlnet import Control, spread_hint, stir
from aprendiz.registry import families
from aprendiz.request import Request
from aprendiz.run import Run
from aprendiz.views.terminal import Screen

Note = Callable[[str, object], None]
FAMILIES = ("sd1", "sd2", "sdxl")
TRUE: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {"cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
             "block_out_channels": (320, 640, 1280),
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
             "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time",
             "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
}


def lines(width: int = 64, height: int = 64) -> Image.Image:
    """A condition picture."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 4] = picture[:, width // 3] = 255
    return Image.fromarray(picture)


def request(**changes: Any) -> Request:
    return replace(Request(prompt="a cat", width=64, height=64, steps=3, guidance=4.0), **changes)


def alike(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


@pytest.fixture(scope="module")
def tiny() -> Base:
    return families()["sd1"].tiny()


@pytest.fixture(scope="module")
def stirred(tiny: Base) -> torch.nn.Module:
    """A branch that changes pictures."""
    branch = tiny.family.control_branch(tiny)
    spread_hint(branch, 1)
    stir(branch, 0.1, 1)
    return branch


@pytest.fixture(scope="module")
def base_file(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.write_single_file(tiny, tmp_path_factory.mktemp("base") / "tiny.safetensors")[0]


@pytest.fixture(scope="module")
def learned(base_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A ControlNet after four steps."""
    folder = tmp_path_factory.mktemp("learned")
    return teach(folder / "out", pictures(folder / "red", size=(64, 64)), **CONTROL, base=str(base_file))


CONTROL: dict[str, Any] = {"method": "controlnet", "resolution": 64, "sampler_steps": 1, "output_init": 0.02, "crop": "random",
                           "flip": True, "ema_decay": 0.9, "batch_size": 3}


# Untrained


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spread", (False, True))
def test_an_untrained_controlnet_changes_no_latent(family: str, spread: bool) -> None:
    base = families()[family].tiny()
    branch = base.family.control_branch(base)
    if spread:
        spread_hint(branch, 7)
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    states = base.family.encode_tokens(base, base.family.tokenize(base, ["a cat", "a dog"]))
    sizes = [PictureSize((64, 64), (0, 0), (64, 64))] * 2
    conditioning = base.family.collate([states], sizes)
    condition = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        residuals = base.family.control(branch, noisy, timesteps, conditioning, condition)
        assert torch.equal(base.family.predict(base, noisy, timesteps, conditioning),
                           base.family.predict(base, noisy, timesteps, conditioning, residuals))


def test_a_picture_drawn_with_an_untrained_controlnet_is_the_bases_own(tiny: Base) -> None:
    branch = tiny.family.control_branch(tiny)
    plain, controlled = draw(tiny, [request(), request(controls=(Control(branch, lines()),))])
    assert alike(plain, controlled)


def test_the_hint_networks_layers_let_the_picture_through_and_its_end_is_silent(tiny: Base) -> None:
    def heard(branch: Any) -> float:
        hint = branch.controlnet_cond_embedding
        x = torch.from_numpy(np.array(lines(128, 128))).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            assert not hint(x).any()
            several = torch.cat([x, torch.zeros_like(x)])
            for layer in [hint.conv_in, *hint.blocks]:
                several = torch.nn.functional.silu(layer(several))
            return float((several[0] - several[1]).abs().max())

    usual, spread = (tiny.family.control_branch(tiny) for _ in range(2))
    spread_hint(spread, 1)
    assert heard(spread) > 30 * heard(usual)


# While it learns


def test_a_controlnet_stopped_in_mid_epoch_ends_with_the_very_weights_of_a_straight_one(
        base_file: Path, learned: Run, tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", size=(64, 64))
    teach(tmp_path / "b", data, stop_at=1, **CONTROL, base=str(base_file))
    stopped = teach(tmp_path / "b", data, **CONTROL, base=str(base_file))
    straight, resumed = load_file(learned.file), load_file(stopped.file)
    assert set(straight) == set(resumed) and all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert losses(learned) == losses(stopped)


def test_samples_show_the_condition_beside_the_picture_and_the_report_tells_the_edges(learned: Run) -> None:
    with Image.open(learned.samples / "step-000004-0.png") as sample:
        assert sample.size == (128, 64)
        shown = np.asarray(sample.convert("RGB"))[:, :64]
    assert set(np.unique(shown)) == {0, 255}
    scores = json.loads((learned.report / "scores.json").read_text(encoding="utf-8"))
    assert 0 <= scores["edge_f1_before"] <= 1 and 0 <= scores["edge_f1_after"] <= 1


def test_the_last_screen_says_how_to_draw_along_a_condition_of_the_run(learned: Run) -> None:
    condition = learned.samples / "condition-0.png"
    with Image.open(condition) as alone, Image.open(learned.samples / "step-000004-0.png") as sample:
        assert np.array_equal(np.asarray(alone.convert("RGB")), np.asarray(sample.convert("RGB"))[:, :64])
    told = io.StringIO()
    tell_result(learned, Screen(told, False))
    assert f"--controlnet {learned.file} --control {condition} --prompt" in told.getvalue()


def test_half_of_the_captions_are_dropped_unless_the_job_says_otherwise(learned: Run, base_file: Path) -> None:
    assert learned.job().data.caption_dropout == 0.5
    assert learned.job().with_values(data={"caption_dropout": 0.1}).data.caption_dropout == 0.1


def test_without_a_name_the_file_is_called_by_its_kind_and_its_base(base_file: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", 2, size=(64, 64))
    run = teach(tmp_path / "out", data, method="controlnet", control="tile", name=None, steps=1, resolution=64,
                base=str(base_file))
    assert run.file.name == "control-tile-sd15.safetensors"


def test_names_say_the_base_as_sd_webui_controlnet_reads_them() -> None:
    from aprendiz.methods.controlnet import name_problems
    said = {(name, family): [str(problem) for problem in name_problems(name, "canny", family)]
            for name, family in (("a-canny-sd15", "sd1"), ("canny-xl", "sdxl"), ("canny-sd21", "sd2"), ("canny", "sd1"),
                                 ("pixlated-canny", "sd1"), ("mine", "sd2"), ("canny", "flow"))}
    assert [len(problems) for problems in said.values()] == [0, 0, 0, 1, 1, 2, 0]
    assert "Call it canny-sd15." in said["canny", "sd1"][0] and "with xl in its name" in said["pixlated-canny", "sd1"][0]
    assert "Call it mine-canny-sd21." in said["mine", "sd2"][1]


def test_condition_pictures_of_ones_own_are_learned_and_count(base_file: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", size=(64, 64))
    for file in sorted(data.glob("*.png")):
        lines().rotate(90 * int(file.stem)).save(file.with_suffix(".cond.png"))
    settings = {**CONTROL, "base": str(base_file), "control": "other"}
    first = losses(teach(tmp_path / "a", data, **settings))
    for file in sorted(data.glob("*.cond.png")):
        with Image.open(file) as opened:
            inverted = Image.fromarray(255 - np.asarray(opened))
        inverted.save(file)
    assert losses(teach(tmp_path / "b", data, **settings)) != first


def test_a_controlnet_goes_on_from_a_file_of_either_layout(learned: Run, base_file: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", size=(64, 64))
    settings = {**CONTROL, "base": str(base_file), "steps": 1, "learning_rate": 0.0, "weight_decay": 0.0, "ema_decay": None}
    original = teach(tmp_path / "a", data, **settings, continue_from=str(learned.file), layout="original")
    again = teach(tmp_path / "b", data, **settings, continue_from=str(original.file))
    before, after = load_file(learned.file), load_file(again.file)
    assert all(name.startswith("control_model.") for name in load_file(original.file))
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


# Files


@pytest.mark.parametrize(("family", "count"), (("sd1", 340), ("sd2", 340), ("sdxl", 844)))
def test_names_and_shapes_of_true_size_are_the_hosts_and_both_layouts_tell_the_family(family: str, count: int) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel
    with torch.device("meta"):
        network = UNet2DConditionModel(**TRUE[family])
        base = replace_network(families()[family].tiny(), network)
        branch = base.family.control_branch(base)
        known = ControlNetModel(**{name: value for name, value in branch.config.items() if not name.startswith("_")})
    shapes = {name: tuple(tensor.shape) for name, tensor in branch.state_dict().items()}
    assert len(shapes) == count
    assert shapes == {name: tuple(tensor.shape) for name, tensor in known.state_dict().items()}
    original = {controlnet.to_original(name): shape for name, shape in shapes.items()}
    assert len(original) == count and {controlnet.from_original(name) for name in original} == set(shapes)
    assert {controlnet.from_original(name.removeprefix("control_model.")) for name in original} == set(shapes)
    assert original["control_model.input_hint_block.14.weight"][0] == 320
    assert ("control_model.zero_convs.11.0.weight" in original) == (family != "sdxl")
    assert controlnet.family_of(shapes) == controlnet.family_of(original) == family
    assert recognise.kind(shapes) == recognise.kind(original) == "controlnet"


def replace_network(base: Base, network: torch.nn.Module) -> Base:
    return replace(base, network=network)


def test_diffusers_opens_the_file_with_the_config_beside_it_and_reads_the_same_numbers(learned: Run) -> None:
    from diffusers import ControlNetModel
    opened = ControlNetModel.from_single_file(str(learned.file), config=str(learned.folder), local_files_only=True)
    told = load_file(learned.file)
    read = opened.state_dict()
    assert set(read) == set(told) and all(torch.equal(read[name], told[name].float()) for name in told)


def test_a_file_opens_as_the_branch_that_was_trained(learned: Run, base_file: Path) -> None:
    from aprendiz.settings import BaseSettings
    base = checkpoint.open_base(BaseSettings(path=str(base_file)), torch.float32)
    opened = controlnet.open_branch(learned.file, base)
    told = load_file(learned.file)
    assert opened.kind == "canny"
    assert all(torch.equal(tensor, told[name].float()) for name, tensor in opened.branch.state_dict().items())


def test_nothing_private_is_in_the_file(learned: Run) -> None:
    told = (learned.file.read_bytes()[:200_000]).decode("latin-1")
    assert str(learned.folder) not in told and "controlnet" in told and "networks.lora" not in told


# Drawing


def test_strength_start_and_end_say_how_much_of_the_control_is_heard(tiny: Base, stirred: torch.nn.Module) -> None:
    def drawn(**changes: Any) -> Image.Image:
        return draw(tiny, [request(controls=(Control(stirred, lines(), **changes),))])[0]

    plain, whole = draw(tiny, [request()])[0], drawn()
    assert not alike(plain, whole)
    assert alike(drawn(strength=0.0), plain) and alike(drawn(start=1.0), plain) and alike(drawn(end=0.0), plain)
    assert not alike(drawn(end=0.5), whole) and not alike(drawn(start=0.5), whole) and not alike(drawn(strength=0.5), whole)


def test_several_controls_add_up(tiny: Base, stirred: torch.nn.Module) -> None:
    half = Control(stirred, lines(), 0.5)
    once, twice = draw(tiny, [request(controls=(Control(stirred, lines()),)), request(controls=(half, half))])
    assert int(np.abs(np.asarray(once).astype(int) - np.asarray(twice)).max()) <= 1


def test_a_controlled_picture_is_the_same_alone_and_beside_others(tiny: Base, stirred: torch.nn.Module) -> None:
    turned = lines().rotate(90)
    asked = [request(controls=(Control(stirred, lines()),)), request(), request(controls=(Control(stirred, turned),), seed=4)]
    together = draw(tiny, asked)
    for one, picture in zip(asked, together):
        alone = draw(tiny, [one])[0]
        assert int(np.abs(np.asarray(alone).astype(int) - np.asarray(picture)).max()) <= 1
    assert not alike(draw(tiny, [replace(asked[0], controls=(Control(stirred, turned),))])[0], together[0])


def test_transparent_places_are_hidden_to_inpainting_and_black_to_all_else(stirred: torch.nn.Module) -> None:
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:20, :, 3] = 0
    picture = Image.fromarray(pixels)
    hidden, black = (Control(stirred, picture, kind=kind).pixels((64, 64)) for kind in ("inpaint", "canny"))
    assert (hidden[0, :, :20] == -1).all() and (hidden[0, :, 20:] == 1).all()
    assert (black[0, :, :20] == 0).all() and (black[0, :, 20:] == 1).all()


def test_control_works_on_top_of_a_lora(tiny: Base, stirred: torch.nn.Module, tmp_path: Path) -> None:
    from aprendiz.formats.kohya import LoraWeight, write
    torch.manual_seed(0)
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    weight = LoraWeight("network", module, torch.randn(2, 32), torch.randn(32, 2), 2.0)
    lora = write(tmp_path / "lora.safetensors", [weight], tiny.family, {})
    controlled = request(controls=(Control(stirred, lines(), name="lines"),))
    files = [*generate(tiny, [controlled], tmp_path / "a"), *generate(tiny, [controlled], tmp_path / "b", [(lora, 1.0)]),
             *generate(tiny, [request()], tmp_path / "c", [(lora, 1.0)])]
    drawn = []
    for file in files:
        with Image.open(file) as opened:
            drawn.append(np.asarray(opened))
    assert not any(np.array_equal(drawn[i], drawn[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    with Image.open(files[0]) as picture:
        assert "ControlNet 0: " in picture.text["parameters"] and "lines" in picture.text["parameters"]  # type: ignore[attr-defined]


def test_the_command_line_draws_with_several_controlnets(learned: Run, base_file: Path, tmp_path: Path) -> None:
    lines().save(tmp_path / "lines.png")
    given = ["--controlnet", f"{learned.file}:0.7", "--control", str(tmp_path / "lines.png")]
    command = [sys.executable, "-m", "aprendiz", "generate", "--base", str(base_file), "--prompt", "a cat", "--steps", "2",
               *given, *given, "--control-end", "0.5", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert Path(json.loads(done.stdout.splitlines()[-1])["file"]).is_file()


# Wrong


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    return told


def test_wrong_controls_are_told_of_in_one_sentence_before_the_base_opens(
        learned: Run, base_file: Path, tmp_path: Path, answers: Note, capsys: pytest.CaptureFixture[str]) -> None:
    lines().save(tmp_path / "lines.png")
    control, net = ["--control", str(tmp_path / "lines.png")], ["--controlnet", str(learned.file)]
    cases = {
        "--control without --controlnet": (control, "Name one with --controlnet"),
        "--controlnet without --control": (net, "its own --control"),
        "--controlnet NOWHERE": (["--controlnet", "nowhere.safetensors", *control], "no ControlNet file nowhere.safetensors"),
        "--controlnet CHECKPOINT": (["--controlnet", str(base_file), *control], "no ControlNet that is known"),
        "--control TEXT FILE": ([*net, "--control", str(learned.folder / "job.json")], "cannot be read as a picture"),
        "--control-end 2": ([*net, *control, "--control-end", "2"], "from 0 to 1"),
    }
    for what, (arguments, sentence) in cases.items():
        # The base is not there: had it been asked for first, it would be told of.
        told = said(["generate", "--base", "no-base.safetensors", "--prompt", "x", *arguments, "--out", str(tmp_path / "out")],
                    capsys)
        assert sentence in told
        answers(what, told)


def test_a_controlnet_of_another_family_or_shape_is_refused(learned: Run, tmp_path: Path, answers: Note) -> None:
    data = pictures(tmp_path / "red", size=(64, 64))
    other = checkpoint.write_single_file(families()["sdxl"].tiny(), tmp_path / "xl.safetensors")[0]
    with pytest.raises(ProblemsError, match="for Stable Diffusion 1.x, but the base is Stable Diffusion XL") as caught:
        teach(tmp_path / "a", data, method="controlnet", base=str(other), continue_from=str(learned.file), resolution=64)
    answers("continue_from: a ControlNet of another family", caught.value.problems[0])
    with pytest.raises(ModelError, match="another shape of Stable Diffusion 1.x") as shaped:
        teach(tmp_path / "b", data, method="controlnet", base="micro", continue_from=str(learned.file))
    answers("continue_from: a ControlNet of another shape", shaped.value)


def test_a_damaged_controlnet_is_told_of(learned: Run, base_file: Path, tmp_path: Path) -> None:
    lacking = load_file(learned.file)
    lacking.pop("controlnet_mid_block.weight")
    save_file(lacking, tmp_path / "lacking.safetensors")
    from aprendiz.settings import BaseSettings
    base = checkpoint.open_base(BaseSettings(path=str(base_file)), torch.float32)
    with pytest.raises(ModelError, match=r"1 of its tensors do not fit, such as controlnet_mid_block\.weight"):
        controlnet.open_branch(tmp_path / "lacking.safetensors", base)


def test_jobs_that_cannot_be_are_refused_and_misleading_names_warned_of(base_file: Path, tmp_path: Path, answers: Note) -> None:
    from aprendiz.check import check
    from aprendiz.settings import Job
    data = pictures(tmp_path / "red", size=(64, 64))

    def problems(**settings: Any) -> list[str]:
        job = Job.read({"method": "controlnet", "base": str(base_file), "data": str(data), "resolution": 64, **settings})
        return [str(problem) for problem in check(job, tmp_path).problems]

    cases: dict[str, tuple[dict[str, Any], str]] = {
        "canny_low above canny_high": ({"canny_low": 300}, "Exchange them"),
        "control other without condition pictures": ({"control": "other"}, "No picture has a condition picture"),
        "control other, computed": ({"control": "other", "condition_source": "computed"}, "cannot be computed"),
        "condition_source files with pictures of the base's own": (
            {"condition_source": "files", "prior": {"pictures": 4}}, "Set prior.pictures to 0"),
        "control other with pictures of the base's own": (
            {"control": "other", "prior": {"pictures": 4}}, "none can be computed for the kind other. Set prior.pictures to 0"),
        "condition pictures beside the pictures, but none beside those of the base's own": (
            {"condition_source": "files", "prior": {"prior_data": str(data)}}, "without a condition picture: 4. Put"),
        "control other with a folder of the base's own pictures": (
            {"control": "other", "prior": {"prior_data": str(data)}}, "without a condition picture: 4. Put"),
        "control depth without its model": ({"control": "depth"}, "Name the folder of its files"),
        "a name that lacks the kind of control": ({"name": "mine-sd15"}, "Call it mine-sd15-canny"),
        "a name that lacks the base": ({"name": "canny"}, "Call it canny-sd15"),
        "a name that hosts take for one of another base": ({"name": "canny-xl"}, "for one of another base"),
        "a name that hosts take for another kind": ({"name": "shuffle-canny"}, "for another kind"),
    }
    for what, (settings, sentence) in cases.items():
        told = [problem for problem in problems(**settings) if sentence in problem]
        assert len(told) == 1, what
        answers(what, told[0])
    assert problems() == []


@pytest.mark.parametrize("made", [False, True])
def test_what_draws_the_conditions_of_the_bases_own_pictures_is_looked_for(base_file: Path, tmp_path: Path, made: bool) -> None:
    from aprendiz.check import check
    from aprendiz.settings import Job
    data, own = (pictures(tmp_path / name, size=(64, 64)) for name in ("red", "own"))
    for file in sorted(data.glob("*.png")):
        lines().rotate(90 * int(file.stem)).save(file.with_suffix(".cond.png"))
    job = Job.read({"method": "controlnet", "base": str(base_file), "data": str(data), "resolution": 64, "control": "depth",
                    "class_word": "dog", "prior": {"pictures": 4} if made else {"prior_data": str(own)}})
    told = [str(problem) for problem in check(job, tmp_path).problems if not problem.warning]
    assert len(told) == 1 and "The kind depth is drawn by a model" in told[0]


def test_canny_of_the_samples_condition_is_the_pictures_own(learned: Run) -> None:
    """The sample's left half is what the network was shown: canny of the dataset's first picture, cut as samples are."""
    data = learned.job().data.path
    assert data is not None
    with Image.open(sorted(Path(data).glob("*.png"))[0]) as opened:
        wanted = canny(np.asarray(opened.convert("RGB")))
    with Image.open(learned.samples / "step-000004-0.png") as sample:
        shown = np.asarray(sample.convert("RGB"))[:, :64]
    assert np.array_equal(shown, wanted)
