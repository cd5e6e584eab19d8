"""Learning rates and optimizers over the arena."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aprendiz.methods import Part
from aprendiz.nets.arena import Arena
from aprendiz.optimizers import Optimizer, part_rates, rate_of
from aprendiz.settings import OPTIMIZERS, Job, OptimizerSettings, learning_rates


def arena(bias_rate: float | None = 0.0) -> tuple[Arena, torch.nn.Module]:
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 4)
    named = dict(module.named_parameters())
    return Arena([Part("w", {"w": named["weight"]}), Part("b", {"b": named["bias"]}, bias_rate)], torch.device("cpu"),
                 torch.float32), module


def test_the_rate_warms_up_and_comes_down() -> None:
    rate = rate_of(OptimizerSettings(schedule="linear", warmup_steps=10), 1.0, 110)
    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == 1.0
    assert rate(60) == pytest.approx(0.5)
    assert rate(110) == 0.0


def test_the_cosine_restarts_and_ends_at_what_is_left() -> None:
    rate = rate_of(OptimizerSettings(schedule="cosine", restarts=2, final_rate=0.1), 1.0, 100)
    assert rate(0) == rate(50) == 1.0
    assert rate(25) == rate(75) == pytest.approx(0.55)
    assert rate(100) == pytest.approx(0.1)


def test_a_listed_rate_lasts_to_its_step() -> None:
    rate = rate_of(OptimizerSettings(), "0.005:100, 1e-3:200, 1e-5", 300)
    assert [rate(s) for s in (0, 99, 100, 199, 200, 299)] == [0.005, 0.005, 1e-3, 1e-3, 1e-5, 1e-5]


@pytest.mark.parametrize("text", ["", "fast", "0.1:5, 0.2:4, 0.1", "0.1, 0.2", "0.1:x"])
def test_a_list_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        learning_rates(text)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw8bit"])
def test_every_optimizer_learns_and_resumes_bit_for_bit(name: str) -> None:
    if name not in ("adamw", "adamw8bit"):
        pytest.importorskip("pytorch_optimizer")
    settings = OptimizerSettings(optimizer=name, learning_rate=1.0 if name == "prodigy" else 0.05, weight_decay=0.0)

    def steps(optimizer: Optimizer, made: Arena, module: torch.nn.Module, first: int, last: int) -> float:
        loss = torch.tensor(0.0)
        for step in range(first, last):
            made.zero()
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            loss = (module(x) - x[:, :4]).square().mean()
            loss.backward()
            made.collect()
            optimizer.step(step)
        return loss.item()

    rate = None if name == "prodigy" else 0.0  # Prodigy finds one rate for all parts
    straight, straight_module = arena(rate)
    optimizer = Optimizer(straight, settings, 200)
    start = straight.master.clone()
    first_loss = steps(optimizer, straight, straight_module, 0, 1)
    steps(optimizer, straight, straight_module, 1, 100)
    tensors, plain = optimizer.tensors()
    kept, master = {n: t.clone() for n, t in tensors.items()}, straight.master.clone()
    last_loss = steps(optimizer, straight, straight_module, 100, 200)
    assert last_loss < first_loss
    assert torch.equal(straight.views(straight.master)["b"], start[24:]) == (rate == 0.0)

    resumed, resumed_module = arena(rate)
    again = Optimizer(resumed, settings, 200)
    resumed.master.copy_(master)
    again.restore(kept, plain)
    steps(again, resumed, resumed_module, 100, 200)
    assert torch.equal(resumed.master, straight.master)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"train_text_encoder": True}, None),
    ({"text_encoder_learning_rate": 0.5}, None),
    ({"train_text_encoder": True, "text_encoder_learning_rate": 0.5}, "text_encoder_learning_rate cannot be set beside it. Turn"),
    ({"method": "pivotal"}, "Pivotal tuning (word and LoRA) needs two, learning_rate and lora_learning_rate. Choose another")])
def test_prodigy_refuses_a_rate_of_a_part_before_anything_loads(settings: dict[str, Any], sentence: str | None,
                                                                answers: Callable[[str, object], None]) -> None:
    values = {"data": "pictures", "trigger": "qvx", **settings}
    told = part_rates(Job.read({**values, "optimizer.optimizer": "prodigy"}))
    assert [sentence in str(problem) for problem in told] == ([] if sentence is None else [True])
    for problem in told:
        answers(f"prodigy with {settings}", problem)
    assert part_rates(Job.read(values)) == []


def test_looking_at_the_schedule_free_average_changes_nothing() -> None:
    made, module = arena(None)
    optimizer = Optimizer(made, OptimizerSettings(optimizer="schedulefree", learning_rate=0.05), 10)
    for step in range(5):
        made.zero()
        module(torch.ones(2, 6)).square().sum().backward()
        made.collect()
        optimizer.step(step)
    before = made.master.clone()
    average = optimizer.average()
    assert not torch.equal(average, before)
    assert torch.equal(made.master, before)


def test_adafactor_keeps_rows_and_columns_alone() -> None:
    made, module = arena(None)
    optimizer = Optimizer(made, OptimizerSettings(optimizer="adafactor", learning_rate=0.01), 10)
    made.gradient.normal_()
    optimizer.step(0)
    tensors, _ = optimizer.tensors()
    matrices = [tensor.shape for tensor in module.parameters() if tensor.ndim == 2]
    assert {tuple(t.shape) for t in tensors.values() if t.numel() > 1} == {(side,) for shape in matrices for side in shape}
