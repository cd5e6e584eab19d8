"""Pieces of the network that wait in the computer's memory and come to the device as they are needed, exactly as they are.

Each piece's frozen weights lie in one stretch of host memory (pinned where the device can read it directly), so that a piece is
one copy. The device holds a ring of buffers, each as large as the largest piece: for the one at work, for the next, on its way on
a stream of its own, and for the one before. A piece must be recomputed for its gradient (`recompute`), so that it is asked for
again on the way back. What is trained stays on the device: only what is frozen moves, and never has to be written back.
Without streams (other devices than CUDA) copies happen as they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SLOTS = 3           # buffers in the ring
ALIGNED = 256       # bytes at which each tensor begins
CHUNK = 1 << 29     # bytes of host memory asked for at a time: the pinned allocator rounds up to a power of two


@dataclass
class Piece:
    """A module and its frozen tensors: where each belongs and lies, the bytes of all, the stretch in which they wait."""

    module: nn.Module
    forward: Callable[..., Any]
    places: list[Place]
    size: int
    host: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))


@dataclass(frozen=True)
class Place:
    """One tensor: the module and name it belongs to, its shape and type, and its first byte in the stretch."""

    owner: nn.Module
    name: str
    buffer: bool
    shape: torch.Size
    dtype: torch.dtype
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.shape.numel() * self.dtype.itemsize

    def within(self, stretch: Tensor) -> Tensor:
        """The tensor as it lies in a stretch of bytes."""
        return stretch[self.start:self.start + self.size].view(self.dtype).view(self.shape)

    def put(self, stretch: Tensor) -> None:
        """Let the module use the tensor in this stretch."""
        if self.buffer:
            self.owner._buffers[self.name] = self.within(stretch)
        else:
            parameter = self.owner._parameters[self.name]
            assert parameter is not None
            parameter.data = self.within(stretch)


class Stream:
    """These modules, in the order in which they run, wait in host memory from now on. copied: bytes brought so far."""

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, slots: int = SLOTS) -> None:
        self.device = device
        self.pieces = [measure(module) for module in modules]
        self.pinned = self._settle()
        size = max((piece.size for piece in self.pieces), default=0)
        self.ring = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(slots, len(self.pieces)))]
        self.copied = 0
        self._in: list[int | None] = [None] * len(self.ring)  # which piece is in each buffer
        self._used: list[int] = [-1] * len(self.ring)         # when it was last asked for
        self._now, self._last = 0, 0
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: list[Any] = [torch.cuda.Event() for _ in self.ring] if self._side else []
        for number, piece in enumerate(self.pieces):
            piece.module.forward = self._asking(number, piece.forward)  # type: ignore[method-assign]
            piece.module._apply = _stay(piece.module)  # type: ignore[method-assign]

    def close(self) -> None:
        """Let go: the modules keep what is frozen in host memory, and run by themselves."""
        for piece in self.pieces:
            for place in piece.places:
                place.put(piece.host)
            del piece.module.forward, piece.module._apply
        self.ring = []

    def bring(self, number: int) -> None:
        """Have a piece on the device, and the one that comes next on its way."""
        slot = self._fetch(number)
        if self._side:
            torch.cuda.current_stream(self.device).wait_event(self._ready[slot])
        backward = number == self._last - 1 or (number == self._last and number > 0)
        following = number - 1 if backward else number + 1
        self._last = number
        if self._side and 0 <= following < len(self.pieces):
            self._fetch(following)

    def _fetch(self, number: int) -> int:
        """The buffer that holds a piece, once its copy is done."""
        self._now += 1
        if number in self._in:
            slot = self._in.index(number)
            self._used[slot] = self._now
            return slot
        slot = self._used.index(min(self._used))
        before = self._in[slot]
        piece = self.pieces[number]
        if before is not None:
            for place in self.pieces[before].places:
                place.put(self.pieces[before].host)
        target = self.ring[slot][:piece.size]
        if self._side:
            # What uses the buffer's last piece has been asked for already: the copy waits for it, nothing waits for the copy yet.
            self._side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._side):
                target.copy_(piece.host, non_blocking=True)
                self._ready[slot].record(self._side)
        else:
            target.copy_(piece.host)
        for place in piece.places:
            place.put(target)
        self._in[slot], self._used[slot] = number, self._now
        self.copied += piece.size
        return slot

    def _asking(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*inputs: Any, **named: Any) -> Any:
            self.bring(number)
            return forward(*inputs, **named)
        return ask

    def _settle(self) -> bool:
        """Move every piece into host memory; whether it is pinned."""
        pinned = self.device.type == "cuda"
        for group in packed([piece.size for piece in self.pieces], CHUNK):
            size = sum(self.pieces[number].size for number in group)
            try:
                chunk = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            except RuntimeError:  # the system pins no more; copies from plain memory are slower, and as exact
                pinned, chunk = False, torch.empty(size, dtype=torch.uint8)
            start = 0
            for number in group:
                piece = self.pieces[number]
                piece.host = chunk[start:start + piece.size]
                start += piece.size
                for place in piece.places:
                    table = place.owner._buffers if place.buffer else place.owner._parameters
                    tensor = table[place.name]
                    assert tensor is not None
                    place.within(piece.host).copy_(tensor.detach())
                    place.put(piece.host)
        return pinned


def measure(module: nn.Module) -> Piece:
    """A module's frozen tensors, laid out one after the other."""
    places: list[Place] = []
    end = 0
    seen: set[int] = set()
    for owner in module.modules():
        for buffer, table in ((False, owner._parameters), (True, owner._buffers)):
            for name, tensor in table.items():
                if tensor is None or tensor.requires_grad or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                places.append(Place(owner, name, buffer, tensor.shape, tensor.dtype, end))
                end += -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
    return Piece(module, module.forward, places, end)


def packed(sizes: Sequence[int], chunk: int) -> list[list[int]]:
    """Neighbours that go into one chunk together, each chunk filled as far as it goes."""
    groups: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes):
        if not groups or size > room:
            groups.append([])
            room = max(chunk, size)
        groups[-1].append(number)
        room -= size
    return groups


def _stay(module: nn.Module) -> Callable[..., nn.Module]:
    """In place of `_apply`, by which `.to` moves a module: what is frozen stays where it is."""
    def stay(*_: Any, **__: Any) -> nn.Module:
        return module
    return stay
