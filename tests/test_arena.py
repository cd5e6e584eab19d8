"""The arena: parameters are views of one buffer, whatever happens to their modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aprendiz.methods import Part
from aprendiz.nets.arena import Arena


def parts() -> tuple[list[Part], nn.Module]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    named = dict(module.named_parameters())
    return [Part("a", {n: p for n, p in named.items() if n.startswith("0")}),
            Part("b", {n: p for n, p in named.items() if n.startswith("1")}, 1e-3)], module


def test_values_survive_and_gradients_arrive_in_the_buffer() -> None:
    made, module = parts()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    arena = Arena(made, torch.device("cpu"), torch.float32)
    assert all(torch.equal(view, before[name]) for name, view in arena.views(arena.master).items())
    module(torch.ones(5, 3)).sum().backward()
    arena.collect()
    assert float(arena.gradient.abs().sum()) > 0
    assert torch.equal(arena.views(arena.gradient)["1.bias"], torch.full((2,), 5.0))
    arena.zero()
    assert float(arena.gradient.abs().sum()) == 0


def test_what_is_trained_stays_as_it_was_where_showing_something_else_fails() -> None:
    made, _ = parts()
    arena = Arena(made, torch.device("cpu"), torch.float32)
    before = arena.master.clone()
    with pytest.raises(OSError, match="gone"), arena.showing(torch.zeros_like(arena.master)):
        assert float(arena.working.abs().sum()) == 0
        raise OSError("the base is gone")
    assert torch.equal(arena.master, before)


def test_working_copies_follow_the_masters_and_add_their_gradients_in_float32() -> None:
    made, module = parts()
    arena = Arena(made, torch.device("cpu"), torch.bfloat16)
    x = torch.ones(5, 3, dtype=torch.bfloat16)
    for _ in range(2):
        module(x).sum().backward()
        arena.collect()
    assert arena.gradient.dtype == torch.float32
    assert torch.equal(arena.views(arena.gradient)["1.bias"], torch.full((2,), 10.0))
    arena.master.add_(1.0)
    arena.refresh()
    assert torch.equal(module[1].bias, arena.views(arena.master)["1.bias"].bfloat16())


def test_parameters_are_views_again_after_a_module_was_moved() -> None:
    made, module = parts()
    arena = Arena(made, torch.device("cpu"), torch.float32)
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    arena.reattach()
    arena.master.fill_(2.0)
    assert all(bool((p == 2).all()) for p in module.parameters())


def test_other_values_show_only_for_a_while() -> None:
    made, module = parts()
    arena = Arena(made, torch.device("cpu"), torch.float32)
    before = arena.master.clone()
    with arena.showing(torch.zeros_like(arena.master)):
        assert bool((module(torch.ones(1, 3)) == 0).all())
    assert torch.equal(arena.master, before)


@pytest.mark.parametrize("longest", [0.5, 1e9])
def test_clipping_is_torchs(longest: float) -> None:
    made, module = parts()
    arena = Arena(made, torch.device("cpu"), torch.float32)
    module(torch.ones(5, 3)).square().sum().backward()
    arena.collect()
    copies = [nn.Parameter(p.detach().clone()) for p in module.parameters()]
    for copy, parameter in zip(copies, module.parameters()):
        copy.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(copies, longest)
    norm = arena.norm()
    arena.clip(norm, longest)
    assert torch.allclose(norm, expected)
    assert torch.allclose(torch.cat([c.grad.flatten() for c in copies]),
                          torch.cat([p.grad.flatten() for p in module.parameters()]))
