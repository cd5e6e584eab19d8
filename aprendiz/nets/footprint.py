"""What a step keeps for its gradient, counted without any memory: the forward pass on the meta device, where tensors are shapes.

What autograd saves is seen by hooks, once for each storage, and by the piece of the network that saved it; so the bytes of any
choice of pieces that are recomputed follow from one pass. Attention counts as the fused kernels have it: queries, keys, values,
result and one number a row, never the whole matrix. Bytes throughout.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PASSING = 2  # largest tensors alive at a time besides what is saved: a layer's result and a gradient


@dataclass
class Piece:
    """What one piece of the network saved (storage: bytes), what it was handed, and the operations of its matrix products.

    forward, backward: the latter with respect to activations alone, as through frozen layers. last: of the last product, which a
    recomputation stops before.
    """

    saved: dict[int, int] = field(default_factory=dict)
    handed: dict[int, int] = field(default_factory=dict)
    forward: float = 0.0
    backward: float = 0.0
    last: float = 0.0

    @property
    def again(self) -> float:
        """Operations of computing it again."""
        return self.forward - self.last

    def product(self, forward: float, backward: float) -> None:
        """Count one."""
        self.forward, self.backward, self.last = self.forward + forward, self.backward + backward, forward


@dataclass
class Footprint:
    """One forward pass. outside: what no piece saved (text encoders, the network's ends, the loss). largest: saved tensor."""

    pieces: list[Piece]
    outside: Piece
    largest: int = 0

    def peak(self, recomputed: Collection[int] = ()) -> int:
        """Most bytes alive at a time, besides weights, where these pieces (by number) are computed again for their gradient.

        That is at the end of the forward pass, or while a piece is computed again: then those behind it have been let go.
        """
        held = dict(self.outside.saved)
        now, top = sum(held.values()), 0
        for number, piece in enumerate(self.pieces):
            if number in recomputed:
                top = max(top, now + sum(size for key, size in piece.saved.items() if key not in held))
            for key, size in (piece.handed if number in recomputed else piece.saved).items():
                now += 0 if key in held else size
                held[key] = size
        return max(top, now) + PASSING * self.largest

    def order(self) -> list[int]:
        """The pieces that save anything, those that free most bytes for their operations first."""
        def gain(number: int) -> float:
            piece = self.pieces[number]
            freed = sum(piece.saved.values()) - sum(piece.handed.values())
            return freed / max(piece.again, 1.0)
        return sorted((n for n, piece in enumerate(self.pieces) if piece.saved), key=gain, reverse=True)

    def slower(self, recomputed: Collection[int]) -> float:
        """What recomputing these pieces adds to a step's operations, as a share."""
        every = [self.outside, *self.pieces]
        whole = sum(piece.forward for piece in every) + sum(piece.backward for piece in every if piece.saved)
        return sum(self.pieces[number].again for number in recomputed) / max(whole, 1.0)


def trace(step: Callable[[], Tensor], modules: Sequence[nn.Module], chosen: Sequence[nn.Module],
          working: torch.dtype) -> Footprint:
    """Run a step's forward with these modules on the meta device; they are as they were afterwards.

    step: makes its own meta inputs. chosen: the pieces to tell apart. working: the precision that trained parameters will have.
    Raises RuntimeError or NotImplementedError where something in the step needs numbers.
    """
    with on_meta(modules, working), _Watch(chosen) as watch:
        watch.weights = _storages(modules)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(watch.pack, _same):
            result = step()
        del result
    return watch.footprint


def passing(step: Callable[[], Tensor], modules: Sequence[nn.Module]) -> int:
    """Most bytes alive at a time, besides weights, while `step` computes without gradients; as `trace`."""
    with on_meta(modules, torch.float32), torch.no_grad(), _Fused(), _Live(_storages(modules)) as live:
        step()
    return live.peak


@contextlib.contextmanager
def on_meta(modules: Iterable[nn.Module], working: torch.dtype) -> Iterator[None]:
    """While parameters and buffers of these modules are tensors without numbers, trained ones in this precision."""
    kept: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    stand_ins: dict[int, Tensor] = {}
    try:
        for root in modules:
            for module in root.modules():
                for table in (module._parameters, module._buffers):
                    for name, tensor in table.items():
                        if tensor is None:
                            continue
                        kept.append((table, name, tensor))  # type: ignore[arg-type]
                        empty = torch.empty_like(tensor, device="meta", dtype=working if tensor.requires_grad else tensor.dtype)
                        stand_in = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                        table[name] = stand_ins.setdefault(id(tensor), stand_in)  # type: ignore[assignment]
        yield
    finally:
        for table, name, tensor in kept:
            table[name] = tensor


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels do it, which the meta device has not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return function(*args, **(kwargs or {}))


class _Watch(_Fused):
    """Knows which piece is at work, what it is handed and saves, and counts its matrix products."""

    def __init__(self, chosen: Sequence[nn.Module]) -> None:
        super().__init__()
        self.chosen = list(chosen)
        self.footprint = Footprint([Piece() for _ in chosen], Piece())
        self.weights: set[int] = set()
        self._now = self.footprint.outside
        self._alive: list[Tensor] = []  # as long as these live, no other storage gets their number
        self._hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        super().__enter__()
        for module, piece in zip(self.chosen, self.footprint.pieces):
            self._hooks.append(module.register_forward_pre_hook(self._begin(piece), with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._end))
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for hook in self._hooks:
            hook.remove()

    def _begin(self, piece: Piece) -> Any:
        def hook(_module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            self._now = piece
            for tensor in (*inputs, *named.values()):
                if isinstance(tensor, Tensor):
                    self._note(piece.handed, tensor)
        return hook

    def _end(self, *_: Any) -> None:
        self._now = self.footprint.outside

    def pack(self, tensor: Tensor) -> Tensor:
        """Note what autograd saves."""
        if not isinstance(tensor, nn.Parameter) and _storage(tensor) not in self.weights:
            size = self._note(self._now.saved, tensor)
            self.footprint.largest = max(self.footprint.largest, size)
        return tensor

    def _note(self, where: dict[int, int], tensor: Tensor) -> int:
        self._alive.append(tensor.detach())
        size = tensor.untyped_storage().nbytes()
        where[_storage(tensor)] = size
        return size

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function is F.scaled_dot_product_attention:
            query, key = args[:2]
            products = 2.0 * query.numel() * key.shape[-2]
            self._now.product(2 * products, 5 * products)  # backward: the scores again, and four gradients
        result = super().__torch_function__(function, types, args, kwargs)
        if function in (F.linear, F.conv2d):
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            products = 2.0 * result.numel() * math.prod(weight.shape[1:])
            self._now.product(products, products)
        return result


class _Live(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    """Follows every storage from its first tensor to its last. weights: storages that do not count."""

    def __init__(self, weights: Collection[int]) -> None:
        super().__init__()
        self.weights = weights
        self.tensors: Counter[int] = Counter()  # of each storage; in torch 2.1 a storage itself cannot be followed
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and _storage(tensor) not in self.weights:
                self._begin(_storage(tensor), tensor.untyped_storage().nbytes(), tensor)
        return result

    def _begin(self, storage: int, size: int, tensor: Tensor) -> None:
        if not self.tensors[storage]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.tensors[storage] += 1
        weakref.finalize(tensor, self._end, storage, size).atexit = False

    def _end(self, storage: int, size: int) -> None:
        self.tensors[storage] -= 1
        if not self.tensors[storage]:
            self.now -= size


class _Attention(torch.autograd.Function):
    """The shapes of fused attention (Dao et al. 2022)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _storages(modules: Iterable[nn.Module]) -> set[int]:
    return {_storage(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(tensor: Tensor) -> Tensor:
    return tensor
