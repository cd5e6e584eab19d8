"""Exchanged layers of a frozen network: the same answers and gradients as the stock ones, the same names, less that is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aprendiz.families import Base, PictureSize
from aprendiz.nets import frozen
from aprendiz.nets.lora import LoraLayer, wrap
from aprendiz.registry import families

NETWORKS = ["sd1", "sd2", "sdxl"]


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miniatures have small layers alone."""
    monkeypatch.setattr(frozen, "SMALL", 0)


def taught(base: Base) -> dict[str, LoraLayer]:
    """LoRA layers over everything, with something learned."""
    generator = torch.Generator().manual_seed(5)
    names = base.family.lora_targets(base, "all")["network"]
    layers = wrap(base.network, names, rank=2, scale=0.5, generator=generator)
    with torch.no_grad():
        for layer in layers.values():
            layer.up.normal_(std=0.1, generator=generator)
    return layers


def step(base: Base) -> Tensor:
    """The answer to two noisy pictures with their captions."""
    generator = torch.Generator().manual_seed(7)
    family = base.family
    noisy = torch.randn(2, *family.latent_shape(base, 64, 64), generator=generator)
    size = PictureSize((64, 64), (0, 0), (64, 64))
    states = family.encode_tokens(base, family.tokenize(base, ["a red square", "two dots"]))
    return family.predict(base, noisy, torch.tensor([10, 700]), family.collate([states], [size, size]))


def gradients(base: Base, layers: dict[str, LoraLayer]) -> dict[str, Tensor]:
    step(base).square().mean().backward()
    found = {f"{name}.{which}": getattr(layer, which).grad for name, layer in layers.items() for which in ("down", "up")}
    return {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("first", ["exchange", "lora"])
def test_answers_and_gradients_equal_those_of_the_stock_layers(family: str, first: str) -> None:
    stock, exchanged = families()[family].tiny(), families()[family].tiny()
    if first == "exchange":
        frozen.exchange(exchanged.network)
    layers, theirs = taught(exchanged), taught(stock)
    if first == "lora":
        frozen.exchange(exchanged.network)
    with torch.no_grad():
        assert torch.allclose(step(exchanged), step(stock), atol=1e-5)
    ours, wanted = gradients(exchanged, layers), gradients(stock, theirs)
    assert len(ours) == len(wanted) == 2 * len(layers)
    worst = max(float((ours[name] - grad).abs().max()) for name, grad in wanted.items())
    assert worst < 1e-5
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3  # so that the difference above says something


@pytest.mark.parametrize("family", NETWORKS)
def test_names_and_tensors_stay(family: str) -> None:
    base = families()[family].tiny()
    before = {name: tensor.data_ptr() for name, tensor in base.network.state_dict().items()}
    targets = base.family.lora_targets(base, "all")
    frozen.exchange(base.network)
    assert {name: tensor.data_ptr() for name, tensor in base.network.state_dict().items()} == before
    assert base.family.lora_targets(base, "all") == targets
    assert not any(module.training for module in base.network.modules())


@pytest.mark.parametrize("family", NETWORKS)
def test_every_layer_of_its_kind_is_exchanged(family: str) -> None:
    base = families()[family].tiny()
    stock = [type(module).__name__ for module in base.network.modules()]
    frozen.exchange(base.network)
    found = [type(module).__name__ for module in base.network.modules()]
    for old, new in (("Conv2d", "FrozenConv2d"), ("ResnetBlock2D", "Residual"), ("GEGLU", "Gated")):
        assert stock.count(old) == found.count(new) > 0
        assert found.count(old) == 0
    kinds = {type(processor) for processor in base.network.attn_processors.values()}  # type: ignore[union-attr]
    assert kinds == {frozen.PlainAttention}


def test_less_is_kept_for_the_way_back() -> None:
    def kept(base: Base) -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        taught_layers = taught(base)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer = step(base)
        weights = {parameter.untyped_storage().data_ptr() for parameter in base.network.parameters()}
        assert answer.requires_grad and taught_layers
        return sum(size for place, size in found.items() if place not in weights)

    stock, exchanged = families()["sd1"].tiny(), families()["sd1"].tiny()
    frozen.exchange(exchanged.network)
    assert kept(exchanged) < 0.95 * kept(stock)


@pytest.mark.parametrize(("channels", "out", "side", "stride", "count", "bias"), [
    (512, 512, 4, 1, 1, True), (512, 256, 4, 2, 1, True), (640, 640, 4, 1, 2, False), (512, 512, (2, 6), 1, 3, True)])
def test_a_convolution_as_a_matrix_product_is_the_same_convolution(
        channels: int, out: int, side: int | tuple[int, int], stride: int, count: int, bias: bool) -> None:
    torch.manual_seed(0)
    height, width = (side, side) if isinstance(side, int) else side
    layer = nn.Conv2d(channels, out, 3, stride, 1, bias=bias).requires_grad_(False)
    assert frozen.by_product(layer.weight, count * height * width // stride**2)
    x = torch.randn(count, channels, height, width, requires_grad=True)
    results = []
    for one in (layer, frozen.FrozenConv2d(layer)):
        answer = one(x)
        (back,) = torch.autograd.grad(answer.square().sum(), x)
        results.append((answer, back))
    assert results[0][0].shape == results[1][0].shape
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)


def test_a_small_convolution_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    network = nn.Sequential(nn.Conv2d(96, 96, 3), nn.Conv2d(320, 320, 3))
    frozen.exchange(network)
    assert [type(layer) for layer in network] == [nn.Conv2d, frozen.FrozenConv2d]
    weight = torch.empty(64, 64, 3, 3)
    assert not frozen.by_product(weight, 64)
    assert not frozen.by_product(torch.empty(1280, 2560, 1, 1), 16)
    assert not frozen.by_product(torch.empty(1280, 1280, 3, 3, dtype=torch.bfloat16), 16)


def test_a_weight_that_is_trained_after_all_has_its_gradient() -> None:
    base = families()["sd1"].tiny()
    frozen.exchange(base.network)
    base.network.requires_grad_(True)
    step(base).square().mean().backward()
    assert [name for name, parameter in base.network.named_parameters() if parameter.grad is None] == []


def test_what_does_something_special_is_left_alone() -> None:
    from diffusers.models.resnet import ResnetBlock2D
    network = nn.Module()
    network.grouped = nn.Conv2d(4, 4, 3, groups=2)
    network.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    network.scaled = ResnetBlock2D(in_channels=8, groups=4, temb_channels=8, output_scale_factor=2.0)
    frozen.exchange(network)
    assert [type(child).__name__ for child in network.children()] == ["Conv2d", "Conv2d", "ResnetBlock2D"]


def plain(layer: LoraLayer, x: Tensor) -> Tensor:
    """The update as it is written: y = W x + scale up(down(x))."""
    return layer.frozen(x) + layer.scale * (x @ layer.down.t() @ layer.up.t())  # type: ignore[no-any-return]


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 12), (2, 5, 12), (2, 3, 4, 12)])
def test_a_linear_lora_as_one_function_is_the_same_lora(scale: float, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = LoraLayer(nn.Linear(12, 20, bias=bias).requires_grad_(False), rank=3, scale=scale)
    nn.init.normal_(layer.down)
    nn.init.normal_(layer.up)
    x = torch.randn(shape, requires_grad=True)
    results: list[tuple[Tensor, ...]] = []
    forwards: tuple[Callable[[Tensor], Tensor], ...] = (layer, lambda x: plain(layer, x))
    for forward in forwards:
        answer = forward(x)
        results.append((answer, *torch.autograd.grad(answer.square().sum(), [x, layer.down, layer.up])))
    for ours, wanted in zip(*results):
        assert ours.shape == wanted.shape
        assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-4)
