"""LoRA files: what is written loads in diffusers exactly, and every layout that there is can be read."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aprendiz import registry
from aprendiz.errors import ModelError, RunError, TrainingError
from aprendiz.families import Base
from aprendiz.formats import container, inspect, kohya, names, peft_layout
from aprendiz.formats.kohya import LoraWeight
from aprendiz.nets.lora import delta

FAMILIES = ("sd1", "sd2", "sdxl")
Note = Callable[[str, object], None]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest) -> Base:
    return registry.families()[request.param].tiny(0)


def random_lora(base: Base, targets: str = "all", rank: int = 2, alpha: float = 1.5, seed: int = 0) -> list[LoraWeight]:
    """A LoRA for every module of these targets, alpha unlike the rank."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for part, modules in base.family.lora_targets(base, targets).items():
        for module in modules:
            weight = base.parts()[part].get_submodule(module).weight
            down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.1
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * 0.1
            weights.append(LoraWeight(part, module, down, up, alpha))
    return weights


def deltas(weights: list[LoraWeight]) -> dict[tuple[str, str], torch.Tensor]:
    return {(one.part, one.module): delta(one.down, one.up, one.alpha) for one in weights}


def pipeline_of(base: Base) -> object:
    """diffusers' own pipeline around a tiny base."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    parts = {"vae": base.vae, "unet": base.network, "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
             "text_encoder": base.text_encoders[0],
             "tokenizer": base.tokenizers[0]}
    if len(base.text_encoders) > 1:
        return StableDiffusionXLPipeline(**parts, text_encoder_2=base.text_encoders[1], tokenizer_2=base.tokenizers[1])
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def loaded_by_diffusers(base: Base, file: Path) -> dict[tuple[str, str], torch.Tensor]:
    """The updates that diffusers made of a file, by our names."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    pipeline = pipeline_of(base)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)  # type: ignore[attr-defined]
    found = {}
    for part, module in base.parts().items():
        for name, layer in module.named_modules():
            if isinstance(layer, BaseTunerLayer):
                found[part, name] = layer.get_delta_weight("default_0").detach().clone()
    pipeline.unload_lora_weights()  # type: ignore[attr-defined]
    return found


def worst(ours: dict[tuple[str, str], torch.Tensor], theirs: dict[tuple[str, str], torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].reshape(theirs[key].shape) - theirs[key]).abs().max()) for key in ours)


def test_our_file_loads_in_diffusers_exactly_in_every_module(base: Base, tmp_path: Path) -> None:
    weights = random_lora(base)
    file = kohya.write(tmp_path / "ours.safetensors", weights, base.family, {}, torch.float32)
    assert worst(deltas(weights), loaded_by_diffusers(base, file)) <= 1e-6


def test_the_peft_export_loads_in_diffusers_exactly_without_metadata(base: Base, tmp_path: Path) -> None:
    weights = random_lora(base)
    file = peft_layout.write(tmp_path / "ours.safetensors", weights, base.family, {}, torch.float32)
    keys = load_file(file).keys()
    assert any(key.startswith("text_encoder.text_model.encoder.") for key in keys)
    assert not any(key.endswith(".alpha") for key in keys)
    assert worst(deltas(weights), loaded_by_diffusers(base, file)) <= 1e-6


def test_modules_of_unlike_rank_and_alpha_load_exactly_in_diffusers(base: Base, tmp_path: Path) -> None:
    other = {(one.part, one.module): one for one in random_lora(base, rank=4, alpha=3.0, seed=1)}
    weights = [other[one.part, one.module] if "attn1" in one.module or "fc1" in one.module else one for one in random_lora(base)]
    weights = [replace(one, alpha=0.5) if "proj_in" in one.module or "q_proj" in one.module else one for one in weights]
    file = kohya.write(tmp_path / "mixed.safetensors", weights, base.family, {}, torch.float32)
    assert worst(deltas(weights), loaded_by_diffusers(base, file)) <= 1e-6
    assert worst(deltas(weights), deltas(kohya.read(file)[0])) <= 1e-6


def test_names_are_those_that_all_hosts_take(base: Base, tmp_path: Path) -> None:
    file = kohya.write(tmp_path / "ours.safetensors", random_lora(base), base.family, {})
    prefixes = {key.split("_text_model")[0] for key in load_file(file) if "_te" in key and "text_model" in key}
    networks = {key.split("_blocks")[0].split("_block_")[0] for key in load_file(file) if key.startswith("lora_unet_")}
    if base.family.name == "sdxl":
        assert prefixes == {"lora_te1", "lora_te2"}
        assert networks == {"lora_unet_input", "lora_unet_middle", "lora_unet_output"}
    else:
        assert prefixes == {"lora_te"}
        assert networks == {"lora_unet_down", "lora_unet_mid", "lora_unet_up"}


def spelt(weights: list[LoraWeight], layout: str) -> dict[str, torch.Tensor]:
    """The same LoRA as other programs write it."""
    tensors = {}
    for one in weights:
        module = names.file_module(one.part, one.module)
        number = {"text_encoder_1": "1", "text_encoder_2": "2"}.get(one.part)
        te = "lora_te" + (number or "")
        original = names.to_original(module, "up_blocks.0" not in module)
        flat = {"kohya": f"lora_unet_{module}", "original": f"lora_unet_{original}"}.get(layout, "").replace(".", "_")
        if layout in ("kohya", "original"):
            name = f"{te}_{module}".replace(".", "_") if number else flat
            tensors |= {f"{name}.lora_down.weight": one.down, f"{name}.lora_up.weight": one.up,
                        f"{name}.alpha": torch.tensor(one.alpha)}
            continue
        text = "text_encoder" + ("_2" if number == "2" else "")
        name = f"{text}.{module}" if number else {"peft": f"unet.{module}", "base_model": f"base_model.model.{module}"}[layout]
        up = one.up * (one.alpha / one.down.shape[0])
        tensors |= {f"{name}.lora_A.weight": one.down, f"{name}.lora_B.weight": up}
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


@pytest.mark.parametrize("layout", ["kohya", "original", "peft", "base_model"])
def test_every_layout_reads_back_as_the_same_update(base: Base, layout: str, tmp_path: Path) -> None:
    weights = random_lora(base)
    save_file(spelt(weights, layout), tmp_path / "other.safetensors")
    found = kohya.read_all(tmp_path / "other.safetensors", base.family)
    assert found.unmatched == []
    assert worst(deltas(weights), deltas(found.weights)) <= 1e-6


def test_reading_names_modules_as_the_base_does(base: Base, tmp_path: Path) -> None:
    file = kohya.write(tmp_path / "ours.safetensors", random_lora(base), base.family, {})
    weights, _ = kohya.read(file, base.family)
    for one in weights:
        base.parts()[one.part].get_submodule(one.module)


def test_a_missing_or_zero_alpha_means_the_rank(base: Base, tmp_path: Path) -> None:
    tensors = load_file(kohya.write(tmp_path / "ours.safetensors", random_lora(base, rank=3), base.family, {}))
    bare = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file(bare | {key: torch.tensor(0.0) for key in tensors if key.endswith(".alpha")}, tmp_path / "zero.safetensors")
    for name in ("bare", "zero"):
        assert {one.alpha for one in kohya.read(tmp_path / f"{name}.safetensors")[0]} == {3.0}


@pytest.mark.parametrize("told", [{"lora_alpha": 8}, {"lora_alpha": 8, "use_rslora": True},
                                  {"lora_alpha": 8, "alpha_pattern": {"(attn1|self_attn).(to_q|q_proj)": 3}}])
def test_alpha_is_what_diffusers_wrote_beside_the_tensors(base: Base, told: dict[str, object], tmp_path: Path) -> None:
    weights = [replace(one, alpha=16.0) for one in random_lora(base, rank=16)]
    prefixes = {"network": "unet", "text_encoder_1": "text_encoder", "text_encoder_2": "text_encoder_2"}
    said = {f"{prefixes[part]}.{key}": value for part in base.parts() if part in prefixes
            for key, value in {"r": 16, "target_modules": [one.module for one in weights if one.part == part], **told}.items()}
    file = tmp_path / "theirs.safetensors"
    save_file(spelt(weights, "peft"), file, {"format": "pt", "lora_adapter_metadata": json.dumps(said)})
    found = kohya.read(file, base.family)[0]
    assert worst(deltas(found), loaded_by_diffusers(base, file)) <= 1e-6
    assert inspect.inspect(file).alphas == Counter(one.alpha for one in found)


@pytest.mark.parametrize("said", ["", "{", "[]", '{"unet.lora_alpha": "8"}', '{"unet.lora_alpha": 0, "unet.alpha_pattern": 3}',
                                  '{"unet.alpha_pattern": {"(": 8, "conv1": "8"}}'])
def test_what_diffusers_wrote_is_left_where_it_makes_no_sense(said: str, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    file = tmp_path / "theirs.safetensors"
    save_file(spelt(random_lora(base, rank=3), "peft"), file, {"lora_adapter_metadata": said})
    assert {one.alpha for one in kohya.read(file)[0]} == {3.0}


@pytest.mark.parametrize("suffix", [".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"])
def test_a_dora_is_refused_and_not_read_as_a_lora(suffix: str, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    tensors = spelt(random_lora(base), "peft")
    tensors |= {key.replace(".lora_A.weight", suffix): torch.ones(4) for key in tensors if key.endswith(".lora_A.weight")}
    save_file(tensors, tmp_path / "dora.safetensors")
    with pytest.raises(ModelError, match="of a kind that cannot be read here"):
        kohya.read(tmp_path / "dora.safetensors")
    assert inspect.inspect(tmp_path / "dora.safetensors").algorithm == "DoRA"


def test_tensors_of_no_module_are_named_and_not_dropped_silently(base: Base, tmp_path: Path,
                                                                 caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(kohya.write(tmp_path / "ours.safetensors", random_lora(base), base.family, {}))
    tensors |= {"lora_unet_nowhere_to_q.lora_down.weight": torch.ones(1, 4), "bundle_emb.x.string_to_param.*": torch.ones(1)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with caplog.at_level(logging.WARNING):
        kohya.read(tmp_path / "odd.safetensors", base.family)
    assert "lora_unet_nowhere_to_q.lora_down.weight" in caplog.text and "bundle_emb.x.string_to_param.*" in caplog.text


def test_half_precision_moves_an_update_by_less_than_two_thousandths(base: Base, tmp_path: Path) -> None:
    weights = random_lora(base)
    tensors = load_file(kohya.write(tmp_path / "half.safetensors", weights, base.family, {}))
    assert {tensor.dtype for key, tensor in tensors.items() if not key.endswith(".alpha")} == {torch.float16}
    assert {tensor.dtype for key, tensor in tensors.items() if key.endswith(".alpha")} == {torch.float32}
    read = deltas(kohya.read(tmp_path / "half.safetensors", base.family)[0])
    for key, exact in deltas(weights).items():
        assert float((read[key] - exact).norm() / exact.norm()) <= 2e-3


def test_convolutions_have_the_shapes_that_hosts_expect(tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    tensors = load_file(kohya.write(tmp_path / "c.safetensors", random_lora(base), base.family, {}))
    name = "lora_unet_mid_block_resnets_0_conv1"
    assert tensors[f"{name}.lora_down.weight"].shape[0] == 2 and tensors[f"{name}.lora_down.weight"].shape[2:] == (3, 3)
    assert tensors[f"{name}.lora_up.weight"].shape[1:] == (2, 1, 1)
    assert tensors[f"{name}.alpha"].shape == ()


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "no numbers"), (float("inf"), "no numbers"), (70000.0, "too large")])
def test_weights_that_half_precision_cannot_hold_are_refused_and_nothing_is_left(value: float, words: str, tmp_path: Path,
                                                                                 answers: Note) -> None:
    base = registry.families()["sd1"].tiny(0)
    weights = random_lora(base)
    weights[3].up[0, 0] = value
    with pytest.raises(TrainingError, match=words) as caught:
        kohya.write(tmp_path / "bad.safetensors", weights, base.family, {})
    assert weights[3].module in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    answers(f"a LoRA weight of {value}", caught.value)


def test_tensors_that_are_not_contiguous_are_written(tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    weights = [replace(one, down=one.down.t().contiguous().t()) if one.down.ndim == 2 else one for one in random_lora(base)]
    assert not all(one.down.is_contiguous() for one in weights)
    file = kohya.write(tmp_path / "c.safetensors", weights, base.family, {}, torch.float32)
    assert worst(deltas(weights), deltas(kohya.read(file)[0])) == 0.0


def test_nothing_is_written_over_another_file(tmp_path: Path, answers: Note) -> None:
    base = registry.families()["sd1"].tiny(0)
    file = kohya.write(tmp_path / "one.safetensors", random_lora(base), base.family, {})
    before = file.read_bytes()
    with pytest.raises(RunError, match="exists already") as caught:
        kohya.write(file, random_lora(base, seed=1), base.family, {})
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    answers("a LoRA's name that is taken", caught.value)


def test_a_resumed_run_may_save_the_very_same_weights_again(tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    kohya.write(tmp_path / "one.safetensors", random_lora(base), base.family, {"ss_steps": "1"})
    kohya.write(tmp_path / "one.safetensors", random_lora(base), base.family, {"ss_steps": "2"})
    assert container.read_header(tmp_path / "one.safetensors").metadata["ss_steps"] == "2"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    (tmp_path / "plain").write_bytes(b"")
    file = kohya.write(tmp_path / "one.safetensors", random_lora(base), base.family, {})
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_hashes_are_those_of_the_final_bytes_whatever_the_metadata(base: Base, tmp_path: Path) -> None:
    weights = random_lora(base)
    one = kohya.write(tmp_path / "one.safetensors", weights, base.family, {"ss_seed": "1"})
    two = kohya.write(tmp_path / "two.safetensors", weights, base.family, {"modelspec.title": "x" * 500})
    told = [container.read_header(file).metadata for file in (one, two)]
    assert told[0]["sshs_model_hash"] == told[1]["sshs_model_hash"] == container.data_hash(one) == container.data_hash(two)
    assert told[0]["modelspec.hash_sha256"] == "0x" + told[0]["sshs_model_hash"]
    assert not told[0]["sshs_model_hash"].startswith("e3b0c442")  # the hash of nothing
    assert len(told[0]["sshs_legacy_hash"]) == 8


def test_the_output_name_is_the_files_own(tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    file = kohya.write(tmp_path / "cat-000200.safetensors", random_lora(base), base.family, {"ss_output_name": "cat"})
    assert container.read_header(file).metadata["ss_output_name"] == "cat-000200"


def test_no_file_carries_what_makes_diffusers_refuse_it(base: Base, tmp_path: Path) -> None:
    file = kohya.write(tmp_path / "one.safetensors", random_lora(base), base.family, {"ss_seed": "1"})
    assert "lora_adapter_metadata" not in container.read_header(file).metadata


def test_a_lora_of_another_family_is_refused_in_words(tmp_path: Path, answers: Note) -> None:
    sd1, sdxl = registry.families()["sd1"].tiny(0), registry.families()["sdxl"].tiny(0)
    file = kohya.write(tmp_path / "xl.safetensors", random_lora(sdxl), sdxl.family, {})
    with pytest.raises(ModelError, match="is a LoRA for Stable Diffusion XL") as caught:
        kohya.read(file, sd1.family)
    answers("a LoRA of another family", caught.value)


def test_a_file_that_is_no_lora_is_refused_in_words(tmp_path: Path, answers: Note) -> None:
    save_file({"decoder.conv_in.weight": torch.ones(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match="is no LoRA") as caught:
        kohya.read(tmp_path / "vae.safetensors")
    answers("a VAE in place of a LoRA", caught.value)


NO_NUMBER = float("nan")


@pytest.mark.parametrize("suffix, value", [
    (".alpha", torch.ones(2)), (".alpha", torch.ones(0)), (".alpha", torch.tensor(NO_NUMBER)),
    (".lora_down.weight", torch.ones(5, 32)), (".lora_down.weight", torch.ones(2)), (".lora_down.weight", torch.tensor(1.0)),
    (".lora_down.weight", torch.ones(0, 32)), (".lora_up.weight", torch.ones(32)), (".lora_up.weight", torch.ones(32, 2, 3, 3)),
    (".lora_up.weight", torch.full((32, 2), NO_NUMBER)), (".lora_up.weight", torch.full((32, 2), torch.inf, dtype=torch.half))])
def test_a_lora_whose_matrices_do_not_fit_or_are_no_numbers_is_refused_in_words(
        suffix: str, value: torch.Tensor, tmp_path: Path, answers: Note) -> None:
    sd1 = registry.families()["sd1"].tiny(0)
    file = kohya.write(tmp_path / "good.safetensors", random_lora(sd1, "attention"), sd1.family, {})
    tensors = load_file(file)
    name = sorted(key for key in tensors if key.startswith("lora_unet") and key.endswith(suffix))[0]
    save_file({**tensors, name: value}, tmp_path / "bad.safetensors")
    kohya.read(file, sd1.family)
    with pytest.raises(ModelError, match="bad.safetensors is damaged") as caught:
        kohya.read(tmp_path / "bad.safetensors", sd1.family)
    answers(f"a LoRA with {suffix[1:]} of shape {tuple(value.shape)} and values of {value.flatten()[:1].tolist()}", caught.value)


def test_a_lokr_is_refused_in_words(tmp_path: Path, answers: Note) -> None:
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.ones(2, 2),
               "lora_unet_mid_block_attentions_0_proj_in.lokr_w2": torch.ones(2, 2)}, tmp_path / "k.safetensors")
    with pytest.raises(ModelError, match="Only plain LoRA") as caught:
        kohya.read(tmp_path / "k.safetensors")
    answers("a LoKr in place of a LoRA", caught.value)
