"""The folder to publish: nothing private in any byte, hashes of the final files, nothing sent."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from aprendiz import registry
from aprendiz.errors import RunError, SettingsError
from aprendiz.formats import container, inspect, kohya, metadata
from aprendiz.formats.share import plan, share
from aprendiz.settings import Job

PLANTED = "xylophonic"
Note = Callable[[str, object], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run's folder, with a planted word in captions, prompts, folder names, and the text of its pictures."""
    folder = tmp_path / "output" / "aprendiz" / "vases"
    (folder / "report").mkdir(parents=True)
    job = Job.read({"data": {"path": f"/home/ana/{PLANTED}_pictures", "trigger": "zwx", "caption": f"a {PLANTED} vase"},
                    "samples": {"sample_prompts": [f"zwx {PLANTED}"]}, "training": {"steps": 3}, "output": {"name": "vases"}})
    (folder / "job.json").write_text(json.dumps(job.values()), encoding="utf-8")
    told: dict[str, Any] = {
        "ss_base_model_version": "sd_v1", "ss_v2": False, "ss_network_module": "networks.lora", "ss_network_dim": 2,
        "ss_network_alpha": 2.0,
        "ss_network_args": {}, "ss_output_name": "vases", "ss_num_train_images": 12, "ss_sd_model_name": "base.safetensors",
        "ss_dataset_dirs": {f"10_{PLANTED}": {"n_repeats": 10, "img_count": 1}},
        "ss_datasets": [{"subsets": [{"image_dir": PLANTED}]}],
        "ss_tag_frequency": {f"10_{PLANTED}": {"zwx": 3, PLANTED: 2}}, "modelspec.trigger_phrase": "zwx",
        "modelspec.title": "vases",
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.license": "cc0-1.0",
        metadata.JOB: metadata.job_values(job)}
    family = registry.families()["sd1"]
    weights = [kohya.LoraWeight("network", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", torch.ones(2, 1280),
                                torch.ones(1280, 2), 2.0)]
    kohya.write(folder / "vases.safetensors", weights, family, metadata.texts(told))
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"zwx {PLANTED}")
    Image.new("RGB", (32, 32), (200, 10, 60)).save(folder / "vases.png", pnginfo=info)
    Image.new("RGB", (64, 32), (20, 10, 60)).save(folder / "report" / "grid.png", pnginfo=info)
    return folder


def no_socket(*_: Any) -> None:
    raise AssertionError("a socket was opened")


@pytest.mark.parametrize("level", ["public", "full", "none"])
def test_nothing_private_is_in_any_byte_of_the_folder_and_no_socket_is_opened(level: str, run: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", no_socket)
    folder = share(run, level=level)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"vases.safetensors", "README.md"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes().lower()
        for word in (PLANTED, "/home/ana", str(run.parent), "parameters"):
            assert word.lower().encode() not in content, (file.name, word)


def test_the_hash_is_of_the_final_bytes_and_of_the_same_tensors(run: Path) -> None:
    file = share(run) / "vases.safetensors"
    told = container.read_header(file).metadata
    assert told["sshs_model_hash"] == container.data_hash(file) == container.data_hash(run / "vases.safetensors")
    assert told["modelspec.hash_sha256"] == "0x" + container.data_hash(file)
    assert container.file_hash(file) != container.file_hash(run / "vases.safetensors")


def test_public_keeps_what_calls_it_and_full_the_settings_too(run: Path) -> None:
    public = inspect.inspect(share(run, level="public") / "vases.safetensors")
    assert public.triggers == ("zwx",) and public.job is None and "ss_sd_model_name" not in public.metadata
    assert json.loads(public.metadata["ss_tag_frequency"]) == {"training": {"zwx": 12}}
    full = inspect.inspect(share(run, level="full") / "vases.safetensors")
    assert full.job is not None and full.metadata["ss_sd_model_name"] == "base.safetensors"
    assert Job.read({**full.job, "data": {**full.job["data"], "path": "pictures"}}).method.rank == 16
    bare = inspect.inspect(share(run, level="none") / "vases.safetensors")
    assert bare.triggers == () and set(bare.metadata) == {"ss_base_model_version", "modelspec.architecture", *metadata.HASHES}


def test_pictures_keep_every_pixel_and_lose_every_word(run: Path) -> None:
    folder = share(run)
    for name, original in (("vases.png", run / "vases.png"), ("grid.png", run / "report" / "grid.png")):
        with Image.open(folder / name) as shown, Image.open(original) as kept:
            assert shown.info == {} and shown.tobytes() == kept.tobytes()


def test_the_card_says_how_to_use_it_and_nothing_of_the_bases_place(run: Path) -> None:
    card = (share(run) / "README.md").read_text(encoding="utf-8")
    front, body = card.split("---\n")[1], card.split("---\n")[2]
    for line in ('license: "cc0-1.0"', 'instance_prompt: "zwx"', "- template:sd-lora", "    url: vases.png"):
        assert line in front.splitlines()
    assert "base_model:" not in front
    assert "`zwx`" in body and 'weight_name="vases.safetensors"' in body and "<lora:vases:1>" in body


def test_one_file_of_weights_and_its_side_car_are_there(run: Path) -> None:
    folder = share(run)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "grid.png", "vases.json", "vases.png",
                                                              "vases.safetensors"]
    assert json.loads((folder / "vases.json").read_text(encoding="utf-8"))["activation text"] == "zwx"


def test_what_will_be_seen_is_told_before_anything_is_written(run: Path) -> None:
    before = sorted(run.rglob("*"))
    told = "\n".join(plan(run).lines())
    assert sorted(run.rglob("*")) == before
    assert "modelspec.trigger_phrase = zwx" in told and "grid.png" in told and PLANTED not in told


def test_a_second_folder_gets_a_number_and_the_first_stays(run: Path, tmp_path: Path) -> None:
    assert (share(run), share(run)) == (run / "share", run / "share-2")
    assert share(run, tmp_path / "here") == tmp_path / "here"
    assert share(run / "vases.safetensors", tmp_path / "there") == tmp_path / "there"


def test_the_folder_is_made_where_somebody_holds_it_for_a_moment(run: Path, held: None) -> None:
    assert share(run) == run / "share" and (run / "share" / "README.md").is_file()


@pytest.mark.parametrize("job", ["{x", "[]", '{"data": 7}', '{"method": 3, "data": 7}', '{"samples": null}'])
def test_a_job_that_is_none_is_not_published_and_inspecting_leaves_it_out(job: str, run: Path) -> None:
    file = run / "vases.safetensors"
    file.write_bytes(container.with_metadata(file.read_bytes(), {metadata.JOB: job}))
    assert inspect.inspect(file).as_dict()["job"] is None
    assert metadata.JOB not in inspect.inspect(share(file, level="full") / "vases.safetensors").metadata


def test_a_run_without_a_result_and_an_unknown_level_are_answered(run: Path, tmp_path: Path, answers: Note) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no result yet") as caught:
        share(tmp_path / "empty")
    answers("share: a run that is not finished", caught.value)
    with pytest.raises(SettingsError, match="It can be: public, full, none") as refused:
        share(run, level="all")
    answers("share: an unknown level", refused.value)
