"""The loop: what is learned does not depend on how a batch is cut, when it was stopped, or how often."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lessons import QUICK, losses, pictures, teach
from PIL import Image
from safetensors.torch import load_file, save_file

from aprendiz import devices, outcome
from aprendiz import train as loop
from aprendiz.check import check
from aprendiz.errors import DeviceError, ModelError, ProblemsError, TrainingError
from aprendiz.families import Base
from aprendiz.formats import checkpoint, container
from aprendiz.optimizers import Optimizer
from aprendiz.registry import families, methods
from aprendiz.request import Request
from aprendiz.run import Run, Stopped
from aprendiz.settings import Job
from aprendiz.state import latest

EVERYTHING: dict[str, Any] = {
    "targets": "all", "train_text_encoder": True, "text_encoder_learning_rate": 5e-4, "rank_dropout": 0.1, "flip": True,
                              "crop": "random",
    "caption_dropout": 0.2, "shuffle_tags": True, "tag_dropout": 0.1, "noise_offset": 0.1, "ema_decay": 0.9,
                              "latent_sampling": "random", "steps": 7,
    "batch_size": 3, "schedule": "cosine", "warmup_steps": 2, "min_snr_gamma": 5.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "red")


def result(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_file(run.file))


def same(a: Run, b: Run) -> bool:
    x, y = result(a), result(b)
    return set(x) == set(y) and all(torch.equal(x[name], y[name]) for name in x)


def test_a_run_stopped_in_mid_epoch_ends_with_the_very_weights_of_a_straight_one(data: Path, tmp_path: Path) -> None:
    straight = teach(tmp_path / "a", data, **EVERYTHING)
    teach(tmp_path / "b", data, stop_at=2, **EVERYTHING)
    teach(tmp_path / "b", data, stop_at=5, **EVERYTHING)
    stopped = teach(tmp_path / "b", data, **EVERYTHING)
    assert same(straight, stopped)
    assert losses(straight) == losses(stopped)


def test_a_batch_cut_into_parts_is_the_same_batch(data: Path, tmp_path: Path) -> None:
    whole = teach(tmp_path / "a", data, **{**EVERYTHING, "batch_size": 4})
    parts = teach(tmp_path / "b", data, **{**EVERYTHING, "batch_size": 4, "gradient_accumulation": 4})
    assert losses(whole) == pytest.approx(losses(parts), abs=1e-5)


def test_no_number_of_the_gradient_goes_beyond_what_was_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = Optimizer.step

    def watched(self: Optimizer, number: int) -> None:
        seen.append(float(self.torch.param_groups[0]["params"][0].grad.abs().max()))
        step(self, number)

    monkeypatch.setattr(Optimizer, "step", watched)
    teach(tmp_path / "free", data, steps=2, max_grad_norm=None)
    teach(tmp_path / "held", data, steps=2, max_grad_norm=None, max_grad_value=1e-6)
    assert min(seen[:2]) > 2e-6 and max(seen[2:]) == pytest.approx(1e-6)


def test_recomputing_activations_changes_nothing(data: Path, tmp_path: Path) -> None:
    kept = teach(tmp_path / "a", data, **EVERYTHING)
    again = teach(tmp_path / "b", data, **EVERYTHING, gradient_checkpointing=True)
    assert losses(kept) == pytest.approx(losses(again), abs=1e-5)


def test_running_out_of_memory_replays_the_step_and_loses_nothing(data: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: this machine's memory does not run out at a wish."""
    straight = teach(tmp_path / "a", data)
    real, calls = loop.gradients, iter(range(100))

    def gradients(*args: Any) -> torch.Tensor:
        if next(calls) in (1, 3):
            raise devices.OutOfMemory("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(loop, "gradients", gradients)
    replayed = teach(tmp_path / "b", data)
    assert losses(straight) == pytest.approx(losses(replayed), abs=1e-5)
    warnings = [event["text"] for event in replayed.events() if event["event"] == "warning"]
    assert "computed again" in warnings[0] and "in 2 parts" in warnings[1]


def test_memory_that_never_does_ends_in_one_sentence(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(*_: Any) -> torch.Tensor:
        raise devices.OutOfMemory("CUDA out of memory")

    monkeypatch.setattr(loop, "gradients", gradients)
    with pytest.raises(DeviceError, match="smaller resolution"):
        teach(tmp_path, data)


def test_a_loss_that_is_no_number_names_step_picture_and_module_and_keeps_the_last_good_state(data: Path, tmp_path: Path) -> None:
    teach(tmp_path, data, stop_at=1, steps=12, batch_size=1)
    poisoned = next(iter(sorted((tmp_path / "aprendiz" / ".cache").glob("*/*.safetensors"),
                                key=lambda file: "mean" not in load_file(file))))
    tensors = load_file(poisoned)
    save_file({**tensors, "mean": torch.full_like(tensors["mean"], float("nan"))}, poisoned)
    with pytest.raises(TrainingError, match=r"step \d+ was no number \(\d\.png; first in network\.conv_in"):
        teach(tmp_path, data, steps=12, batch_size=1)
    kept = latest(tmp_path / "aprendiz" / "taught" / "checkpoints")
    assert kept is not None and kept.step >= 1
    assert bool(torch.isfinite(kept.tensors["master"]).all())


def test_what_is_no_number_is_never_the_newest_state(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop.update

    def spoiled(lesson: Any, learned: Any, batch: Any) -> Any:
        loss = update(lesson, learned, batch)
        if learned.step == 3:
            lesson.arena.master[0] = float("nan")  # as a step too large does, whose own loss was fine
        return loss

    monkeypatch.setattr(loop, "update", spoiled)
    with pytest.raises(TrainingError, match="The loss of step 4 was no number"):
        teach(tmp_path, data, stop_at=3, steps=12)
    kept = latest(tmp_path / "aprendiz" / "taught" / "checkpoints")
    assert kept is not None and kept.step < 3 and bool(torch.isfinite(kept.tensors["master"]).all())


@pytest.mark.parametrize(("told", "events"), [
    (["pause", "resume"], []),
    (["pause", "sample", "resume"], ["sample"]),
    (["sample", "pause", "resume", "pause"], ["paused", "resumed", "sample"]),
    (["pause", "stop"], ["stopped"]),
])
def test_what_is_told_at_once_is_heard_in_its_order(data: Path, tmp_path: Path, told: list[str], events: list[str]) -> None:
    run = Run.create(tmp_path, Job.read({**QUICK, "rank": 4, "data": str(data), "sampler_steps": 1}), "")

    def speak(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 1:
            for command in told:
                run.tell(command)
        elif event["event"] == "paused":
            run.tell("resume")

    run.listeners.append(speak)
    late = threading.Timer(60, run.tell, ["stop"])  # of a run that would wait for ever
    late.start()
    with run.locked(), suppress(Stopped):
        loop.train(run.job(), run)
    late.cancel()
    heard = [event["event"] for event in run.events() if event["event"] in ("paused", "resumed", "stopped")
             or (event["event"] == "sample" and 0 < event["step"] < 4)]
    assert heard == events and run.state == ("stopped" if "stop" in told else "finished")


def test_what_is_taught_is_learned(data: Path, tmp_path: Path) -> None:
    run = teach(tmp_path, data, steps=40, targets="all", learning_rate=4e-3, caption="a red square", seed=3)
    seen = losses(run)
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])


def test_validation_samples_and_saves_come_when_due(data: Path, tmp_path: Path) -> None:
    run = teach(tmp_path, data, epochs=4, steps=None, validation_share=0.25, validate_every_steps=2, sample_every_steps=3,
                save_every_steps=2, keep_checkpoints=1)
    events = run.events()
    steps = len(losses(run))
    assert steps == 8
    assert [event["step"] for event in events if event["event"] == "validation"] == [2, 4, 6, 8]
    assert [event["step"] for event in events if event["event"] == "sample"] == [0, 3, 6, 8]
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [2, 4, 6]
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["step-000006"]
    assert {file.name for file in run.folder.glob("*.safetensors")} == {"taught.safetensors",
                                                                        *(f"taught-{n:06d}.safetensors" for n in (2, 4, 6))}
    assert {file.name for file in run.report.iterdir()} == {"grid.png", "loss.png", "scores.json"}


def test_weights_that_leave_no_numbers_are_told_of_before_anything_loads(data: Path, tmp_path: Path,
                                                                        answers: Callable[[str, object], None]) -> None:
    heavy = {"sample_prompts": ["a fish", "a (cat:2000)"], "negative_prompt": "(a dog:-1001)",
             "prior": {"pictures": 1, "prompts": ["a red square", "((((a red square:10):10):10):10)"]}}
    with pytest.raises(ProblemsError) as caught:
        teach(tmp_path, data, **heavy)
    answers("train with heavy words in prompts of samples and prior pictures", caught.value)
    assert [problem.where for problem in caught.value.problems] == ["samples.sample_prompts", "samples.negative_prompt",
                                                                    "prior.prompts"]


def test_a_caption_that_cannot_be_drawn_is_learned_all_the_same(tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", 1)
    (data / "0.txt").write_text("a (fish:2000)", encoding="utf-8")
    run = teach(tmp_path / "out", data, steps=1, sample_prompts=[])
    told = [event["text"] for event in run.events() if event["event"] == "warning"]
    assert run.file.is_file() and any(text.startswith("No samples were drawn at step 0") for text in told)


def test_samples_may_have_a_size_of_their_own(data: Path, tmp_path: Path) -> None:
    run = teach(tmp_path, data, steps=1, sample_width=64, sample_height=96)
    for name in ("step-000000-0.png", "step-000001-0.png"):
        with Image.open(run.samples / name) as picture:
            assert picture.size == (64, 96)


def test_noise_that_ends_in_noise_alone_is_taught_where_v_is_predicted_and_samples_are_drawn_so(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Callable[[str, object], None]) -> None:
    with pytest.raises(ProblemsError) as caught:
        teach(tmp_path / "epsilon", data, zero_terminal_snr=True)
    answers("train with zero_terminal_snr on a base that predicts epsilon", caught.value)
    assert [problem.where for problem in caught.value.problems] == ["objective.zero_terminal_snr"]
    file = checkpoint.write_single_file(families()["sd2"].tiny(), tmp_path / "v.safetensors")[0]
    drawn: list[bool] = []
    draw = outcome.draw

    def watched(base: Base, requests: list[Request]) -> list[Image.Image]:
        drawn.append(base.zero_terminal_snr)
        return draw(base, requests)

    monkeypatch.setattr(outcome, "draw", watched)
    base = {"path": str(file), "prediction": "v"}
    for asked in (True, None):
        teach(tmp_path / "out", data, base=base, resolution=64, steps=1, zero_terminal_snr=asked)
    assert drawn == [True, True, False, False]


def test_more_steps_than_a_sampler_takes_are_told_of_before_anything_loads(data: Path, tmp_path: Path,
                                                                          answers: Callable[[str, object], None]) -> None:
    def told(**settings: Any) -> list[str]:
        return [str(problem) for problem in check(Job.read({"data": str(data), "sampler": "lcm", **settings}), tmp_path).problems]

    [problem] = told(sampler_steps=51)
    assert problem.startswith("sampler_steps is 51, but the sampler lcm takes at most 50.")
    answers("lcm with 51 sampler_steps", problem)
    assert told(sampler_steps=50) == []


def test_pictures_of_the_bases_own_are_made_once_and_trained_beside(data: Path, tmp_path: Path) -> None:
    settings = {"prior": {"pictures": 3, "per_batch": 2, "prompts": ["a blue circle on a white background"]}}
    run = teach(tmp_path, data, stop_at=1, **settings)
    made = {file: file.read_bytes() for file in (run.folder / "prior").glob("*.png")}
    assert len(made) == 3
    again = teach(tmp_path, data, **settings)
    assert {file: file.read_bytes() for file in (again.folder / "prior").glob("*.png")} == made
    plain = teach(tmp_path / "plain", data)
    assert losses(again) != losses(plain)


@pytest.mark.parametrize("family", list(families()))
@pytest.mark.parametrize("method", list(methods()))
def test_every_family_and_method_train_two_steps(family: str, method: str, tmp_path: Path) -> None:
    base = families()[family].tiny()
    file = checkpoint.write_single_file(base, tmp_path / f"{family}.safetensors")[0]
    data = pictures(tmp_path / "red", size=(64, 96))
    before = dict(load_file(file))
    prediction = {"prediction": "epsilon"} if family == "sd2" else {}
    run = teach(tmp_path / "out", data, base={"path": str(file), **prediction}, method=method, steps=2, save_every_steps=1,
                resolution=64)
    assert len(losses(run)) == 2
    half_way = load_file(run.folder / "taught-000001.safetensors")
    assert any(not torch.equal(half_way[name], tensor) for name, tensor in result(run).items())
    assert all(torch.equal(before[name], tensor) for name, tensor in load_file(file).items())


def test_everything_wrong_is_told_at_once_before_a_model_opens(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProblemsError) as caught:
        teach(tmp_path / "out", tmp_path / "empty", base=str(tmp_path / "none.safetensors"), device="cuda:7")
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 3
    assert any("none.safetensors" in sentence for sentence in told)
    assert any("cuda:7" in sentence for sentence in told)
    assert any("no picture" in sentence for sentence in told)


@pytest.mark.quality
@pytest.mark.filterwarnings("default")  # PyTorch's compiler warns itself of its own doings, and fails where that is an error
def test_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    file = checkpoint.write_single_file(families()["sd1"].tiny(), tmp_path / "tiny.safetensors")[0]
    data = pictures(tmp_path / "red", size=(64, 64))
    plain = teach(tmp_path / "a", data, base=str(file), resolution=64)
    compiled = teach(tmp_path / "b", data, base=str(file), resolution=64, compile=True)
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)


def test_a_lora_goes_on_from_a_file(data: Path, tmp_path: Path) -> None:
    first = teach(tmp_path / "a", data, targets="all", steps=6, alpha=2.0)
    kept = teach(tmp_path / "b", data, targets="all", steps=1, learning_rate=0.0, weight_decay=0.0, continue_from=str(first.file))
    before, after = result(first), result(kept)
    assert set(before) == set(after)
    for name in (name.removesuffix(".alpha") for name in before if name.endswith(".alpha")):
        deltas = [file[f"{name}.lora_up.weight"].flatten(1).float() @ file[f"{name}.lora_down.weight"].flatten(1).float()
                  * float(file[f"{name}.alpha"]) / 4 for file in (before, after)]
        assert torch.allclose(*deltas, atol=2e-5)


def test_a_lora_of_several_ranks_goes_on_at_the_largest_and_learns_with_all(data: Path, tmp_path: Path) -> None:
    before = result(teach(tmp_path / "a", data, steps=4))
    names = sorted(name.removesuffix(".alpha") for name in before if name.endswith(".alpha"))
    for i, name in enumerate(names[:-1]):  # one stays of rank 4
        rank = 1 + i % 2
        before[f"{name}.lora_down.weight"] = before[f"{name}.lora_down.weight"][:rank].clone()
        before[f"{name}.lora_up.weight"] = before[f"{name}.lora_up.weight"][:, :rank].clone()
    file = tmp_path / "unlike.safetensors"
    save_file(before, file)
    with pytest.raises(ProblemsError, match="has rank 4, but this job's rank is 2. Set rank to 4."):
        teach(tmp_path / "b", data, rank=2, continue_from=str(file))
    kept = result(teach(tmp_path / "c", data, steps=1, learning_rate=0.0, weight_decay=0.0, continue_from=str(file)))
    learned = result(teach(tmp_path / "d", data, steps=2, continue_from=str(file)))
    for name in names:
        deltas = [one[f"{name}.lora_up.weight"].flatten(1).float() @ one[f"{name}.lora_down.weight"].flatten(1).float()
                  * float(one[f"{name}.alpha"]) / len(one[f"{name}.lora_down.weight"]) for one in (before, kept)]
        assert torch.allclose(*deltas, atol=2e-5)
        assert learned[f"{name}.lora_down.weight"].shape[0] == 4 and bool(learned[f"{name}.lora_up.weight"].any(0).all())


def test_a_lora_of_another_rank_or_reach_is_refused_in_one_sentence(data: Path, tmp_path: Path) -> None:
    first = teach(tmp_path / "a", data, targets="all", steps=1)
    with pytest.raises(ProblemsError, match="Set rank to 4"):  # told before anything loads
        teach(tmp_path / "b", data, targets="all", rank=8, continue_from=str(first.file))
    with pytest.raises(ModelError, match="Choose the targets"):
        teach(tmp_path / "c", data, targets="attention", continue_from=str(first.file))


def test_what_a_mask_hides_is_not_learned(tmp_path: Path) -> None:
    from PIL import Image
    data = pictures(tmp_path / "red", 2)
    for i in range(2):
        Image.new("L", (128, 128), 0 if i else 255).save(data / f"{i}.mask.png")
    run = teach(tmp_path / "out", data, steps=6, batch_size=1)
    assert sorted(loss == 0 for loss in losses(run)) == [False] * 3 + [True] * 3


def test_pictures_that_are_not_resized_are_taught_at_their_own_size_one_size_a_batch(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "wide", 2, (200, 140))
    pictures(folder / "small", 2, (130, 70))
    run = teach(tmp_path, folder, resize=False, batch_size=2, steps=4)
    told = container.read_header(run.file).metadata
    sizes = {tuple(one["resolution"]): one["count"] for one in json.loads(told["ss_bucket_info"])["buckets"].values()}
    assert sizes == {(192, 128): 2, (128, 64): 2} and losses(run)[-1] > 0


@pytest.mark.parametrize(("how", "different"), [("deterministic", 1), ("once", 1), ("random", 3)])
def test_latents_are_the_mean_or_drawn_once_or_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str,
                                                             different: int) -> None:
    seen: list[torch.Tensor] = []
    update = loop.update

    def watched(lesson: Any, learned: Any, batch: Any) -> Any:
        seen.append(batch.latents_BCHW[0])
        return update(lesson, learned, batch)

    monkeypatch.setattr(loop, "update", watched)
    folder = pictures(tmp_path / "one", 1)
    teach(tmp_path, folder, steps=3, batch_size=1, latent_sampling=how)
    assert len({latents.numpy().tobytes() for latents in seen}) == different
    teach(tmp_path / "mean", folder, steps=1, batch_size=1)
    assert torch.equal(seen[0], seen[-1]) == (how == "deterministic")
