"""LoRA layers: nothing changes until something is learned; the arithmetic is peft's; folding is exact and reversible."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aprendiz.nets.lora import LoraLayer, delta, unwrap, wrap


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Unflatten(1, (5, 2, 2)), nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(7, 3, 1),
                         nn.Flatten())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


NAMES = ["0", "2", "3"]


def test_a_fresh_lora_changes_nothing() -> None:
    plain, x = network(), torch.randn(4, 12)
    wrapped = copy.deepcopy(plain)
    wrap(wrapped, NAMES, rank=3, scale=1.0, generator=generator())
    assert torch.equal(wrapped(x), plain(x))


def test_taking_the_layers_off_gives_the_network_back() -> None:
    plain, x = network(), torch.randn(4, 12)
    keys = set(plain.state_dict())
    before = plain(x)
    wrap(plain, NAMES, rank=3, scale=1.0, generator=generator())
    unwrap(plain, NAMES)
    assert set(plain.state_dict()) == keys
    assert torch.equal(plain(x), before)


@pytest.mark.parametrize("alpha", [4.0, 1.0])
def test_outputs_and_gradients_equal_pefts(alpha: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    ours, theirs, x = network(), network(), torch.randn(4, 12)
    layers = wrap(ours, NAMES, rank=4, scale=alpha / 4, generator=generator())
    theirs = inject_adapter_in_model(LoraConfig(r=4, lora_alpha=alpha, target_modules=NAMES), theirs)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.up.normal_(generator=generator())
            peft_layer = theirs.get_submodule(name)
            peft_layer.lora_A["default"].weight.copy_(layer.down)
            peft_layer.lora_B["default"].weight.copy_(layer.up)
    a, b = ours(x), theirs(x)
    assert torch.allclose(a, b, atol=1e-6)
    a.square().sum().backward()
    b.square().sum().backward()
    for name, layer in layers.items():
        peft_layer = theirs.get_submodule(name)
        assert torch.allclose(layer.down.grad, peft_layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5)
        assert torch.allclose(layer.up.grad, peft_layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-5)


def test_the_update_is_up_down_alpha_over_rank() -> None:
    for frozen, x in ((nn.Linear(6, 8), torch.randn(2, 6)), (nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 4, 4))):
        layer = LoraLayer(frozen, rank=2, scale=1.5 / 2)
        with torch.no_grad():
            layer.down.normal_()
            layer.up.normal_()
        merged = copy.deepcopy(frozen)
        merged.weight.data += delta(layer.down, layer.up, alpha=1.5)
        assert torch.allclose(layer(x), merged(x), atol=1e-5)


def test_resting_ranks_belong_to_their_sample() -> None:
    layer = LoraLayer(nn.Linear(6, 8), rank=4, scale=1.0)
    with torch.no_grad():
        layer.down.normal_()
        layer.up.normal_()
    x = torch.randn(2, 3, 6)
    layer.keep_Br = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    both = layer(x)
    layer.keep_Br = layer.keep_Br[1:]
    assert torch.allclose(both[1:], layer(x[1:]), atol=1e-6)
    layer.keep_Br = None
    assert not torch.allclose(both, layer(x))


def test_a_switched_off_lora_is_the_base() -> None:
    layer = LoraLayer(nn.Linear(6, 8), rank=2, scale=1.0)
    nn.init.normal_(layer.up)
    x = torch.randn(2, 6)
    layer.on = False
    assert torch.equal(layer(x), layer.frozen(x))
