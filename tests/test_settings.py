"""A job is read whole or refused whole, each thing wrong with one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from aprendiz import registry
from aprendiz.errors import ProblemsError
from aprendiz.knobs import kinds, knobs
from aprendiz.settings import SCHEMA, SECTIONS, Job, home, learning_rates, unfold
from aprendiz.views.flags import flags

Answers = Callable[[str, object], None]
GOOD: dict[str, Any] = {"data": "pictures", "steps": 10}


def refusal(values: dict[str, Any]) -> str:
    """What a bad job is answered with."""
    with pytest.raises(ProblemsError) as caught:
        Job.read(values)
    return str(caught.value)


BAD = [
    ({"method.rnak": 8}, "There is no setting 'method.rnak'. Did you mean 'rank'?"),
    ({"lerning_rate": 1e-4}, "There is no setting 'lerning_rate'. Did you mean 'learning_rate'?"),
    ({"training": {"stepz": 5}}, "There is no setting 'training.stepz'. Did you mean 'steps'?"),
    ({"trainig": {"steps": 5}}, "There is no setting 'trainig'. Did you mean 'training'?"),
    ({"method.rank": 0}, "method.rank is 0. It must lie between 1 and 1024."),
    ({"method.rank": 8.5}, "method.rank is 8.5, but it takes a whole number."),
    ({"method.rank": "eight"}, "method.rank is 'eight', but it takes a whole number."),
    ({"method.rank": None}, "method.rank is None, but it takes a whole number."),
    ({"method": "lroa"}, "There is no method 'lroa'. There are: "),
    ({"learning_rate": 5}, "optimizer.learning_rate is 5.0. It must lie between 0 and 1."),
    ({"learning_rate": float("nan")}, "optimizer.learning_rate is nan. It must lie between 0 and 1."),
    ({"learning_rate": "fast"}, "optimizer.learning_rate is 'fast'. Write a number, or rates with the step each lasts to"),
    ({"learning_rate": "0.1:100, 7"}, "optimizer.learning_rate is 7.0. It must lie between 0 and 1."),
    ({"learning_rate": "1e-4:100, 1e-5:50"}, "optimizer.learning_rate is '1e-4:100, 1e-5:50'. Write a number, or rates"),
    ({"train_text_encoder": True, "text_encoder_learning_rate": "abc"}, "method.text_encoder_learning_rate is 'abc'. Write a "),
    ({"train_text_encoder": True, "text_encoder_learning_rate": "5:10"}, "method.text_encoder_learning_rate is 5.0. It must "),
    ({"method": "pivotal", "lora_learning_rate": "abc"}, "method.lora_learning_rate is 'abc'. Write a number, or rates with"),
    ({"steps": -1}, "training.steps is -1. It must lie between 1 and 10000000."),
    ({"steps": 0}, "training.steps is 0. It must lie between 1 and 10000000."),
    ({"epochs": 3}, "Both steps (10) and epochs (3.0) are set. Keep one; the other follows from it."),
    ({"batch_size": 4, "gradient_accumulation": 3}, "batch_size 4 cannot be split into 3 equal parts."),
    ({"validate_every_steps": 10}, "validate_every_steps is 10, but no pictures are kept apart."),
    ({"data": None}, "No pictures were given. Name the folder that they are in (data)."),
    ({"resolution": 511}, "resolution is 511, which is no multiple of 8. The nearest is 512."),
    ({"timestep_min": 500, "timestep_max": 100}, "timestep_min 500 is above timestep_max 100. Exchange them."),
    ({"optimizer.optimizer": "adamv"}, "optimizer.optimizer is 'adamv'. It can be: adamw, "),
    ({"flip": "yes"}, "data.flip is 'yes', but it takes true or false."),
    ({"flip": 1}, "data.flip is 1, but it takes true or false."),
    ({"sample_seed": 99999999999999999999}, "samples.sample_seed is 99999999999999999999. It must lie between 0 and "),
    ({"sample_prompts": "a dog"}, "samples.sample_prompts is 'a dog', but it takes a list."),
    ({"sample_prompts": ["a dog", 3]}, "samples.sample_prompts is ['a dog', 3], but it takes a list."),
    ({"name": "../escape"}, "The name '../escape' cannot be a file's name everywhere."),
    ({"name": "a/b"}, "The name 'a/b' cannot be a file's name everywhere."),
    ({"name": "a\\b"}, "The name 'a\\b' cannot be a file's name everywhere."),
    ({"name": "con.2"}, "The name 'con.2' cannot be a file's name everywhere."),
    ({"name": "trailing."}, "The name 'trailing.' cannot be a file's name everywhere."),
    ({"name": ""}, "The name '' cannot be a file's name everywhere."),
    ({"schema": SCHEMA + 1}, "This job was written by a newer version of Aprendiz"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=[json.dumps(change) for change, _ in BAD])
def test_a_bad_setting_is_answered_with_its_sentence(change: dict[str, Any], sentence: str, answers: Answers) -> None:
    answer = refusal({**GOOD, **change})
    answers(f"setting {json.dumps(change)}", answer)
    assert sentence in answer
    assert len(answer.splitlines()) == 1


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(ProblemsError) as caught:
        Job.read({"steps": -1, "method": {"rank": 0, "rnak": 8}, "learning_rate": 5, "sampler": "dimm"})
    where = sorted(problem.where for problem in caught.value.problems)
    assert where == ["data.path", "method.rank", "method.rnak", "optimizer.learning_rate", "samples.sampler",
                     "training.steps"]


@pytest.mark.parametrize("section", ["base", "training", "method"])
@pytest.mark.parametrize("value", [5, [1, 2], 1.5])
def test_a_section_that_is_no_table_is_refused_in_words(section: str, value: Any, answers: Answers) -> None:
    answer = refusal({**GOOD, section: value})
    answers(f"setting {json.dumps({section: value})}", answer)
    assert section in answer


def test_a_setting_whose_condition_is_not_met_is_not_checked() -> None:
    assert Job.read({**GOOD, "text_encoder_learning_rate": "abc"}).method.text_encoder_learning_rate == "abc"
    assert Job.read({**GOOD, "crop": "center", "crop_variants": 99}).data.crop_variants == 99
    assert "crop_variants is 99" in refusal({**GOOD, "crop": "random", "crop_variants": 99})


@pytest.mark.parametrize(
    "values",
    [
        {"base": "model.safetensors", "data": "pictures", "method": "lora", "rank": 8, "steps": 10},
        {"base.path": "model.safetensors", "data.path": "pictures", "method.name": "lora", "method.rank": 8,
         "training.steps": 10},
        {"base": {"path": "model.safetensors"}, "data": {"path": "pictures"}, "method": {"name": "lora", "rank": 8},
         "training": {"steps": 10}},
        {"base": "model.safetensors", "data": "pictures", "method": {"rank": 8.0}, "training": {"steps": 10.0}},
    ],
    ids=["short", "dotted", "nested", "whole numbers as floats"],
)
def test_every_way_of_writing_a_job_gives_the_same_job(values: dict[str, Any]) -> None:
    if "rank" in values:  # the settings of a method belong to it: they are named with it, or as flags
        values = {**values, "method.rank": values.pop("rank")}
    job = Job.read(values)
    assert (job.base.path, job.data.path, job.method_name, job.method.rank, job.training.steps) == (
        "model.safetensors", "pictures", "lora", 8, 10)


def test_a_short_form_and_its_section_go_together() -> None:
    assert unfold({"method": "lora", "method.rank": 8}) == {"method": {"name": "lora", "rank": 8}}
    assert unfold({"data": "here", "data.flip": True}) == {"data": {"path": "here", "flip": True}}
    assert unfold({"steps": 5, "training": {"seed": 1}}) == {"training": {"steps": 5, "seed": 1}}


def test_a_job_survives_json() -> None:
    job = Job.read({**GOOD, "sample_prompts": ["a", "b"], "learning_rate": "0.005:100, 1e-5", "min_snr_gamma": 5,
                    "method": {"rank": 4, "alpha": 2}})
    again = Job.read(json.loads(json.dumps(job.values())))
    assert again == job
    assert again.hash() == job.hash()
    assert job.values()["schema"] == SCHEMA


def test_the_defaults_of_every_method_are_a_job() -> None:
    for method in registry.methods():
        job = Job.read({**GOOD, "method": method})
        assert Job.read(job.values()) == job


def test_the_hash_follows_what_is_computed_and_nothing_else() -> None:
    job = Job.read(GOOD)
    assert Job.read({**GOOD, "name": "vase", "again": True, "keep_running": True}).hash() == job.hash()
    changed = [{"seed": 43}, {"learning_rate": 2e-4}, {"method.rank": 8}, {"base": "other"}, {"flip": True},
               {"sampler_steps": 21}]
    hashes = {Job.read({**GOOD, **change}).hash() for change in changed}
    assert len(hashes | {job.hash(), job.hash("pictures' digest")}) == len(changed) + 2


def test_a_job_cannot_be_changed_in_place() -> None:
    job = Job.read(GOOD)
    with pytest.raises(FrozenInstanceError):
        job.training.steps = 5  # type: ignore[misc]
    assert job.with_values(training={"steps": 5}).training.steps == 5
    assert job.training.steps == 10


@pytest.mark.parametrize(
    ("text", "rates"),
    [("1e-4", [(1e-4, None)]), ("0.005:100, 1e-5", [(0.005, 100), (1e-5, None)]), ("1:1,0.5:2,0:3", [(1, 1), (0.5, 2), (0, 3)])],
)
def test_learning_rate_schedules_are_read_as_the_webui_reads_them(text: str, rates: list[tuple[float, int | None]]) -> None:
    assert learning_rates(text) == rates


@pytest.mark.parametrize("text", ["", "fast", "1e-4:", "1e-4, 1e-5", "1e-4:5, 1e-5:5", "1e-4:x"])
def test_a_schedule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        assert learning_rates(text) is None


def test_every_common_setting_has_a_name_of_its_own() -> None:
    names = [name for settings in SECTIONS.values() for name in knobs(settings) if name != "path"]
    assert len(set(names)) == len(names)
    assert all(home(name) for name in names)
    assert not set(names) & {*SECTIONS, "method"} - {"optimizer"}


def test_every_setting_has_one_flag() -> None:
    found = flags()
    settings = {(flag.section, flag.name) for flag in found.values()}
    wanted = {(section, name) for section, kind in SECTIONS.items() for name in knobs(kind)}
    wanted |= {("method", name) for method in registry.methods().values() for name in knobs(method.Settings)}
    assert settings == wanted
    fixed = ("steps", "epochs", "seed", "rank", "alpha", "learning-rate", "batch-size", "resolution", "optimizer", "precision",
             "device", "trigger", "save-every-steps", "sample-every-steps", "name", "again", "base", "data", "vae")
    assert {f"--{name}" for name in fixed} - set(found) == set()


@pytest.mark.parametrize("settings", [*SECTIONS.values(), *(method.Settings for method in registry.methods().values())])
def test_every_setting_is_a_knob_whose_default_passes_its_own_check(settings: type) -> None:
    declared = knobs(settings)
    assert list(declared) == [field.name for field in fields(settings)]
    for name, one in declared.items():
        default = next(field.default for field in fields(settings) if field.name == name)
        types, off = kinds(settings)[name]
        assert off if default is None else isinstance(default, types)
        assert one.help.endswith(".")
        assert one.when is None or one.when[0] in declared
        if isinstance(one.choices, tuple):
            assert default in one.choices
