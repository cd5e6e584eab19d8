"""What a LoRA file tells of its making: the fields that hosts read, and nothing private."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from aprendiz import registry
from aprendiz.data import folder
from aprendiz.families import Base
from aprendiz.formats import container, inspect, kohya, metadata, peft_layout
from aprendiz.formats.metadata import TrainingFacts
from aprendiz.settings import Job

USER, MACHINE, PRIVATE = "mariposa_garcia", "maquina-de-mariposa", "carpeta_secreta"
CAPTION_WORD = "xylophonic"


@pytest.fixture
def private_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of a person whose name and machine can be searched for, with a dataset deep in it."""
    home = tmp_path / USER
    pictures = home / PRIVATE / "10_zwx vase"
    pictures.mkdir(parents=True)
    for n in range(4):
        Image.new("RGB", (96, 80), (40 * n, 90, 10)).save(pictures / f"{n}.png")
        (pictures / f"{n}.txt").write_text(f"a zwx vase, {CAPTION_WORD} glaze, on a table" if n else "zwx, blue",
                                           encoding="utf-8")
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    monkeypatch.setattr(socket, "gethostname", lambda: MACHINE)
    monkeypatch.setattr(Path, "home", lambda: home)
    metadata.private_words.cache_clear()
    yield home
    metadata.private_words.cache_clear()


def job_of(home: Path, **output: Any) -> Job:
    return Job.read({
        "base": {"path": str(home / "models" / "my base.safetensors"), "vae": str(home / "vae.safetensors")},
        "data": {"path": str(home / PRIVATE), "trigger": "zwx", "class_word": "vase"},
        "method": {"name": "lora", "rank": 2, "alpha": 1.0},
        "prior": {"prior_data": str(home)}, "samples": {"sample_prompts": [f"zwx, {CAPTION_WORD}"]},
        "training": {"steps": 20}, "output": {"name": "vases", **output}})


def facts_of(job: Job, base: Base) -> TrainingFacts:
    return TrainingFacts(dataset=folder.scan(job.data), base=base, base_sha256="ab" * 32, resolution=64, steps=20,
                         batches_per_epoch=4,
                         started=1.7e9, finished=1.7e9 + 60)


def write(file: Path, job: Job, base: Base, layout: Any = kohya) -> Path:
    weights = []
    for part, modules in base.family.lora_targets(base, "attention").items():
        for module in modules:
            weight = base.parts()[part].get_submodule(module).weight
            weights.append(kohya.LoraWeight(part, module, torch.rand(2, weight.shape[1]), torch.rand(weight.shape[0], 2), 1.0))
    return layout.write(file, weights, base.family, metadata.lora_metadata(job, facts_of(job, base)))


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def base(request: pytest.FixtureRequest) -> Base:
    return registry.families()[request.param].tiny(0)


@pytest.mark.parametrize("layout", [kohya, peft_layout])
@pytest.mark.parametrize("level", ["full", "public", "none"])
def test_nothing_private_is_in_any_byte_of_a_file(level: str, layout: Any, private_person: Path, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    job = job_of(private_person, metadata=level)
    file = write(tmp_path / "out" / "vases.safetensors", job, base, layout)
    metadata.write_sidecar(file, job, base.family)
    for written in (tmp_path / "out").iterdir():
        content = written.read_bytes().lower()
        for word in (USER, MACHINE, str(tmp_path), str(private_person), "/home/", "\\users\\"):
            assert word.lower().encode() not in content, (written.name, word)
    if level != "full":
        assert CAPTION_WORD.encode() not in file.read_bytes() and PRIVATE.encode() not in file.read_bytes()


def test_captions_and_prompts_are_left_out_by_choice(private_person: Path, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    told = write(tmp_path / "with.safetensors", job_of(private_person), base).read_bytes()
    bare = write(tmp_path / "without.safetensors", job_of(private_person, captions_in_metadata=False), base).read_bytes()
    assert CAPTION_WORD.encode() in told and CAPTION_WORD.encode() not in bare


def test_every_value_is_a_text_and_what_is_nested_is_json(base: Base, private_person: Path) -> None:
    told = metadata.lora_metadata(job_of(private_person), facts_of(job_of(private_person), base))
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in told.items())
    for name in ("ss_network_args", "ss_datasets", "ss_dataset_dirs", "ss_tag_frequency", "ss_bucket_info", metadata.JOB):
        json.loads(told[name])
    assert float(told["ss_training_started_at"]) == 1.7e9  # AUTOMATIC1111 parses it
    assert "lora_adapter_metadata" not in told


def test_the_fields_that_programs_cannot_do_without_are_there(base: Base, private_person: Path) -> None:
    told = metadata.lora_metadata(job_of(private_person), facts_of(job_of(private_person), base))
    assert set(metadata.MINIMUM) <= set(told)
    for name in ("sai_model_spec", "architecture", "implementation", "title", "resolution"):
        assert told[f"modelspec.{name}"]
    assert (told["ss_network_module"], told["ss_network_dim"], told["ss_network_alpha"]) == ("networks.lora", "2", "1.0")
    assert told["modelspec.trigger_phrase"] == "zwx"
    assert json.loads(told["ss_bucket_info"])["buckets"]["0"]["count"] == 4


def a1111_version(told: dict[str, str]) -> str:
    """AUTOMATIC1111's rule: SDXL by the version's beginning, SD2 by ss_v2, SD1 by any other metadata."""
    if told.get("ss_base_model_version", "").startswith("sdxl_"):
        return "sdxl"
    return "sd2" if told.get("ss_v2") == "True" else "sd1" if told else "unknown"


def forge_version(told: dict[str, str]) -> str:
    """Forge's rule: modelspec's architecture, then kohya's fields; else unknown."""
    architecture = told.get("modelspec.architecture", "")
    if architecture == "stable-diffusion-xl-v1-base/lora" or told.get("ss_base_model_version", "").startswith("sdxl_"):
        return "sdxl"
    return "sd2" if told.get("ss_v2") == "True" else "sd1" if architecture == "stable-diffusion-v1/lora" else "unknown"


@pytest.mark.parametrize("level", ["full", "public", "none"])
def test_the_webuis_tell_the_family_at_every_level(base: Base, level: str, private_person: Path) -> None:
    job = job_of(private_person, metadata=level)
    told = metadata.lora_metadata(job, facts_of(job, base))
    assert a1111_version(told) == forge_version(told) == base.family.name


def test_the_trigger_comes_first_among_the_tags_of_hosts(private_person: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    told = metadata.lora_metadata(job_of(private_person), facts_of(job_of(private_person), base))
    (tags,) = json.loads(told["ss_tag_frequency"]).values()
    # AUTOMATIC1111 sorts by count, which keeps the order of equal ones.
    assert next(iter(sorted(tags, key=tags.get, reverse=True))) == next(iter(tags)) == "zwx"
    assert tags["zwx"] == 4 and tags[f"{CAPTION_WORD} glaze"] == 3


def test_the_file_can_train_itself_again(private_person: Path, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    job = job_of(private_person)
    values = inspect.inspect(write(tmp_path / "vases.safetensors", job, base)).job
    assert values is not None
    assert values["base"]["path"] == "my base.safetensors" and values["data"]["path"] == PRIVATE
    assert values["prior"]["prior_data"] == "private"  # the home folder itself, whose name is the user's
    again = Job.read({**values, "data": {**values["data"], "path": job.data.path},
                      "base": {**values["base"], "path": job.base.path,
                                                                                            "vae": job.base.vae},
                      "prior": {**values["prior"], "prior_data": job.prior.prior_data}})
    assert again == job


def test_public_tells_what_it_is_and_none_only_for_what_it_is(private_person: Path, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    public = container.read_header(write(tmp_path / "a.safetensors", job_of(private_person, metadata="public"), base)).metadata
    bare = container.read_header(write(tmp_path / "b.safetensors", job_of(private_person, metadata="none"), base)).metadata
    assert json.loads(public["ss_tag_frequency"]) == {"training": {"zwx": 40}}
    assert public["ss_output_name"] == "a" and metadata.JOB not in public and "ss_sd_model_name" not in public
    assert set(bare) == {"ss_base_model_version", "modelspec.sai_model_spec", "modelspec.architecture",
                         "modelspec.implementation",
                         *metadata.HASHES}


def test_rank_stabilised_scale_is_told_as_the_alpha_that_hosts_divide_by_rank(private_person: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    job = Job.read({**job_of(private_person).values(), "method": {"name": "lora", "rank": 16, "alpha": 8.0,
                                                                  "rank_stabilised": True}})
    assert metadata.lora_metadata(job, facts_of(job, base))["ss_network_alpha"] == "32.0"


def test_the_side_car_has_what_the_webuis_read(private_person: Path, tmp_path: Path) -> None:
    base = registry.families()["sdxl"].tiny(0)
    job = job_of(private_person)
    file = write(tmp_path / "vases.safetensors", job, base)
    content = json.loads(metadata.write_sidecar(file, job, base.family).read_text(encoding="utf-8"))  # type: ignore[union-attr]
    assert (content["sd version"], content["activation text"]) == ("SDXL", "zwx")
    assert set(content) == {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}


def test_a_lora_named_job_does_not_overwrite_its_runs_job(private_person: Path, tmp_path: Path) -> None:
    base = registry.families()["sd1"].tiny(0)
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    file = write(tmp_path / "job.safetensors", job_of(private_person), base)
    assert metadata.write_sidecar(file, job_of(private_person), base.family) is None
    assert (tmp_path / "job.json").read_text(encoding="utf-8") == "{}"


def test_the_header_stays_below_what_comfyui_shows(tmp_path: Path, private_person: Path) -> None:
    pictures = private_person / PRIVATE / "10_zwx vase"
    (pictures / "0.txt").write_text(", ".join(f"tag number {n} of very many" for n in range(3000)), encoding="utf-8")
    base = registry.families()["sd1"].tiny(0)
    file = write(tmp_path / "vases.safetensors", job_of(private_person), base)
    assert container.read_header(file).data < 1 << 20


@pytest.mark.parametrize(("path", "last"), [("/home/ana/pics/", "pics"), ("C:\\Users\\ana\\pics", "pics"),
                                            ("C:/Users/ana/pics", "pics"),
                                            ("micro", "micro"), ("\\\\server\\share\\set 1", "set 1")])
def test_only_the_last_part_of_a_path_travels(path: str, last: str) -> None:
    assert metadata.bare(path) == last
