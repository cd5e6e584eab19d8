"""Opening bases of every form and writing them as one file: bit for bit, or refused in one sentence."""

from __future__ import annotations

import functools
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import TRUE, true_shaped

from aprendiz import registry
from aprendiz.errors import ModelError
from aprendiz.families import Base, Source
from aprendiz.formats import checkpoint, original
from aprendiz.settings import BaseSettings

ROOT = Path(__file__).parents[1]
FAMILIES = list(registry.families())
Note = Callable[[str, object], None]


@functools.cache
def tiny(name: str) -> Base:
    return registry.families()[name].tiny()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each family's miniature as one file, as we write it."""
    folder = tmp_path_factory.mktemp("files")
    return {name: checkpoint.write_single_file(tiny(name), folder / f"{name}.safetensors")[0] for name in FAMILIES}


def rewritten(file: Path, target: Path, metadata: dict[str, str] | None = None, **changes: torch.Tensor | None) -> Path:
    """A copy of a file with other metadata and some tensors added, or left out where a name's beginning is given None."""
    left_out = tuple(name for name, tensor in changes.items() if tensor is None)
    tensors = {name: tensor for name, tensor in load_file(file).items() if not (left_out and name.startswith(left_out))}
    save_file(tensors | {name: tensor for name, tensor in changes.items() if tensor is not None}, target, metadata=metadata)
    return target


def own(file: Path) -> dict[str, str]:
    """Of our metadata only what shapes cannot tell of a miniature, without the prediction."""
    from safetensors import safe_open
    with safe_open(file, "pt") as opened:
        return {original.OWN: opened.metadata()[original.OWN]}


def opened(path: Path, dtype: torch.dtype = torch.float32, **settings: str | None) -> Base:
    return checkpoint.open_base(BaseSettings(path=str(path), **settings), dtype)


def assert_same(one: Base, other: Base, dtype: torch.dtype = torch.float32, only: set[str] | None = None) -> None:
    """Every tensor equal, bit for bit; the VAE in float32, all else in `dtype`."""
    assert one.parts().keys() == other.parts().keys()
    for part in only or one.parts():
        expected, found = one.parts()[part].state_dict(), other.parts()[part].state_dict()
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.to(torch.float32 if part == "vae" else dtype)), (part, name)


def diffusers_folder(base: Base, folder: Path, variant: str | None = None) -> Path:
    """A base as diffusers saves it, part by part."""
    base.network.save_pretrained(folder / "unet", variant=variant)
    base.vae.save_pretrained(folder / "vae", variant=variant)
    for i, (encoder, tokenizer) in enumerate(zip(base.text_encoders, base.tokenizers)):
        ending = "_2" if i else ""
        encoder.save_pretrained(folder / f"text_encoder{ending}", variant=variant)
        tokenizer.save_pretrained(folder / f"tokenizer{ending}")
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(base.schedule), encoding="utf-8")
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    return folder


# ---- micro ----

def test_micro_opens_offline_with_its_own_tokens_and_resolution():
    base = checkpoint.open_base(BaseSettings(), torch.float32)
    assert (base.family.name, base.prediction, base.resolution, base.source.kind) == ("sd1", "epsilon", 128, "folder")
    tokens = base.family.tokenize(base, ["a large red star"])
    begin, end = base.tokenizers[0].bos_token_id, base.tokenizers[0].eos_token_id
    assert len(base.tokenizers[0]) < 49408 and tokens.ids_BNT[0, 0, 0] == begin
    assert tokens.ids_BNT[0, 0, 5:].tolist() == [end] * 72
    text = base.family.encode_tokens(base, tokens).text_BTD
    assert text.shape == (1, 77, base.network.config.cross_attention_dim) and text.isfinite().all()


def test_micro_reconstructs_pictures():
    base = checkpoint.open_base(BaseSettings(), torch.float32)
    row = torch.linspace(-1, 1, 128)
    pixels = torch.stack([row.expand(128, 128), row.expand(128, 128).T, -row.expand(128, 128)])[None]
    mean, _ = base.family.encode_images(base, pixels)
    with torch.no_grad():
        error = (base.family.decode(base, mean) - pixels).abs().mean()
    assert mean.shape == (1, 4, 16, 16) and error < 0.1


def test_micro_as_one_file_is_micro(tmp_path):
    """All but its own tokens, which the layout has no place for: such a file is refused rather than read with wrong ids."""
    base = checkpoint.open_base(BaseSettings(), torch.float32)
    file = checkpoint.write_single_file(base, tmp_path / "micro.safetensors")[0]
    with pytest.raises(ModelError, match="no tokenizer beside it"):
        opened(file)


# ---- one file ----

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_written_file_opens_bit_for_bit(name, dtype, files):
    again = opened(files[name], dtype)
    assert_same(tiny(name), again, dtype)
    assert again.dtype == dtype and again.family.name == name
    assert (again.prediction, again.resolution) == (tiny(name).prediction, 64)
    for module in again.parts().values():
        assert not module.training and not any(tensor.requires_grad or tensor.is_meta for tensor in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_opened_file_predicts_what_was_written(name, files):
    from aprendiz.families import PictureSize
    answers = []
    for base in (tiny(name), opened(files[name])):
        state = base.family.encode_tokens(base, base.family.tokenize(base, ["a (red:1.2) cat"]))
        conditioning = base.family.collate([state], [PictureSize((64, 64), (0, 0), (64, 64))])
        with torch.no_grad():
            answers.append(base.family.predict(base, torch.ones(1, 4, 8, 8), torch.tensor([500]), conditioning))
            answers.append(base.family.decode(base, torch.ones(1, 4, 8, 8)))
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[3])


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
@pytest.mark.parametrize("factor", [".scale_weight", ".weight_scale", "one a row"])
def test_the_matrices_of_a_scaled_fp8_file_are_multiplied_by_their_factors(factor, files, tmp_path):
    """As ComfyUI keeps them: every matrix of the network divided by a factor of its own so that fp8 holds it."""
    scaled: dict[str, torch.Tensor] = {"model.diffusion_model.scaled_fp8": torch.zeros(0)}
    expected = load_file(files["sd1"])
    for name, tensor in list(expected.items()):
        if name.startswith(original.NETWORK) and tensor.dim() == 2 and name.endswith(".weight"):
            by = tensor.abs().amax(1, keepdim=True) / 448 if factor == "one a row" else tensor.abs().max() / 448
            scaled[name] = (tensor / by).to(torch.float8_e4m3fn)
            ending = ".weight_scale" if factor == "one a row" else factor
            scaled |= {name.removesuffix(".weight") + ending: by, name.removesuffix(".weight") + ".scale_input": torch.ones(())}
            expected[name] = scaled[name].float() * by
    save_file(expected | scaled, tmp_path / "scaled.safetensors", metadata=own(files["sd1"]))
    save_file(expected, tmp_path / "plain.safetensors", metadata=own(files["sd1"]))
    assert len(scaled) > 100
    assert_same(opened(tmp_path / "plain.safetensors"), opened(tmp_path / "scaled.safetensors"))


@pytest.mark.parametrize("name", FAMILIES)
def test_written_files_are_read_alike_by_diffusers_own_converters(name, files):
    """The other way from the same names, written by other people."""
    from diffusers.loaders import single_file_utils as theirs
    tensors, base = load_file(files[name]), tiny(name)
    network = theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(base.network.config))
    vae = theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(base.vae.config))
    for expected, found in ((base.network.state_dict(), network), (base.vae.state_dict(), vae)):
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[key].reshape(tensor.shape)) for key, tensor in expected.items())


@pytest.mark.parametrize(("name", "prefix"), [("sd2", "cond_stage_model.model."), ("sdxl", "conditioner.embedders.1.model.")])
def test_openclip_encoders_are_read_alike_by_diffusers_own_converter(name, prefix, files):
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    encoder = tiny(name).text_encoders[-1]
    tensors = {key: tensor for key, tensor in load_file(files[name]).items() if key.startswith(prefix)}
    # It counts on a tensor that says the width of a projection, which files of SD2 have and the network does not use.
    tensors.setdefault(f"{prefix}text_projection", torch.zeros(encoder.config.hidden_size, encoder.config.hidden_size))
    found = convert_open_clip_checkpoint(encoder, tensors, prefix=prefix)
    expected = {key if key.startswith("text_") else f"text_model.{key}": tensor for key, tensor in encoder.state_dict().items()}
    found = {key if key.startswith("text_") else f"text_model.{key}": tensor for key, tensor in found.items()}
    assert expected.keys() <= found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_belongs_to_no_module_goes_along(name, files, tmp_path):
    """Layers that the network never sees, markers and whatever else: every key that was read is written again, but averages."""
    extra = {"cond_stage_model.model.logit_scale": torch.tensor(4.6), "alphas_cumprod": torch.rand(10),
             "model_ema.decay": torch.rand(1)}
    if name == "sd2":
        unseen = "cond_stage_model.model.transformer.resblocks.2.ln_1.weight"
        assert unseen in load_file(files[name])
        extra[unseen] = torch.full((32,), 7.0)
    source = rewritten(files[name], tmp_path / "source.safetensors", own(files[name]), **extra)
    base = opened(source, prediction="v")
    with torch.no_grad():
        base.network.conv_in.weight.zero_()
    written = checkpoint.write_single_file(base, tmp_path / "tuned.safetensors")[0]
    before, after = load_file(source), load_file(written)
    assert before.keys() - after.keys() == {"model_ema.decay"}
    assert after.keys() - before.keys() == ({"v_pred"} if name == "sdxl" else set())
    changed = {key for key in after.keys() & before.keys() if not torch.equal(after[key], before[key])}
    assert changed == {"model.diffusion_model.input_blocks.0.0.weight"}


def test_writing_in_half_precision_halves_the_file_and_reads_back_as_rounded(files, tmp_path):
    half = checkpoint.write_single_file(tiny("sd1"), tmp_path / "half.safetensors", dtype=torch.float16)[0]
    assert half.stat().st_size < 0.52 * files["sd1"].stat().st_size
    assert_same(tiny("sd1"), opened(half, torch.float16), torch.float16, only={"network", "text_encoder_1"})


def test_written_metadata_is_the_callers_and_private_to_nobody(tmp_path):
    from safetensors import safe_open
    file = checkpoint.write_single_file(tiny("sdxl"), tmp_path / "named.safetensors", {"modelspec.title": "Vases"})[0]
    with safe_open(file, "pt") as opened_file:
        metadata = opened_file.metadata()
    assert metadata["modelspec.title"] == "Vases" and metadata["modelspec.prediction_type"] == "epsilon"
    assert str(tmp_path) not in json.dumps(metadata)


def test_a_family_without_such_a_layout_is_refused(tmp_path, answers):
    from tiny_flow import TinyFlow
    with pytest.raises(ModelError, match="not written as one file") as caught:
        checkpoint.write_single_file(TinyFlow().tiny(), tmp_path / "flow.safetensors")
    answers("write_single_file: a flow base", caught.value)
    assert not list(tmp_path.iterdir())


# ---- true shapes ----

@pytest.mark.parametrize(("name", "count"), [("sd1", 686), ("sd2", 686), ("sdxl", 1680)])
def test_true_shapes_are_understood_from_a_file_alone(name, count):
    """The original names of the U-Nets that people have, and the U-Net built from their shapes: the same one."""
    from diffusers import UNet2DConditionModel
    base = true_shaped(name)
    state = base.network.state_dict()
    attention = original.attention_of(state)
    shapes = {original.network_piece(key, attention).key: tuple(tensor.shape) for key, tensor in state.items()}
    assert len(shapes) == len(state) == count
    prefixed = {original.NETWORK + key: shape for key, shape in shapes.items()}
    assert [family.name for family in registry.families().values() if family.recognise(prefixed)] == [name]
    config = original.network_config(shapes, base.family.layout(), {})
    if name == "sdxl":
        config["addition_time_embed_dim"] = (config["projection_class_embeddings_input_dim"] - 1280) // 6
        assert config["addition_time_embed_dim"] == 256
    with torch.device("meta"):
        again = UNet2DConditionModel(**config)
    assert {key: t.shape for key, t in again.state_dict().items()} == {key: t.shape for key, t in state.items()}
    heads = TRUE[name][0]["attention_head_dim"]
    assert config["attention_head_dim"] == (heads if isinstance(heads, list) else [heads] * 4)


@pytest.mark.parametrize(("name", "index", "expected"), [
    ("sd1", 0, {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu", "intermediate_size": 3072}),
    ("sd2", 0, {"num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu", "intermediate_size": 4096}),
    ("sdxl", 1, {"num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280}),
])
def test_text_encoders_of_true_shapes_are_understood(name, index, expected):
    base, layout = true_shaped(name), registry.families()[name].layout().texts[index]
    shapes: dict[str, tuple[int, ...]] = {}
    for key, tensor in base.text_encoders[index].state_dict().items():
        piece = original.text_piece(key, layout.openclip)
        shape = tuple(tensor.shape)
        shapes[piece.key] = (3 * shape[0], *shape[1:]) if piece.third is not None else shape[::-1] if piece.transpose else shape
    if layout.unused:
        last = {key: shape for key, shape in shapes.items() if "resblocks.22." in key}
        shapes |= {key.replace("resblocks.22.", "resblocks.23."): shape for key, shape in last.items()}
    config = original.text_config(shapes, layout, {})
    assert expected.items() <= config.items()
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (49408, 49406, 49407)


# ---- diffusers folders ----

@pytest.mark.parametrize("name", FAMILIES)
def test_a_diffusers_folder_opens_bit_for_bit(name, tmp_path):
    folder = diffusers_folder(tiny(name), tmp_path / name)
    again = opened(folder, torch.float16)
    assert_same(tiny(name), again, torch.float16)
    assert (again.family.name, again.prediction, again.resolution) == (name, tiny(name).prediction, 64)
    assert [t.pad_token_id for t in again.tokenizers] == [t.pad_token_id for t in tiny(name).tokenizers]
    tokens = [base.family.tokenize(base, ["8k (uhd:1.2), ñandú"]).tensors() for base in (tiny(name), again)]
    assert all(torch.equal(tensor, tokens[1][key]) for key, tensor in tokens[0].items())


def test_folders_of_other_versions_open_alike(tmp_path):
    """Weights in several files, the fp16 variant, encoders with and without `text_model.`, VAE attention as named in 2022."""
    base = tiny("sdxl")
    folder = diffusers_folder(base, tmp_path / "folder", variant="fp16")
    parts = folder / "unet"
    (file,) = parts.glob("*.safetensors")
    tensors = load_file(file)
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    for i, half in enumerate(halves):
        save_file(half, parts / f"part-{i}.safetensors")
    weight_map = {key: f"part-{i}.safetensors" for i, half in enumerate(halves) for key in half}
    index = parts / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    file.unlink()
    for name in ("text_encoder", "text_encoder_2"):
        (file,) = (folder / name).glob("*.safetensors")
        other = {key.removeprefix("text_model.") if "text_model" in key or "text_projection" in key else f"text_model.{key}": t
                 for key, t in load_file(file).items()}
        save_file(other, file)
    (file,) = (folder / "vae").glob("*.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    save_file({functools.reduce(lambda key, pair: key.replace(*pair), old.items(), key): tensor
               for key, tensor in load_file(file).items()}, file)
    assert_same(base, opened(folder))


def test_a_folder_says_its_prediction_and_its_noise(tmp_path):
    folder = diffusers_folder(tiny("sdxl"), tmp_path / "folder")
    config = {**tiny("sdxl").schedule, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_end": 0.02}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
    base = opened(folder)
    assert (base.prediction, base.zero_terminal_snr, base.schedule["beta_end"]) == ("v", True, 0.02)


def test_a_tokenizer_that_a_folder_lacks_is_the_shipped_one(tmp_path):
    import shutil
    folder = diffusers_folder(tiny("sd2"), tmp_path / "folder")
    shutil.rmtree(folder / "tokenizer")
    assert opened(folder).tokenizers[0]("a cat").input_ids == [49406, 320, 2368, 49407]


# ---- what the network predicts ----

@pytest.mark.parametrize(("name", "metadata", "keys", "yaml", "setting", "expected"), [
    ("sd1", {}, {}, None, "auto", ("epsilon", False)),
    ("sdxl", {}, {}, None, "auto", ("epsilon", False)),
    ("sd2", {"modelspec.prediction_type": "v"}, {}, None, "auto", ("v", False)),
    ("sd2", {"modelspec.prediction_type": "epsilon"}, {}, None, "auto", ("epsilon", False)),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, None, "auto", ("v", False)),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, {}, None, "auto", ("epsilon", False)),
    ("sd2", {}, {}, None, "v", ("v", False)),
    ("sd2", {}, {}, None, "epsilon", ("epsilon", False)),
    ("sd2", {}, {}, 'model:\n  params:\n    parameterization: "v"\n    unet_config:\n', "auto", ("v", False)),
    ("sd2", {}, {}, "model:\n  params:\n    unet_config:\n      target: x\n", "auto", ("epsilon", False)),
    ("sd1", {}, {}, "model:\n  params:\n    parameterization: v # why not\n", "auto", ("v", False)),
    ("sdxl", {}, {}, "a:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", "auto", ("v", False)),
    ("sdxl", {}, {}, "a:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling\n", "auto", ("epsilon", False)),
    ("sdxl", {}, {"v_pred": torch.zeros(1)}, None, "auto", ("v", False)),
    ("sdxl", {}, {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, None, "auto", ("v", True)),
    ("sdxl", {}, {"v_pred": torch.zeros(()), "ztsnr": torch.zeros(())}, None, "epsilon", ("v", True)),
])
def test_the_prediction_is_read_from_metadata_markers_yaml_and_then_the_setting(
        name, metadata, keys, yaml, setting, expected, files, tmp_path):
    file = rewritten(files[name], tmp_path / "model.safetensors", {**own(files[name]), **metadata}, **keys)
    if yaml is not None:
        file.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    source = checkpoint.find(BaseSettings(path=str(file), prediction=setting))
    assert (source.family, source.prediction, source.zero_terminal_snr) == (name, *expected)


def test_an_opened_v_model_schedules_as_its_markers_say(files, tmp_path):
    marks = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    file = rewritten(files["sdxl"], tmp_path / "model.safetensors", own(files["sdxl"]), **marks)
    base = opened(file)
    assert (base.prediction, base.zero_terminal_snr) == ("v", True)
    assert (base.schedule["prediction_type"], base.schedule["rescale_betas_zero_snr"]) == ("v_prediction", True)
    again = opened(checkpoint.write_single_file(base, tmp_path / "again.safetensors")[0])
    assert (again.prediction, again.zero_terminal_snr) == ("v", True)


def test_a_silent_sd2_file_is_an_error_that_names_the_setting(files, tmp_path, answers):
    file = rewritten(files["sd2"], tmp_path / "model.safetensors", own(files["sd2"]))
    with pytest.raises(ModelError) as caught:
        checkpoint.find(BaseSettings(path=str(file)))
    answers("--base: an SD2 checkpoint that does not say what it predicts", caught.value)
    assert caught.value.problem.where == "base.prediction" and "Set prediction to 'v'" in str(caught.value)


def test_a_file_named_like_a_v_model_without_a_marker_is_warned_about(files, tmp_path, caplog):
    file = rewritten(files["sdxl"], tmp_path / "noob_VPred_1.safetensors", own(files["sdxl"]))
    source = checkpoint.find(BaseSettings(path=str(file)))
    (problem,) = source.details["warnings"]
    assert problem.warning and problem.where == "base.prediction" and "named like a v-prediction model" in str(problem)
    assert problem.english in caplog.text
    assert not checkpoint.find(BaseSettings(path=str(file), prediction="v")).details["warnings"]


def test_a_setting_against_what_the_file_says_is_warned_about(files, caplog):
    source = checkpoint.find(BaseSettings(path=str(files["sd2"]), prediction="epsilon"))
    assert source.prediction == "v" and "is not used" in str(source.details["warnings"][0]) and "is not used" in caplog.text


@pytest.mark.parametrize(("name", "needs_yaml"), [("sd1", True), ("sd2", True), ("sdxl", False)])
def test_a_yaml_is_written_where_names_and_shapes_do_not_suffice(name, needs_yaml, files):
    yaml = files[name].with_suffix(".yaml")
    assert yaml.exists() == needs_yaml
    if needs_yaml:
        text = yaml.read_text(encoding="utf-8")
        assert original.parameterization(text) == tiny(name).prediction
        assert original.yaml_numbers(text)["num_head_channels"] == 16


def test_head_widths_of_an_unusual_file_are_read_from_its_yaml(files, tmp_path):
    bare = rewritten(files["sd1"], tmp_path / "model.safetensors")
    bare.with_suffix(".yaml").write_text(files["sd1"].with_suffix(".yaml").read_text(encoding="utf-8"), encoding="utf-8")
    details = checkpoint.find(BaseSettings(path=str(bare))).details["own"]
    assert details["network"]["num_head_channels"] == 16 and details["vae"]["scale"] == pytest.approx(0.18215)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(bare).items()}
    network = {name.removeprefix(original.NETWORK): shape for name, shape in shapes.items() if name.startswith(original.NETWORK)}
    assert original.network_config(network, tiny("sd1").family.layout(), details["network"])["attention_head_dim"] == [2, 4]


# ---- companions ----

@pytest.mark.parametrize("form", ["file", "diffusers file", "checkpoint", "folder", "model folder"])
def test_another_vae_takes_the_place_of_the_bases_own(form, files, tmp_path):
    other = registry.families()["sdxl"].tiny(seed=9)
    whole = checkpoint.write_single_file(other, tmp_path / "whole.safetensors")[0]
    scale, vae = 0.13025, {"checkpoint": whole, "folder": tmp_path / "vae", "model folder": tmp_path / "model"}.get(form)
    if form == "folder":
        other.vae.save_pretrained(vae)
    elif form == "model folder":
        diffusers_folder(other, vae)
    elif form != "checkpoint":
        vae = tmp_path / "vae.safetensors"
        bare = {key.removeprefix(original.VAE): t for key, t in load_file(whole).items() if key.startswith(original.VAE)}
        save_file(bare if form == "file" else other.vae.state_dict(), vae, metadata=own(whole))
    base = opened(files["sd1"], vae=str(vae))
    assert_same(Base(**{**vars(tiny("sd1")), "vae": other.vae}), base)
    assert base.vae.config.scaling_factor == scale


def test_a_vae_file_that_tells_no_scale_has_the_familys(tmp_path, files):
    from diffusers import AutoencoderKL
    vae = AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    for name, scale in (("sd1", 0.18215), ("sdxl", 0.13025)):
        base = opened(files[name], vae=str(tmp_path / "vae.safetensors"))
        assert base.vae.config.scaling_factor == scale
        assert all(torch.equal(tensor, base.vae.state_dict()[key]) for key, tensor in vae.state_dict().items())


@pytest.mark.parametrize("form", ["checkpoint", "model folder", "folder", "file"])
def test_a_base_without_text_encoder_takes_another_models(form, files, tmp_path):
    bare = rewritten(files["sd1"], tmp_path / "bare.safetensors", own(files["sd1"]), cond_stage_model=None)
    other = tiny("sd1")
    if form == "checkpoint":
        text = files["sd1"]
    elif form == "file":
        # An encoder alone does not tell its heads; CLIP's are 64 wide.
        from transformers import CLIPTextConfig, CLIPTextModel
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1))
        text = tmp_path / "clip_l.safetensors"
        save_file({f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in encoder.state_dict().items()}, text)
        found = opened(bare, text_encoder=str(text)).text_encoders[0]
        assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in encoder.state_dict().items())
        return
    else:
        folder = diffusers_folder(other, tmp_path / "model")
        text = folder if form == "model folder" else folder / "text_encoder"
    base = opened(bare, text_encoder=str(text))
    if form == "checkpoint":
        base.text_encoders[0].config.num_attention_heads = 4
    assert_same(other, base, only={"text_encoder_1", "network"})


# ---- what is refused ----

def broken(name: str, files: dict[str, Path], folder: Path) -> tuple[dict[str, str], str]:
    """A base that cannot be used, as settings, and what the answer must say."""
    path, whole = folder / "model.safetensors", files["sdxl"]
    settings, said = {"path": str(path)}, ""
    if name == "nothing there":
        said = "There is no model at"
    elif name == "LoRA":
        save_file({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}, path)
        said = "is a LoRA, not a base model"
    elif name == "PEFT LoRA":
        save_file({"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": torch.zeros(4, 8)}, path)
        said = "is a LoRA, not a base model"
    elif name == "VAE":
        save_file(tiny("sd1").vae.state_dict(), path)
        said = "is a VAE, not a base model"
    elif name == "text encoder":
        save_file(tiny("sd1").text_encoders[0].state_dict(), path)
        said = "is a text encoder, not a base model"
    elif name == "embedding":
        save_file({"emb_params": torch.zeros(2, 768)}, path)
        said = "is an embedding, not a base model"
    elif name == "ControlNet":
        save_file({"controlnet_cond_embedding.conv_in.weight": torch.zeros(16, 3, 3, 3)}, path)
        said = "is a ControlNet, not a base model"
    elif name == "truncated":
        path.write_bytes(whole.read_bytes()[:-1000])
        said = "is cut off"
    elif name == "truncated in its header":
        path.write_bytes(whole.read_bytes()[:500])
        said = "is cut off"
    elif name == "empty":
        path.write_bytes(b"")
        said = "is empty"
    elif name == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
        said = "is no .safetensors file"
    elif name == "pickle":
        path = folder / "model.ckpt"
        path.write_bytes(pickle.dumps({"state_dict": {}}))
        settings, said = {"path": str(path)}, "is a pickle"
    elif name == "torch zip under another name":
        torch.save({"state_dict": {}}, path)
        said = "is a pickle"
    elif name == "unknown family":
        save_file({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(4, 4)}, path)
        said = "is no model of a known kind"
    elif name == "unknown tensors":
        save_file({"layer.weight": torch.zeros(4, 4)}, path)
        said = "is no model of a known kind"
    elif name == "inpainting":
        key = f"{original.NETWORK}input_blocks.0.0.weight"
        rewritten(files["sd1"], path, own(files["sd1"]), **{key: torch.zeros(32, 9, 3, 3)})
        said = "takes 9 channels, not 4"
    elif name == "EDM":
        rewritten(whole, path, own(whole), **{"edm_vpred.sigma_max": torch.zeros(1)})
        said = "EDM"
    elif name == "without text encoder":
        rewritten(whole, path, own(whole), conditioner=None)
        said = "has no text encoder"
    elif name == "without VAE":
        rewritten(whole, path, own(whole), first_stage_model=None)
        said = "has no VAE"
    elif name == "a tensor missing":
        rewritten(whole, path, own(whole), **{f"{original.NETWORK}middle_block.0.in_layers.2.weight": None})
        said = "1 of its tensors are missing or of another shape, such as middle_block.0.in_layers.2.weight"
    elif name == "packed with factors for blocks":
        key = f"{original.NETWORK}time_embed.0"
        rewritten(whole, path, own(whole), **{f"{key}.weight_scale": torch.ones(2, 3)})
        said = "is packed in a form that is not read"
    elif name == "half of its text encoders":
        rewritten(whole, path, own(whole), **{"conditioner.embedders.1.": None})
        said = "lacks the text encoder 'text_encoder_2'"
    elif name == "another family's text encoder":
        rewritten(files["sd1"], path, own(files["sd1"]), cond_stage_model=None)
        settings, said = settings | {"text_encoder": str(files["sd2"])}, "lacks the text encoder 'text_encoder'"
    elif name == "text encoder not there":
        settings, said = {"path": str(whole), "text_encoder": str(path)}, "There is no text encoder at"
    elif name == "VAE not there":
        settings, said = {"path": str(whole), "vae": str(path)}, "There is no VAE at"
    elif name == "a LoRA for a VAE":
        save_file({"lora_unet_conv.lora_down.weight": torch.zeros(4, 8)}, path)
        settings, said = {"path": str(whole), "vae": str(path)}, "is no VAE"
    elif name == "a folder for a VAE":
        settings, said = {"path": str(whole), "vae": str(folder)}, "is no VAE"
    elif name == "a folder that is not diffusers":
        settings, said = {"path": str(folder)}, "is no diffusers folder"
    else:
        settings, said = broken_folder(name, folder)
    return settings, said


def broken_folder(name: str, folder: Path) -> tuple[dict[str, str], str]:
    """The same for diffusers folders."""
    import shutil
    model = diffusers_folder(tiny("sd1"), folder / "model")
    settings, said = {"path": str(model)}, ""
    if name == "a folder without weights":
        next((model / "unet").glob("*.safetensors")).unlink()
        said = "has no weights"
    elif name == "a folder of pickles":
        next((model / "unet").glob("*.safetensors")).unlink()
        torch.save({}, model / "unet" / "diffusion_pytorch_model.bin")
        said = "is a pickle"
    elif name == "a folder without text encoder":
        shutil.rmtree(model / "text_encoder")
        said = "has no text encoder"
    elif name == "a folder without VAE":
        shutil.rmtree(model / "vae")
        said = "has no VAE"
    elif name == "a folder of another family":
        shutil.move(model / "unet", model / "transformer")
        said = "is no model of a known kind"
    elif name == "a folder with a broken config":
        (model / "unet" / "config.json").write_text("{", encoding="utf-8")
        said = "cannot be read"
    else:
        raise ValueError(name)
    return settings, said


FOUND = ["nothing there", "LoRA", "PEFT LoRA", "VAE", "text encoder", "embedding", "ControlNet", "truncated",
         "truncated in its header", "empty", "text", "pickle", "torch zip under another name", "unknown family",
         "unknown tensors", "inpainting", "EDM", "without text encoder", "without VAE", "a folder that is not diffusers",
         "a folder without weights", "a folder of pickles", "a folder without text encoder", "a folder without VAE",
         "a folder of another family", "a folder with a broken config"]
LOADED = ["a tensor missing", "packed with factors for blocks", "half of its text encoders", "another family's text encoder",
          "text encoder not there", "VAE not there", "a LoRA for a VAE", "a folder for a VAE"]


@pytest.mark.parametrize("name", [*FOUND, *LOADED])
def test_what_cannot_be_used_is_answered_in_one_clear_message(name: str, files: dict[str, Path], tmp_path: Path, answers: Note):
    settings, said = broken(name, files, tmp_path)
    with pytest.raises(ModelError) as caught:
        if name in FOUND:
            checkpoint.find(BaseSettings(**settings))  # before anything heavy loads
        else:
            checkpoint.open_base(BaseSettings(**settings), torch.float32)
    answers(f"--base: {name}", caught.value)
    assert said in str(caught.value) and "{" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert all(value in str(caught.value) or Path(value).name in str(caught.value) or str(tmp_path) in str(caught.value)
               for value in (settings.get("vae") or settings.get("text_encoder") or settings["path"],))


# ---- cost ----

def test_finding_a_base_needs_no_torch(files):
    script = ("import sys; from aprendiz.formats import checkpoint; from aprendiz.settings import BaseSettings\n"
              "source = checkpoint.find(BaseSettings(path=sys.argv[1])); assert source.family == 'sdxl'\n"
              "assert checkpoint.find(BaseSettings()).resolution == 128\n"
              "assert not {'torch', 'numpy', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", script, str(files["sdxl"])], check=True, cwd=ROOT)


def test_the_digest_of_a_base_follows_its_content(files, tmp_path):
    one = checkpoint.sha256(checkpoint.find(BaseSettings(path=str(files["sd1"]))))
    assert re.fullmatch("[0-9a-f]{64}", one)
    copy = tmp_path / "another name.safetensors"
    copy.write_bytes(files["sd1"].read_bytes())
    assert checkpoint.sha256(checkpoint.find(BaseSettings(path=str(copy)))) == one
    folder = diffusers_folder(tiny("sd1"), tmp_path / "folder")
    source = checkpoint.find(BaseSettings(path=str(folder)))
    before = checkpoint.sha256(source)
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert checkpoint.sha256(source) != before != one


MEMORY = """
import sys, threading, time
import torch
from aprendiz.formats import checkpoint
from aprendiz.settings import BaseSettings

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)

checkpoint.open_base(BaseSettings(), torch.float16)  # what the libraries take
before = peak = anonymous()
done = False
thread = threading.Thread(target=watch)
thread.start()
base = checkpoint.open_base(BaseSettings(path=sys.argv[1]), torch.float16)
done = True
thread.join()
kept = sum(t.numel() * t.element_size() for module in base.parts().values() for t in module.parameters())
print(peak - before, kept)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell anonymous memory apart")
def test_loading_takes_little_more_memory_than_what_is_kept(tmp_path):
    """A file of 300 MB in float32, opened in half precision; beside the weights there is one tensor at a time."""
    from diffusers import UNet2DConditionModel
    base = tiny("sd1")
    with torch.device("meta"):
        network = UNet2DConditionModel(block_out_channels=(96, 192, 384, 384), cross_attention_dim=32, attention_head_dim=8)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    large = Base(**{**vars(base), "network": network, "source": Source("sd1", Path("large"), "memory", "epsilon")})
    file = checkpoint.write_single_file(large, tmp_path / "large.safetensors")[0]
    del large, network
    assert file.stat().st_size > 300e6
    done = subprocess.run([sys.executable, "-c", MEMORY, str(file)], check=True, cwd=ROOT, capture_output=True, text=True)
    peak, kept = map(int, done.stdout.split())
    assert kept < peak + 50e6 and peak < kept + 100e6, (peak, kept)
