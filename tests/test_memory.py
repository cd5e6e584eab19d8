"""Fitting into memory changes nothing of what is learned, and what it takes is known before it is taken."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_flow
import torch
from lessons import losses, pictures
from lessons import teach as teach_at
from PIL import Image
from safetensors.torch import load, save
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aprendiz import devices, memory, placing, room
from aprendiz import train as loop
from aprendiz.errors import DeviceError, ProblemsError, RunError, TrainingError
from aprendiz.estimate import STATE, Choice, Need, Work, frozen_bytes, passing_vae, step
from aprendiz.families import Base, Family
from aprendiz.formats import checkpoint
from aprendiz.memory import Ladder
from aprendiz.nets import eight_bit, offload, recompute
from aprendiz.nets.arena import Arena
from aprendiz.optimizers import Optimizer
from aprendiz.registry import families, methods
from aprendiz.run import Run
from aprendiz.settings import OPTIMIZERS, BaseSettings, Job
from aprendiz.spill import Spill

FAMILIES: list[Family] = [*families().values(), tiny_flow.FAMILY]
NAMES = [family.name for family in FAMILIES]


def work_on(base: Base, pictures: int = 2, size: int = 64, **settings: Any) -> Work:
    """A LoRA of everything on a miniature, as far as memory is concerned."""
    job = Job.read({"method": "lora", "base": "micro", "data": "none", "rank": 4, "targets": "all", **settings})
    method = methods()["lora"](base, job)
    tokens = base.family.tokenize(base, ["a red square"])
    state = tokens if method.trains_text_encoder else base.family.encode_tokens(base, tokens)
    return Work(job, base, method, torch.device("cpu"), pictures=pictures, size=(size, size), state=state)


def trained(base: Base) -> list[nn.Parameter]:
    return [p for part in base.parts().values() for p in part.parameters() if p.requires_grad]


def stir(base: Base) -> None:
    """Give the fresh LoRAs weights, so that everything has a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(base):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def gradients(work: Work, count: int = 2) -> list[torch.Tensor]:
    """The gradient of everything trained after one step."""
    found = trained(work.base)
    for parameter in found:
        parameter.grad = None
    step(work, count, "cpu")().backward()
    return [p.grad.clone() for p in found if p.grad is not None]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) > 0 and all(torch.equal(a, b) for a, b in zip(some, others))


# Recomputing


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_recomputed_pieces_have_the_very_gradients_of_kept_ones(family: Family) -> None:
    base = family.tiny()
    work = work_on(base)
    stir(base)
    kept = gradients(work)
    pieces = recompute.pieces(family.blocks(base))
    recompute.recompute(pieces)
    recompute.recompute(pieces[:2])  # those forget already
    assert equal(kept, gradients(work))
    recompute.keep(pieces)
    assert all("forward" not in vars(piece) for piece in pieces)
    assert equal(kept, gradients(work))


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_the_pieces_hold_most_of_the_network_and_none_of_it_twice(family: Family) -> None:
    base = family.tiny()
    held = [id(p) for piece in recompute.pieces(family.blocks(base)) for p in piece.parameters()]
    assert len(held) == len(set(held))
    assert len(held) > 0.65 * len(list(base.network.parameters()))


# 8 bits


@pytest.mark.parametrize("layer", [
    nn.Linear(96, 64), nn.Linear(96, 64, bias=False), nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Conv2d(64, 64, 1, bias=False)],
    ids=["linear", "bare linear", "strided convolution", "grouped convolution", "1 x 1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_8_bits_computes_as_the_weight_it_stores(layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).to(dtype).requires_grad_(False)
    made = eight_bit.EightBitLinear(layer) if isinstance(layer, nn.Linear) else eight_bit.EightBitConv2d(layer)
    plain = copy.deepcopy(layer)
    plain.weight.data = made.weight
    x = torch.randn((4, 7, 96) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 9, 8)).to(dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = made(a), plain(b)
    assert torch.equal(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    assert a.grad is not None and b.grad is not None
    assert torch.allclose(a.grad, b.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)
    assert made.stored.dtype == torch.int8 and made.bias is layer.bias
    step_O = made.scale_O.float()
    off = (made.weight.float() - layer.weight.float()).flatten(1).abs().amax(1)
    assert bool((off <= step_O * (0.51 if dtype == torch.float32 else 0.8)).all())  # bf16 rounds the product once more


def test_bell_shaped_weights_lose_one_percent_in_8_bits() -> None:
    torch.manual_seed(0)
    weight = torch.randn(640, 1280) * 0.03
    assert 0.006 < eight_bit.relative_error(weight, eight_bit.restored(*eight_bit.quantised(weight))) < 0.011


def test_a_channel_of_zeros_stays_one() -> None:
    weight = torch.randn(8, 1024)
    weight[3] = 0
    back = eight_bit.restored(*eight_bit.quantised(weight))
    assert bool((back[3] == 0).all()) and bool(torch.isfinite(back).all())


@pytest.mark.parametrize("family", FAMILIES[:1] + FAMILIES[-1:], ids=[NAMES[0], NAMES[-1]])
def test_a_base_in_8_bits_is_smaller_by_what_was_said_and_nearly_the_same(
        family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bit, "SMALLEST", 512)  # a miniature's layers are small
    base = family.tiny()
    work = work_on(base)
    stir(base)
    exact, before = step(work, 2, "cpu")(), frozen_bytes(base.network)
    pieces = recompute.pieces(family.blocks(base))
    promised = sum(map(eight_bit.saved, pieces))
    error = eight_bit.store(pieces)
    assert promised > 0.5 * before
    assert before - frozen_bytes(base.network) == promised
    assert 0 < error < 0.015
    assert float((step(work, 2, "cpu")() - exact).detach().abs() / exact.detach()) < 0.01
    assert eight_bit.store(pieces) == 0.0  # nothing is left to do
    assert gradients(work)


# Streaming


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
@pytest.mark.parametrize("slots", [2, 3])
def test_a_streamed_network_computes_the_very_same(family: Family, slots: int) -> None:
    base = family.tiny()
    work = work_on(base)
    stir(base)
    before = gradients(work)
    with torch.no_grad():
        drawn = step(work, 1, "cpu")()
    pieces = recompute.pieces(family.blocks(base))
    stream = offload.Stream(pieces, torch.device("cpu"), slots)
    recompute.recompute(pieces)
    for _ in range(2):
        assert equal(before, gradients(work))
        with torch.no_grad():
            assert torch.equal(step(work, 1, "cpu")(), drawn)
    brought = 6 if len(pieces) > slots else 1  # a short network stays in the ring
    assert stream.copied >= 0.5 * brought * sum(piece.size for piece in stream.pieces)
    recompute.keep(pieces)
    stream.close()
    assert equal(before, gradients(work))


def test_a_ring_brings_each_piece_twice_a_step() -> None:
    base = FAMILIES[0].tiny()
    work = work_on(base)
    pieces = recompute.pieces(base.family.blocks(base))
    stream = offload.Stream(pieces, torch.device("cpu"))
    recompute.recompute(pieces)
    gradients(work)
    stream.copied = 0
    gradients(work)
    whole = sum(piece.size for piece in stream.pieces)
    # The last pieces of the way forward are still there on the way back, and the first on the next way forward.
    assert 1.5 * whole < stream.copied <= 2 * whole


def test_what_is_streamed_stays_where_it_is_when_the_network_moves() -> None:
    base = FAMILIES[0].tiny()
    pieces = recompute.pieces(base.family.blocks(base))
    outside = {id(p) for p in base.network.parameters()} - {id(p) for piece in pieces for p in piece.parameters()}
    stream = offload.Stream(pieces[3:], torch.device("cpu"))
    held = {id(p) for piece in pieces[3:] for p in piece.parameters()}
    base.network.to(torch.float64)
    assert {p.dtype for p in base.network.parameters() if id(p) in held} == {torch.float32}
    assert {p.dtype for p in base.network.parameters() if id(p) in outside} == {torch.float64}
    starts = [piece.host.data_ptr() for piece in stream.pieces]
    assert all(piece.places[0].owner._parameters[piece.places[0].name].data_ptr() == start  # type: ignore[union-attr]
               for piece, start in zip(stream.pieces, starts))


def test_stretches_fill_chunks_and_a_large_one_gets_its_own() -> None:
    assert offload.packed([3, 3, 3, 20, 1, 1], 7) == [[0, 1], [2], [3], [4, 5]]


# What a step takes


def highest(work: Callable[[], object]) -> int:
    """The most bytes alive at a time, as PyTorch's profiler sees the CPU's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    results = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = [(e.start_ns() if hasattr(e, "start_ns") else e.start_us(), e.nbytes()) for e in results if e.name() == "[memory]"]
    now = top = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        top = max(top, now)
    return top


def fused_with_mask() -> bool:
    """Whether this PyTorch has a fused attention with a mask on a CPU, as the miniature flow needs; 2.3 brought it."""
    states, mask = torch.zeros(1, 1, 2, 8, requires_grad=True), torch.ones(1, 1, 1, 2, dtype=torch.bool)
    return torch._fused_sdp_choice(states, states, states, mask) != 0


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_activations_are_counted_as_a_real_step_takes_them(family: Family) -> None:
    if family.name == "tiny_flow" and not fused_with_mask():
        pytest.skip("PyTorch before 2.3 has no fused attention with a mask on a CPU, where this test measures")
    base = family.tiny()
    work = work_on(base, size=128)
    traced = Need(work).trace(4)
    pieces = recompute.pieces(family.blocks(base))
    gradients(work, 4)  # now every gradient has its memory
    order = traced.order()
    for some in ([], order[:len(order) // 2], order):
        recompute.recompute(pieces[number] for number in some)
        real = highest(lambda: step(work, 4, "cpu")().backward())
        recompute.keep(pieces)
        assert 0.97 < traced.peak(some) / real < 1.2, (len(some), traced.peak(some), real)


def test_tracing_leaves_the_base_as_it_was() -> None:
    base = FAMILIES[0].tiny()
    work = work_on(base)
    stir(base)
    before = {name: (id(p), p.device, p.clone()) for name, p in base.network.named_parameters()}
    exact = gradients(work)
    Need(work).of(Choice())
    for name, p in base.network.named_parameters():
        assert (id(p), p.device) == before[name][:2] and torch.equal(p, before[name][2])
    assert equal(exact, gradients(work))


def test_a_trained_text_encoder_counts() -> None:
    without = Need(work_on(FAMILIES[0].tiny())).of(Choice())
    with_it = Need(work_on(FAMILIES[0].tiny(), train_text_encoder=True)).of(Choice())
    assert with_it.weights > 1.5 * without.weights
    assert with_it.activations > without.activations
    assert with_it.trained > without.trained


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw8bit"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_what_is_trained_takes_what_was_said(name: str, ema: float | None) -> None:
    work = work_on(tiny_flow.FAMILY.tiny(), optimizer=name, ema_decay=ema)
    arena = Arena(work.method.parts(), torch.device("cpu"), torch.float32)
    optimizer = Optimizer(arena, work.job.optimizer, 10)
    arena.gradient.normal_()
    optimizer.step(0)
    tensors, _ = optimizer.tensors()
    held = [arena.master, arena.gradient, *(tensor for tensor in tensors.values() if tensor.numel() > 1)]
    real = sum(tensor.numel() * 4 for tensor in held) + (arena.master.numel() * 4 if ema else 0)
    said = Need(work).trained()
    assert real <= said < 1.35 * real


def test_half_precision_adds_a_working_copy() -> None:
    assert STATE["adamw"] == 8
    base = tiny_flow.FAMILY.tiny()
    work = work_on(base)
    count = sum(p.numel() for p in trained(base))
    assert Need(work).trained() == 16 * count
    base.network.to(torch.bfloat16)
    assert Need(work).trained() == 20 * count


def test_the_vae_s_passing_memory_grows_with_the_picture() -> None:
    base = FAMILIES[0].tiny()
    small, large = (passing_vae(base, (side, side), decode=True) for side in (256, 512))
    assert 3.9 < large / small < 4.1
    real = highest(lambda: base.family.decode(base, torch.zeros(1, 4, 32, 32)))
    assert 0.7 < small / real < 1.3


# Choosing


def choices(need: Need, ladder: Ladder) -> Iterator[tuple[int, Choice]]:
    """The way that is chosen for less and less memory."""
    free = need.of(Choice()).total + memory.MARGIN
    while True:
        choice, estimate = ladder.choose(need, Choice(), free)
        yield free, choice
        if estimate.total + memory.MARGIN > free:
            return
        free = estimate.total + memory.MARGIN - 1


def test_the_rungs_are_taken_in_order_and_each_only_as_far_as_needed() -> None:
    work = work_on(families()["sd1"].tiny(), pictures=4)
    pieces = recompute.pieces(work.base.family.blocks(work.base))
    need = Need(work)
    found = list(choices(need, Ladder(len(pieces), 4, streams=True)))
    assert all(need.of(choice).total + memory.MARGIN <= free for free, choice in found[:-1])
    taken = [choice for _, choice in found]
    assert taken[0] == Choice()
    whole = next(i for i, choice in enumerate(taken) if choice.parts > 1)
    assert whole > 10  # piece by piece
    assert all(set(a.recomputed) < set(b.recomputed) for a, b in zip(taken[:whole], taken[1:whole]))
    assert all(len(choice.recomputed) == len(pieces) for choice in taken[whole:])
    parts = [choice.parts for choice in taken]
    assert parts == sorted(parts) and set(parts) == {1, 2, 4}
    assert all(choice.parts == 4 for choice in taken if choice.eight_bit)
    assert all(choice.eight_bit for choice in taken if choice.streamed)
    assert [len(choice.streamed) for choice in taken] == sorted(len(choice.streamed) for choice in taken)
    assert taken[-1] == Choice(tuple(range(len(pieces))), 4, True, tuple(range(len(pieces))))


def test_a_compiled_network_and_a_cpu_are_never_streamed() -> None:
    work = work_on(FAMILIES[-1].tiny())
    card = replace(work, device=torch.device("cuda"))
    assert memory.can_stream(card) and not memory.can_stream(work)
    assert not memory.can_stream(replace(card, job=work.job.with_values(training={"compile": True})))


@pytest.mark.parametrize("damage", [
    None, "{", '{"choice": {"parts": 2}}', '{"choice": {"recomputed": [99], "parts": 1, "eight_bit": false, "streamed": []}}'])
def test_a_broken_note_of_an_earlier_choice_is_as_none(damage: str | None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    memory.keep(run, Choice((1, 2), 3))
    assert memory.remembered(run, 4) == Choice((1, 2), 3)
    (tmp_path / memory.FILE).unlink()
    if damage is not None:
        (tmp_path / memory.FILE).write_text(damage, encoding="utf-8")
    assert memory.remembered(run, 4) is None


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "red")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that all others here are compared with: nothing is fitted in."""
    return teach(tmp_path_factory.mktemp("straight"), data)


def teach(out: Path, data: Path, **settings: Any) -> Run:
    """A small run."""
    return teach_at(out, data, **{"resolution": 64, "steps": 6, **settings})


def told(run: Run, kind: str = "message") -> list[str]:
    return [event["text"] for event in run.events() if event["event"] == kind]


def noted(run: Run) -> Choice:
    return Choice.read(json.loads((run.folder / memory.FILE).read_text(encoding="utf-8"))["choice"])


def leave(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let so much memory be free beside the margin that this share of the activations fits. (No machine has so little.)"""
    def free(need: Need) -> int:
        estimate = need.of(Choice())
        return estimate.total - int((1 - share) * estimate.activations) + memory.MARGIN

    real = Ladder.choose
    monkeypatch.setattr(Ladder, "choose", lambda ladder, need, start, _: real(ladder, need, start, free(need)))


def test_a_run_with_room_is_not_touched(straight: Run) -> None:
    assert noted(straight) == Choice()
    assert told(straight) == [] and told(straight, "warning") == []
    note = json.loads((straight.folder / memory.FILE).read_text(encoding="utf-8"))
    assert note["bytes"]["total"] + memory.MARGIN <= note["bytes"]["free"]


def test_less_room_recomputes_some_pieces_and_learns_the_same(
        straight: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 0.7)
    run = teach(tmp_path, data)
    choice = noted(run)
    assert 0 < len(choice.recomputed) < 20 and replace(choice, recomputed=()) == Choice()
    assert losses(run) == pytest.approx(losses(straight), abs=1e-5)
    assert "GB of memory that are free on cpu" in told(run)[0]
    assert "compute their activations again" in told(run)[1] and "% more work" in told(run)[1]


def test_a_resumed_run_is_fitted_in_as_before_however_much_is_free(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        leave(patched, 0.15)
        stopped = teach(tmp_path, data, stop_at=3)
    first = noted(stopped)
    assert first.parts == 2
    again = teach(tmp_path, data)
    assert noted(again) == first and len(losses(again)) == 6
    assert told(again).count(told(again)[0]) == 1  # what was chosen is told once


def run_out(monkeypatch: pytest.MonkeyPatch, *at: int, spoil: bool = False) -> None:
    """Run out of memory at these tries of a step. A mock: this machine's memory does not run out at a wish."""
    real, tries = loop.gradients, iter(range(1000))

    def gradients(lesson: Any, *rest: Any) -> torch.Tensor:
        if next(tries) in at:
            if spoil:
                lesson.arena.working_gradient.fill_(1.0)
            raise devices.OutOfMemory("CUDA out of memory")
        return real(lesson, *rest)

    monkeypatch.setattr(loop, "gradients", gradients)


def test_running_out_again_and_again_goes_down_every_rung_and_loses_nothing(
        straight: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, 1, 3, 5, 7)
    monkeypatch.setattr(memory, "can_stream", lambda work: True)
    run = teach(tmp_path, data)
    warnings = told(run, "warning")
    assert ["again", "2 parts", "8 bits", "in turn"] == [
        next(word for word in ("again", "2 parts", "8 bits", "in turn") if word in text) for text in warnings]
    assert len(noted(run).streamed) == len(noted(run).recomputed) > 20
    assert noted(run).parts == 2 and noted(run).eight_bit
    exact, near = losses(straight), losses(run)
    assert near[:3] == pytest.approx(exact[:3], abs=1e-5)   # kept, recomputed, in two parts
    assert near[3:] == pytest.approx(exact[3:], rel=0.02)   # in 8 bits, then streamed as well
    assert near[3:] != exact[3:]


def test_streaming_a_run_changes_nothing(straight: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = tuple(range(20))
    monkeypatch.setattr(memory, "choose", lambda *_: Choice(pieces, 1, False, pieces[:13]))
    run = teach(tmp_path, data)
    assert losses(run) == pytest.approx(losses(straight), abs=1e-5)
    assert [p.read_bytes() for p in sorted(run.samples.glob("*-000000-0.png"))] == [
        p.read_bytes() for p in sorted(straight.samples.glob("*-000000-0.png"))] != []


def test_a_gradient_half_done_when_memory_ran_out_is_forgotten(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"precision": "bf16", "gradient_accumulation": 2, "steps": 2, "batch_size": 2}
    whole = teach(tmp_path / "a", data, **half)
    run_out(monkeypatch, 1, spoil=True)
    assert losses(teach(tmp_path / "b", data, **half)) == pytest.approx(losses(whole), abs=1e-5)


def test_memory_that_runs_out_below_the_last_rung_is_told_in_one_sentence(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Callable[[str, object], None]) -> None:
    run_out(monkeypatch, *range(100))
    with pytest.raises(DeviceError, match="at resolution 64 with 1 picture") as caught:
        teach(tmp_path, data)
    answers("memory that never does", caught.value)
    with pytest.raises(DeviceError, match="with 2 picture.*set memory to auto"):
        teach(tmp_path / "manual", data, memory="manual")


# Beside the steps


class Moves(dict[str, list[str]]):
    """Where each part of a base was sent, in place of sending it: this machine has no card."""

    def __init__(self, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        names = {id(module): name for name, module in base.parts().items()}

        def move(module: nn.Module, where: object) -> nn.Module:
            self.setdefault(names[id(module)], []).append(str(where))
            return module

        monkeypatch.setattr(nn.Module, "to", move)


def test_samples_take_to_the_card_what_fits_and_leave_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base, card, size = families()["sdxl"].tiny(), torch.device("cuda"), (64, 64)
    vae = frozen_bytes(base.parts()["vae"]) + passing_vae(base, size, decode=True)
    texts = [frozen_bytes(module) for module in base.text_encoders]
    cases = {vae + sum(texts): [], vae + max(texts): ["text_encoder_1"], vae: ["text_encoder_2", "text_encoder_1"],
             vae - 1: ["vae", "text_encoder_2", "text_encoder_1"]}
    assert vae < min(texts)
    for free, left in cases.items():
        with monkeypatch.context() as patched:
            moves = Moves(base, patched)
            patched.setattr(placing, "SPARE", 0)
            patched.setattr(devices, "release", lambda where: None)
            with placing.drawing(base, card, size, free=free) as stayed:
                assert stayed == left
                assert set(moves) == {"vae", "text_encoder_1", "text_encoder_2"} - set(left)
            assert all(places == ["cuda", "cpu"] for places in moves.values())


def test_on_a_cpu_encoders_leave_memory_once_all_is_encoded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resting: list[set[str]] = []
    update = loop.update

    def watched(lesson: Any, *rest: Any) -> Any:
        resting.append({name for name, module in lesson.base.parts().items() if placing.rests(module)})
        return update(lesson, *rest)

    monkeypatch.setattr(loop, "update", watched)
    run = teach_at(tmp_path / "rested", data, steps=2)
    assert resting == [{"text_encoder_1", "vae"}] * 2
    monkeypatch.setattr(placing, "rest", lambda base, parts: None)
    awake = teach_at(tmp_path / "awake", data, steps=2)
    assert resting[2:] == [set()] * 2
    for name in ("step-000000-0.png", "step-000002-0.png"):
        assert Image.open(run.samples / name).tobytes() == Image.open(awake.samples / name).tobytes()


def test_a_trained_encoder_never_rests(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[str] = []
    monkeypatch.setattr(placing, "rest", lambda base, parts: rested.extend(parts))
    teach_at(tmp_path, data, steps=1, train_text_encoder=True)
    assert set(rested) == {"vae"}


@pytest.mark.parametrize("away", [True, False])
def test_a_base_that_went_away_or_was_exchanged_costs_the_samples_and_nothing_else(data: Path, tmp_path: Path,
                                                                                 away: bool) -> None:
    base = tmp_path / "base"
    shutil.copytree(checkpoint.MICRO, base)
    job = Job.read({"method": "lora", "rank": 4, "steps": 3, "batch_size": 2, "sampler_steps": 2, "sample_prompts": ["a fish"],
                    "sample_every_steps": 2, "base": str(base), "data": str(data), "name": "taught"})
    run = Run.create(tmp_path / "out", job, "")
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"

    def exchange(event: Any) -> None:
        if event["event"] == "sample":
            weights = load(vae.read_bytes())
            vae.unlink() if away else vae.write_bytes(save({name: 2 * weight for name, weight in weights.items()}))

    run.listeners.append(exchange)
    with run.locked():
        file = loop.train(run.job(), run)
    assert file.is_file()
    told = [event["text"] for event in run.events() if event["event"] == "warning"]
    why = (f"{vae} cannot be read: {os.strerror(errno.ENOENT)}. Is it on a drive that is still there?" if away else
           f"{vae} was replaced while it was in use. Leave a model as it is until what runs with it has ended.")
    assert told == [f"No samples were drawn at step {step}: {why} The training goes on." for step in (2, 3)]


def test_pictures_that_are_no_numbers_cost_the_samples_and_say_so(data: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(checkpoint.MICRO, base)
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load(file.read_bytes())
    weights["conv_out.bias"][0] = float("nan")
    file.write_bytes(save(weights, {"format": "pt"}))
    run = Run.create(tmp_path / "out", Job.read({"method": "lora", "rank": 4, "steps": 1, "sampler_steps": 1, "base": str(base),
                                                 "sample_prompts": ["a fish"], "data": str(data), "name": "taught"}), "")
    with run.locked(), pytest.raises(TrainingError, match="The loss of step 1 was no number"):
        loop.train(run.job(), run)
    assert told(run, "warning")[0] == ("No samples were drawn at step 0: base gives pictures that are not numbers. Choose "
                                       "precision fp32, or another VAE. The training goes on.")


def test_encoding_that_does_not_fit_goes_on_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, run = families()["sd1"].tiny(), Run(tmp_path)
    moves, tries = Moves(base, monkeypatch), []
    monkeypatch.setattr(devices, "release", lambda where: None)

    def work() -> str:
        tries.append(len(moves["vae"]))
        if len(tries) == 1:
            raise RuntimeError("MPS backend out of memory")
        return "done"

    assert placing.encoded(base, ["vae"], torch.device("cuda"), run, work) == "done"
    assert moves == {"vae": ["cuda", "cpu"]} and tries == [1, 2]
    assert "encoded on the CPU" in told(run, "warning")[0]


def test_a_spill_is_noticed_once_when_steps_take_long_and_the_card_is_full(tmp_path: Path) -> None:
    run, card, clock = Run(tmp_path), {"free": 4 << 30}, [0.0]
    spill = Spill(run, lambda: (card["free"], 8 << 30, 5 << 30))

    def steps(seconds: float, count: int = 20) -> None:
        for i in range(count):
            clock[0] += 60 if i % 10 == 3 else seconds  # samples between two steps are no slow steps
            spill.note(clock[0])

    spill.note(0.0)
    steps(0.5)
    steps(3.0)      # slow, but there is room
    assert told(run, "warning") == []
    card["free"] = 1 << 20
    steps(0.6)      # full, but quick
    assert told(run, "warning") == []
    steps(3.0, 60)
    assert len(told(run, "warning")) == 1
    assert "takes 3 s, the best took 0.5 s" in told(run, "warning")[0] and "Sysmem" in told(run, "warning")[0]


def test_a_card_that_holds_more_than_it_has_spills_from_the_start(tmp_path: Path) -> None:
    run = Run(tmp_path)
    spill = Spill(run, lambda: (0, 8 << 30, 9 << 30))
    for second in range(12):
        spill.note(float(second))
    assert spill.noticed and len(told(run, "warning")) == 1


# Room before a run begins


def test_a_base_takes_what_was_foreseen(tmp_path: Path) -> None:
    for family in families().values():
        file = checkpoint.write_single_file(family.tiny(), tmp_path / f"{family.name}.safetensors")[0]
        settings = BaseSettings(path=str(file), prediction="epsilon" if family.name == "sd2" else "auto")
        for dtype in (torch.float32, torch.bfloat16):
            real = sum(map(frozen_bytes, checkpoint.open_base(settings, dtype).parts().values()))
            assert 0.97 < room.opened_bytes(checkpoint.find(settings), dtype) / real < 1.05
    micro = BaseSettings()
    real = sum(map(frozen_bytes, checkpoint.open_base(micro, torch.float32).parts().values()))
    assert 0.97 < room.opened_bytes(checkpoint.find(micro), torch.float32) / real < 1.05


def test_memory_that_will_not_do_is_told_before_the_base_opens(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Callable[[str, object], None]) -> None:
    monkeypatch.setattr(devices, "free_ram", lambda swap=False: 1_000_000)
    with pytest.raises(ProblemsError, match=r"takes \d+(\.\d+)? MB of the computer's memory, and 1 MB are free.*bf16") as caught:
        teach(tmp_path, data)
    answers("a base larger than the memory", caught.value)
    half = room.memory_problems(checkpoint.find(BaseSettings()), torch.bfloat16, 1_000_000)
    assert "smaller base" in str(half[0])
    assert room.memory_problems(checkpoint.find(BaseSettings()), torch.bfloat16, None) == []


def test_a_disk_that_will_not_hold_the_states_is_told_before_training(
        data: Path, tmp_path: Path, straight: Run, monkeypatch: pytest.MonkeyPatch,
        answers: Callable[[str, object], None]) -> None:
    job = straight.job()
    state, file = 120_000_000, 20_000_000  # of ten million numbers
    room.check_disk(straight, job, 10_000_000, 6, free=2 * state + file)
    with pytest.raises(RunError, match="about 260 MB in .*and 100 MB are free.*save less often") as caught:
        room.check_disk(straight, job, 10_000_000, 6, free=100_000_000)
    answers("a disk too small for the run's states", caught.value)
    room.check_disk(straight, job, 1000, 6, free=0)  # what is written already is there
    monkeypatch.setattr(room, "free_bytes", lambda path: 1000)
    with pytest.raises(RunError, match="save less often"):
        teach(tmp_path, data)
