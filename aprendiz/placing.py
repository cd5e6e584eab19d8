"""Encoding and drawing: what they need comes to the device as far as it fits there, and leaves it afterwards.

Where the device is the CPU itself, what leaves it leaves memory, and is read from the base's file when it is wanted again.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from . import devices
from .estimate import frozen_bytes, passing_vae
from .nets import recompute
from .nets.offload import Stream

if TYPE_CHECKING:
    from .families import Base
    from .run import Run

T = TypeVar("T")

SPARE = 500_000_000  # bytes that are left free


def encoded(base: Base, parts: Sequence[str], device: torch.device, run: Run, work: Callable[[], T]) -> T:
    """Do work with these parts of the base on the device; on the CPU where they do not fit. Afterwards they leave the device."""
    modules = [module for name, module in base.parts().items() if name in parts]

    def move(where: torch.device | str) -> None:
        for module in modules:
            module.to(where)
        free_unused(device)

    short = False
    try:
        with devices.naming_shortage():
            move(device)
            return work()
    except devices.OutOfMemory:
        if device.type == "cpu":
            raise
        short = True
    finally:
        if not short:
            move("cpu")
            if device.type == "cpu":
                rest(base, parts)
    # Outside of the handler, what the error holds is free again.
    move("cpu")
    run.say("Out of memory: pictures and texts are encoded on the CPU, slower. Nothing is lost.", warning=True)
    return work()


def rest(base: Base, parts: Sequence[str]) -> None:
    """Let the weights of these parts go; of those alone that `wake` can read again."""
    resting = [name for name in parts if name in base.refill]
    for name in resting:
        base.parts()[name].to("meta")
    if resting:
        devices.release(torch.device("cpu"))


def rests(module: torch.nn.Module) -> bool:
    """Whether a part's weights were let go."""
    return next(module.parameters()).is_meta


def wake(base: Base) -> list[str]:
    """Read again what rests; its names. Raises ModelError where the base's file cannot be read any more."""
    resting = [name for name, module in base.parts().items() if rests(module)]
    if resting:
        devices.release(torch.device("cpu"))  # what the last step left makes room for them
    for name in resting:
        base.refill[name]()
    return resting


@contextlib.contextmanager
def drawing(base: Base, device: torch.device, size: tuple[int, int], free: int | None = None) -> Iterator[list[str]]:
    """While pictures of (width, height) are drawn: the VAE and the text encoders on the device as far as they fit there.

    Yields the names of those left on the CPU. free: bytes; None asks the device. Raises ModelError as `wake`.
    """
    resting = wake(base)
    moved: list[torch.nn.Module] = []
    left: list[str] = []
    room = devices.free_bytes(device) if free is None else free
    for name, module in sorted(base.parts().items(), reverse=True):  # the VAE first: it is the slower one on a CPU
        if name == "network" or next(module.parameters()).device.type == device.type:
            continue
        needs = frozen_bytes(module) + (passing_vae(base, size, decode=True) if name == "vae" else 0)
        if room is not None and needs + SPARE > room:
            left.append(name)
            continue
        moved.append(module.to(device))
        room = None if room is None else room - needs
    try:
        yield left
    finally:
        for module in moved:
            module.to("cpu")
        rest(base, resting)
        if moved:
            devices.release(device)


@contextlib.contextmanager
def drawing_alone(base: Base, device: torch.device, size: tuple[int, int], free: int | None = None) -> Iterator[None]:
    """While pictures are drawn before anything is taught: the network too, whole or streamed; all of it on the CPU afterwards."""
    free = devices.free_bytes(device) if free is None else free
    stream = None
    if device.type != "cpu" and free is not None and frozen_bytes(base.network) + 2 * SPARE > free:
        stream = Stream(recompute.pieces(base.family.blocks(base)), device)
    base.network.to(device)
    try:
        with drawing(base, device, size):
            yield
    finally:
        if stream is not None:
            stream.close()
        base.network.to("cpu")
        free_unused(device)


def free_unused(device: torch.device) -> None:
    """Give back what nothing uses any more; a CPU's memory needs no asking."""
    if device.type != "cpu":
        gc.collect()
        devices.release(device)
