"""What a file is, and what each host takes of a LoRA, at the true shapes and with the known failures."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aprendiz import registry
from aprendiz.errors import ModelError
from aprendiz.families import Base, Source
from aprendiz.formats import container, inspect, keys, kohya, names
from aprendiz.formats.inspect import HostRow, check_lora_keys
from aprendiz.formats.peft_layout import peft_name
from aprendiz.outcome import tell_hosts
from aprendiz.run import Run
from aprendiz.settings import Job

Note = Callable[[str, object], None]
MICRO = Path(__file__).parents[1] / "aprendiz" / "micro" / "base"

UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024,
            "use_linear_projection": True},
    "sdxl": {"block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
             "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
             "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
}
# width, inner width, layers; SD 2's encoder has 23 layers in diffusers
ENCODERS = {"sd1": [(768, 3072, 12)], "sd2": [(1024, 4096, 23)], "sdxl": [(768, 3072, 12), (1280, 5120, 32)],
            "micro": [(96, 384, 4)]}


@cache
def true_base(shape: str) -> Base:
    """A base of the true shape, without numbers."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    config = UNETS.get(shape) or json.loads((MICRO / "unet" / "config.json").read_text(encoding="utf-8"))
    encoders: list[torch.nn.Module] = []
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
        for i, (width, inner, layers) in enumerate(ENCODERS[shape]):
            clip = CLIPTextConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4)
            encoders.append((CLIPTextModelWithProjection if i else CLIPTextModel)(clip))
    family = registry.families()["sd1" if shape == "micro" else shape]
    return Base(family, Source(family.name, Path(shape), "folder"), network, None, encoders, [], "epsilon", {}, 512)


def modules(shape: str, every: bool = False) -> dict[tuple[str, str], tuple[int, ...]]:
    """(part, module) to the shape of its weight: those of the widest LoRA, or every linear and convolution layer."""
    base = true_base(shape)
    found = {}
    for part, wanted in base.family.lora_targets(base, "all").items():
        module = base.parts()[part]
        chosen = [n for n, m in module.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))] if every else wanted
        found |= {(part, name): tuple(module.get_submodule(name).weight.shape) for name in chosen}
    return found


Shapes = dict[str, tuple[int, ...]]


def lora_shapes(named: Shapes, down: str = ".lora_down.weight", up: str = ".lora_up.weight") -> Shapes:
    """Names and shapes of a LoRA file's tensors, rank 2."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in named.items():
        shapes |= {name + down: (2, *weight[1:]), name + up: (weight[0], 2, *[1] * (len(weight) - 2))}
        shapes |= {} if "lora_A" in down else {name + ".alpha": ()}
    return shapes


def ours(shape: str) -> dict[str, tuple[int, ...]]:
    family = true_base(shape).family
    return lora_shapes({family.lora_name(*spot): weight for spot, weight in modules(shape).items()})


def peft(shape: str) -> dict[str, tuple[int, ...]]:
    return lora_shapes({peft_name(*spot): weight for spot, weight in modules(shape, every=True).items() if spot[0] == "network"},
                       ".lora_A.weight", ".lora_B.weight")


def row(rows: tuple[HostRow, ...], host: str) -> HostRow:
    return next(one for one in rows if one.host == host)


@pytest.mark.parametrize(("shape", "count"), [("sd1", 350), ("sd2", 416), ("sdxl", 1052)])
def test_every_host_loads_every_module_of_our_widest_lora(shape: str, count: int) -> None:
    rows = check_lora_keys(ours(shape), true_base(shape).family)
    assert [one.host for one in rows] == ["ComfyUI", "AUTOMATIC1111", "Forge", "diffusers", "sd-scripts"]
    assert {one.host: (one.loaded, one.ignored, one.refused) for one in rows} == {one.host: (count, (), False) for one in rows}


def test_a_lora_for_the_embedded_base_loads_where_such_a_base_opens() -> None:
    rows = check_lora_keys(ours("micro"), "sd1")
    assert {one.host for one in rows if one.opens and one.whole} == {"ComfyUI", "AUTOMATIC1111", "diffusers"}
    assert {one.host for one in rows if not one.opens} == {"Forge", "sd-scripts"}


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl", "micro"])
def test_no_two_names_of_a_file_go_to_one_weight(shape: str) -> None:
    for host in keys.HOSTS:
        accepted = keys.frozen(host).accepted.get(shape, {})
        spelt = {name for key in ours(shape) if (name := names.split(key)[0]) in accepted}  # type: ignore[index]
        assert len({accepted[name] for name in spelt}) == len(spelt)
        assert spelt or not accepted


@pytest.mark.parametrize(("shape", "lost"), [("sd1", 128), ("sd2", 128), ("sdxl", 560)])
def test_the_peft_export_loses_its_attention_in_comfyui_and_each_module_is_named(shape: str, lost: int) -> None:
    found = row(check_lora_keys(peft(shape), shape), "ComfyUI")
    assert len(found.ignored_modules) == lost and found.total - found.loaded == lost
    assert all(".attn" in name and name.startswith("unet.") for name in found.ignored_modules)


def test_a_run_warns_of_every_host_that_would_leave_out_some_of_its_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path, Job.read({"data": {"path": str(tmp_path)}}), "digest")
    tell_hosts(run, write_shapes(tmp_path / "a.safetensors", peft("sd1")))
    told = [event["text"] for event in run.events() if event["event"] == "warning"]
    lost = row(check_lora_keys(peft("sd1"), "sd1"), "ComfyUI")
    assert any(text.startswith("ComfyUI") and f"load {lost.loaded} of the {lost.total} modules of a.safetensors" in text
               for text in told)
    assert any(text.startswith("AUTOMATIC1111") for text in told) and not any(text.startswith("diffusers") for text in told)



@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_the_webuis_load_nothing_of_a_peft_export_and_diffusers_all(shape: str) -> None:
    rows = check_lora_keys(peft(shape), shape)
    assert row(rows, "AUTOMATIC1111").loaded == 0
    assert row(rows, "Forge").refused and row(rows, "Forge").loaded == 0
    assert row(rows, "diffusers").whole


def test_sdxl_with_diffusers_names_loses_three_modules_in_automatic1111() -> None:
    named = {f"lora_unet_{name}".replace(".", "_"): weight for (part, name),
             weight in modules("sdxl", every=True).items() if part == "network"}
    rows = check_lora_keys(lora_shapes(named), "sdxl")
    assert set(row(rows, "AUTOMATIC1111").ignored_modules) == {
        "lora_unet_up_blocks_0_upsamplers_0_conv", "lora_unet_add_embedding_linear_1", "lora_unet_add_embedding_linear_2"}
    assert set(row(rows, "diffusers").ignored_modules) == {"lora_unet_add_embedding_linear_1", "lora_unet_add_embedding_linear_2"}
    assert row(rows, "ComfyUI").whole


def test_sd2_with_te1_loses_its_144_text_modules_in_automatic1111() -> None:
    layers = [f"lora_te1_text_model_encoder_layers_{n}_{module}" for n in range(24)
              for module in ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1",
                             "mlp_fc2")]
    found = row(check_lora_keys(lora_shapes(dict.fromkeys(layers, (1024, 1024))), "sd2"), "AUTOMATIC1111")
    assert len(found.ignored_modules) == found.total == 144 and found.loaded == 0


def test_a_host_that_raises_on_foreign_tensors_is_said_to_refuse() -> None:
    shapes = ours("sd1") | {"bundle_emb.word.string_to_param.*": (1, 768)}
    rows = check_lora_keys(shapes, "sd1")
    assert row(rows, "diffusers").refused
    assert row(rows, "ComfyUI").ignored == ("bundle_emb.word.string_to_param.*",) and row(rows, "ComfyUI").loaded == 350
    loha = {f"lora_unet_mid_block_attentions_0_proj_in.{half}": (4, 4) for half in ("hada_w1_a", "hada_w1_b", "hada_w2_a",
                                                                                    "hada_w2_b")}
    assert row(check_lora_keys(loha, "sd1"), "diffusers").refused
    assert row(check_lora_keys(loha, "sd1"), "AUTOMATIC1111").whole


def test_each_frozen_list_names_the_host_version_that_produced_it() -> None:
    size = 0
    for host in keys.HOSTS:
        frozen = keys.frozen(host)
        assert frozen.host and frozen.version and frozen.date and frozen.how
        assert len(frozen.commit) == 40 or host == "diffusers"
        assert {"sd1", "sd2", "sdxl"} <= set(frozen.accepted)
        size += (Path(keys.__file__).parent / f"{host}.json.gz").stat().st_size
    assert size < 1_000_000


def test_the_docs_name_the_same_host_versions() -> None:
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    for host in keys.HOSTS:
        frozen = keys.frozen(host)
        assert f"| {frozen.host} | {frozen.version} |" in page


def write_shapes(file: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A file with tensors of these shapes, zeros."""
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, file, metadata)
    return file


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl", "micro"])
def test_a_lora_is_recognised_by_its_keys_and_shapes_alone(shape: str, tmp_path: Path) -> None:
    network = {name: size for name, size in ours(shape).items() if not name.startswith("lora_te")}
    found = inspect.inspect(write_shapes(tmp_path / "a.safetensors", network))
    assert (found.kind, found.family, found.shape) == ("lora", "sd1" if shape == "micro" else shape, shape)
    assert found.ranks == {2: len(network) // 3} and found.modules == {"network": len(network) // 3}


def test_inspect_tells_a_person_what_loads_where_and_names_what_does_not(tmp_path: Path) -> None:
    found = inspect.inspect(write_shapes(tmp_path / "a.safetensors", peft("sd1")))
    told = "\n".join(found.lines())
    assert "LoRA for Stable Diffusion 1.x" in told
    assert "ComfyUI 0.3.64" in told and "loads 154 of 282 modules" in told and "and 120 more" in told
    assert "diffusers" in told and "loads all 282 modules" in told
    told_all = found.as_dict()
    comfy = next(one for one in told_all["hosts"] if one["host"] == "ComfyUI")
    assert len(comfy["ignored"]) == 256 and json.loads(json.dumps(told_all)) is not None


def test_inspect_reads_rank_alpha_and_trigger(tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    weights = [kohya.LoraWeight("network", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", torch.ones(4, 64),
                                torch.ones(64, 4), 2.5)]
    file = kohya.write(tmp_path / "a.safetensors", weights, base.family, {"modelspec.trigger_phrase": "zwx, qqr"})
    found = inspect.inspect(file)
    assert (found.ranks, found.alphas, found.triggers) == ({4: 1}, {2.5: 1}, ("zwx", "qqr"))
    assert found.sha256 == container.file_hash(file) and found.data_sha256 == found.metadata["sshs_model_hash"]


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    from diffusers import ControlNetModel
    base = registry.families()["sd1"].tiny(0)
    assert base.vae is not None

    def kind(tensors: dict[str, torch.Tensor]) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        return inspect.inspect(file).kind

    control = ControlNetModel.from_unet(base.network, conditioning_channels=3)
    assert kind(base.vae.state_dict()) == "vae"
    assert kind(base.network.state_dict()) == "network"
    assert kind(base.text_encoders[0].state_dict()) == "text_encoder"
    assert kind(control.state_dict()) == "controlnet"
    assert kind({"emb_params": torch.ones(2, 768)}) == "textual_inversion"
    assert kind({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}) == "textual_inversion"
    assert kind({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1),
                 "first_stage_model.x": torch.ones(1)}) == "checkpoint"
    assert kind({"something": torch.ones(3)}) == "unknown"
    assert kind({}) == "unknown"


BROKEN: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "is empty"),
    "a pickle of old torch": (b"\x80\x02}q\x00.", "is a pickle"),
    "a pickle of new torch": (b"PK\x03\x04" + b"\0" * 60, "is a pickle"),
    "a file of three bytes": (b"abc", "is no .safetensors file"),
    "a header said to be huge": (struct.pack("<Q", 1 << 60) + b"{}", "is no .safetensors file"),
    "a header longer than the file": (struct.pack("<Q", 5000) + b"{}", "is cut off"),
    "a header that is no JSON": (struct.pack("<Q", 8) + b"\xff" * 8, "header cannot be read"),
    "a header that is a list": (struct.pack("<Q", 2) + b"[]", "header cannot be read"),
    "a header nested too deep": (struct.pack("<Q", 200000) + b"[" * 200000, "header cannot be read"),
    "a tensor without a shape": (struct.pack("<Q", 21) + b'{"a":{"dtype":"F16"}}', "header cannot be read"),
    "offsets that contradict the shape": (
        struct.pack("<Q", 55) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}} ' + b"\0" * 16, "header cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_answered_in_one_sentence(name: str, tmp_path: Path, answers: Note) -> None:
    content, words = BROKEN[name]
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        inspect.inspect(tmp_path / "broken.safetensors")
    answers(f"inspect: {name}", caught.value)


def test_a_file_that_is_missing_or_a_folder_is_answered_in_one_sentence(tmp_path: Path, answers: Note) -> None:
    for given, path, words in (("a missing file", tmp_path / "no.safetensors", "There is no file"),
                               ("a folder", tmp_path, "is a folder")):
        with pytest.raises(ModelError, match=words) as caught:
            inspect.inspect(path)
        answers(f"inspect: {given}", caught.value)


def test_a_file_cut_off_anywhere_is_never_taken_for_whole(tmp_path: Path, answers: Note) -> None:
    base = registry.families()["sd1"].tiny(0)
    weights = [kohya.LoraWeight("network", f"mid_block.attentions.0.transformer_blocks.0.attn{n}.to_q", torch.ones(4, 64),
                                torch.ones(64, 4), 2.5)
               for n in (1, 2)]
    content = kohya.write(tmp_path / "whole.safetensors", weights, base.family, {}).read_bytes()
    torn = tmp_path / "torn.safetensors"
    for length in range(0, len(content), 37):
        torn.write_bytes(content[:length])
        with pytest.raises(ModelError):
            inspect.inspect(torn)
        with pytest.raises(ModelError):
            kohya.read(torn)
    torn.write_bytes(content[:-1])
    with pytest.raises(ModelError, match="is cut off") as caught:
        inspect.inspect(torn)
    answers("inspect: a file that lacks its last byte", caught.value)


def test_a_save_is_read_back_and_matched(tmp_path: Path) -> None:
    base = registry.families()["sdxl"].tiny(0)
    weights = []
    for part, wanted in base.family.lora_targets(base, "attention").items():
        for module in wanted:
            weight = base.parts()[part].get_submodule(module).weight
            weights.append(kohya.LoraWeight(part, module, torch.ones(1, *weight.shape[1:]), torch.ones(weight.shape[0], 1), 1.0))
    file = kohya.write(tmp_path / "a.safetensors", weights, base.family, {})
    assert sum(inspect.verify(file, base).modules.values()) == len(weights)
    content = bytearray(file.read_bytes())
    content[-1] ^= 255  # one flipped byte, as a bad disk leaves it
    file.write_bytes(content)
    with pytest.raises(ModelError, match="was written, but what was read back"):
        inspect.verify(file, base)
