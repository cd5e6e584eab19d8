"""What a step takes of the device's memory, before it takes it: counted from shapes, for any way of fitting it in.

Weights by their type; what is trained with its gradient, moments, average and working copy; activations by tracing the step
(`nets.footprint`); pictures and texts kept on the device; and a constant for what no tensor shows: the driver's context and the
kernels' workspace. All in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .data.loader import Batch
from .draws import Draws
from .families import PictureSize, Tensors
from .nets import eight_bit, footprint, offload, recompute
from .objectives import Noisy

if TYPE_CHECKING:
    from .families import Base
    from .methods import Method
    from .settings import Job

CONTEXT = {"cuda": 750_000_000, "xpu": 750_000_000, "mps": 750_000_000}  # bytes; none on a CPU
# Bytes of an optimizer's own state for each trained number; of Adafactor, which keeps next to nothing, an update's passing copy.
STATE = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "lion": 4, "adafactor": 4, "schedulefree": 8}


@dataclass(frozen=True)
class Choice:
    """How a step is fitted in.

    recomputed, streamed: numbers of pieces of the network (`recompute.pieces`); what is streamed is recomputed too. parts: into
    which a process's share of a batch is cut. eight_bit: the frozen layers of all pieces.
    """

    recomputed: tuple[int, ...] = ()
    parts: int = 1
    eight_bit: bool = False
    streamed: tuple[int, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Choice:
        """A choice from plain values."""
        return cls(tuple(values["recomputed"]), int(values["parts"]), bool(values["eight_bit"]), tuple(values["streamed"]))

    def values(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device at the height of a step."""

    weights: int
    activations: int
    trained: int
    kept: int
    constant: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.activations + self.trained + self.kept + self.constant


@dataclass(frozen=True)
class Work:
    """A step as far as memory is concerned.

    live: the VAE encodes in the step. pictures: of a process's share of a batch. size: (width, height) of the largest bucket, in
    pixels. state: the longest text state, or tokens where the text encoder is trained. kept: bytes of encoded pictures and texts,
    which stay on the device where they are less than a quarter of what is free.
    """

    job: Job
    base: Base
    method: Method
    device: torch.device
    live: bool = False
    pictures: int = 1
    size: tuple[int, int] = (0, 0)
    state: Tensors = Tensors()
    kept: int = 0

    def each(self, choice: Choice) -> int:
        """Pictures that go through the network together."""
        return -(-self.pictures // choice.parts)

    @property
    def working(self) -> torch.dtype:
        """The precision in which what is trained computes."""
        return torch.float32 if self.method.precise else self.base.dtype


class Need:
    """What a step takes under any choice. The base must be as it was loaded, nothing fitted in yet.

    kept: bytes of encoded pictures and texts on the device.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.kept = work, work.kept
        self._traced: dict[int, footprint.Footprint] = {}
        base = work.base
        self.pieces = recompute.pieces(base.family.blocks(base))
        self._frozen = [frozen_bytes(piece) for piece in self.pieces]
        self._saved = [eight_bit.saved(piece) for piece in self.pieces]
        self._outside = frozen_bytes(base.network) - sum(self._frozen)
        self._largest_layer = max((p.numel() * p.element_size() for piece in self.pieces for p in piece.parameters()), default=0)
        self._beside = 0
        parts = base.parts()
        if work.method.trains_text_encoder:
            self._beside = sum(frozen_bytes(module) for name, module in parts.items() if name != "network")
        elif work.live and base.vae is not None:
            self._beside = frozen_bytes(base.vae)
        if work.live:
            self._beside += passing_vae(base, work.size, decode=False)

    def of(self, choice: Choice) -> Estimate:
        """The estimate. Raises RuntimeError or NotImplementedError where the step cannot be traced."""
        work = self.work
        sizes = [frozen - (saved if choice.eight_bit else 0) for frozen, saved in zip(self._frozen, self._saved)]
        streamed = set(choice.streamed)
        ring = min(offload.SLOTS, len(streamed)) * max((sizes[number] for number in streamed), default=0)
        weights = self._outside + self._beside + ring + sum(size for number, size in enumerate(sizes) if number not in streamed)
        activations = self.trace(work.each(choice)).peak(choice.recomputed)
        if choice.eight_bit:
            activations += 2 * self._largest_layer  # a layer's weight as it is used, and the next one's
        return Estimate(weights, activations, self.trained(), self.kept, CONTEXT.get(work.device.type, 0))

    def trained(self) -> int:
        """Bytes of masters, gradients, working copies, moments and the average."""
        count = sum(p.numel() for part in self.work.method.parts() for p in part.tensors.values())
        each = 8 + STATE[self.work.job.optimizer.optimizer]
        if self.work.working != torch.float32:
            each += 2 * self.work.working.itemsize
        return count * (each + (4 if self.work.job.training.ema_decay else 0))

    def streamed_bytes(self, choice: Choice) -> int:
        """Bytes copied to the device in a step: forward and backward of each part of a batch."""
        sizes = [frozen - (saved if choice.eight_bit else 0) for frozen, saved in zip(self._frozen, self._saved)]
        return 2 * choice.parts * sum(sizes[number] for number in choice.streamed)

    def heaviest(self) -> list[int]:
        """The pieces, the heaviest first."""
        return sorted(range(len(self.pieces)), key=lambda number: self._frozen[number], reverse=True)

    def trace(self, pictures: int) -> footprint.Footprint:
        """The step's footprint with so many pictures; traced once."""
        if pictures not in self._traced:
            modules = [*self.work.base.parts().values(), *self.work.method.modules()]
            self._traced[pictures] = footprint.trace(step(self.work, pictures), modules, self.pieces, self.work.working)
        return self._traced[pictures]


def step(work: Work, pictures: int, where: str = "meta") -> Callable[[], Tensor]:
    """A step's forward, to a loss: a batch of so many pictures of the largest size, of zeros (`where`: on which device)."""
    base, family = work.base, work.base.family
    sizes = (PictureSize(work.size, (0, 0), work.size),) * pictures

    def forward() -> Tensor:
        latents = torch.zeros(pictures, *family.latent_shape(base, *work.size), device=where)
        each = torch.zeros(pictures, device=where)
        shown = work.method.conditions(work.job) is not None
        condition = torch.zeros(pictures, 3, work.size[1], work.size[0], device=latents.device) if shown else None
        conditioning = tokens = None
        if work.method.trains_text_encoder:
            joined = {name: torch.cat([tensor] * pictures) for name, tensor in work.state.tensors().items()}
            tokens = replace(work.state, **joined).to(where)
        else:
            conditioning = family.collate([work.state] * pictures, sizes).to(where)
        batch = Batch(latents, latents, latents[..., :1, :1], each, conditioning, tokens, sizes, None, each, ("",) * pictures,
                      Draws(0), 0, tuple(range(pictures)), condition)
        noisy = Noisy(latents, latents, each if base.prediction == "flow" else each.long(), each, each, each)
        return (work.method.predict(noisy, batch).float() - latents).square().mean()

    return forward


def passing_vae(base: Base, size: tuple[int, int], decode: bool) -> int:
    """Bytes that the VAE takes besides its weights for one picture (width, height); 0 without a VAE."""
    if base.vae is None:
        return 0
    if decode:
        latents = (1, *base.family.latent_shape(base, *size))
        return footprint.passing(lambda: base.family.decode(base, torch.empty(latents, device="meta")), [base.vae])
    shape = (1, 3, size[1], size[0])
    return footprint.passing(lambda: base.family.encode_images(base, torch.empty(shape, device="meta"))[0], [base.vae])


def heavy(states: Tensors) -> int:
    """Bytes of a bundle of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in states.tensors().values())


def frozen_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that are not trained, and of the buffers."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*frozen, *module.buffers()))


def gb(size: float) -> str:
    """Bytes as people write them: '7.2'."""
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{math.ceil(size / 1e7) / 100:.2f}"
