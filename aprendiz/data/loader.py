"""Batches: which pictures a step sees, and everything about them that the step needs.

What a step sees is a function of (settings, dataset, step), so resuming in the middle of an epoch is asking for the next
step. All pictures of a batch are of one bucket, batches are always full, and an epoch has the same number of batches each
time. Shapes: B batch, C latent channels, H W latent size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..draws import Draws
from ..families import PictureSize, Tensors
from .cache import Cut, Encoded

if TYPE_CHECKING:
    from ..families import Base
    from .folder import Picture
    from .maps import Maps


@dataclass(frozen=True)
class Batch:
    """What one optimizer step (or a micro-batch of it) is made of.

    noise_BCHW: standard normal. time_B: uniform in [0, 1), from which the objective makes timesteps. conditioning: text states,
    or None where `tokens` are to be encoded with gradients. mask_B1HW: weight of each latent pixel. weight_B: of each sample in
    the loss. names: of the pictures. samples: the samples' places in the whole batch, to which every draw belongs.
    condition_B3HW: condition pictures in [0, 1], -1 where hidden, in pixels; None where the method has none.
    """

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    offset_BC11: Tensor
    time_B: Tensor
    conditioning: Tensors | None
    tokens: Tensors | None
    sizes: tuple[PictureSize, ...]
    mask_B1HW: Tensor | None
    weight_B: Tensor
    names: tuple[str, ...]
    draws: Draws
    step: int
    samples: tuple[int, ...]
    condition_B3HW: Tensor | None = None

    def draw(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers (B, *shape) of a method's own."""
        return torch.stack([self.draws.uniform(purpose, self.step, sample, shape) for sample in self.samples])

    def rows(self, start: int, stop: int) -> Batch:
        """A micro-batch."""
        cut = slice(start, stop)
        return replace(
            self, latents_BCHW=self.latents_BCHW[cut], noise_BCHW=self.noise_BCHW[cut], offset_BC11=self.offset_BC11[cut],
                       time_B=self.time_B[cut],
            conditioning=self.conditioning and self.conditioning.rows(start, stop), tokens=self.tokens
                       and self.tokens.rows(start, stop),
            sizes=self.sizes[cut], mask_B1HW=None if self.mask_B1HW is None else self.mask_B1HW[cut], weight_B=self.weight_B[cut],
            names=self.names[cut], samples=self.samples[cut],
            condition_B3HW=None if self.condition_B3HW is None else self.condition_B3HW[cut])


@dataclass(frozen=True)
class Example:
    """A picture as the loader offers it: its cuts (places in the store), its captions (places among the texts)."""

    picture: Picture
    bucket: tuple[int, int]
    cuts: tuple[int, ...]
    texts: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """How a run goes through its examples: full batches of one bucket, `batches` to an epoch."""

    examples: Sequence[Example]
    batch_size: int
    draws: Draws

    @functools.cached_property
    def by_bucket(self) -> dict[tuple[int, int], list[int]]:
        """Places of the examples of each bucket, repeated as they are to be."""
        buckets: dict[tuple[int, int], list[int]] = {}
        for i, example in enumerate(self.examples):
            buckets.setdefault(example.bucket, []).extend([i] * example.repeats)
        return dict(sorted(buckets.items()))

    @functools.cached_property
    def batches(self) -> int:
        """Batches to an epoch; a bucket's last one is filled up with more of the same bucket."""
        return sum(-(-len(members) // self.batch_size) for members in self.by_bucket.values())

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a plan lives as long as its run
    def epoch(self, number: int) -> list[list[int]]:
        """The batches of an epoch, shuffled within buckets and among each other."""
        made = []
        for place, members in enumerate(self.by_bucket.values()):
            order = self.draws.choices("order", number, place)
            shuffled = order.sample(members, len(members))
            while len(shuffled) % self.batch_size:
                shuffled.append(order.choice(members))
            made += [shuffled[i:i + self.batch_size] for i in range(0, len(shuffled), self.batch_size)]
        self.draws.choices("batches", number, 0).shuffle(made)
        return made

    def at(self, step: int) -> list[int]:
        """The examples that step number `step` (from 0) sees."""
        return self.epoch(step // self.batches)[step % self.batches]


class Loader:
    """Hands out the batch of any step, the next one prepared while the present one is trained."""

    def __init__(self, base: Base, plan: Plan, prior: Plan | None, store: Store, caption_dropout: float,
                 prior_weight: float) -> None:
        self.base, self.plan, self.prior, self.store = base, plan, prior, store
        self.caption_dropout, self.prior_weight = caption_dropout, prior_weight
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="aprendiz-batches")
        self._next: tuple[tuple[int, range | None], Future[Batch]] | None = None

    def batch(self, step: int, part: range | None = None) -> Batch:
        """The batch of a step (of its samples in `part`, where several processes share it), on the network's device."""
        wanted = (step, part)
        ready = self._next[1].result() if self._next and self._next[0] == wanted else self._make(step, part)
        self._next = ((step + 1, part), self._ahead.submit(self._make, step + 1, part))
        return ready

    def forget(self) -> None:
        """Wait for the batch that is being prepared, and drop it: the base is about to move."""
        if self._next is not None:
            self._next[1].exception()
            self._next = None

    def close(self) -> None:
        """Stop preparing."""
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._next = None

    @property
    def samples(self) -> int:
        """Samples in a whole batch, the base's own pictures counted."""
        return self.plan.batch_size + (self.prior.batch_size if self.prior else 0)

    def _members(self, step: int) -> list[tuple[Example, float]]:
        """The examples of a whole batch with their weights in the loss."""
        mine = [self.plan.examples[i] for i in self.plan.at(step)]
        members = [(example, 1.0) for example in mine]
        if self.prior:
            same = self.prior.by_bucket[mine[0].bucket]
            picks = [self.prior.draws.choices("prior", step, k).choice(same) for k in range(self.prior.batch_size)]
            members += [(self.prior.examples[i], self.prior_weight) for i in picks]
        return members

    def _make(self, step: int, part: range | None) -> Batch:
        draws, members = self.plan.draws, self._members(step)
        samples = tuple(part if part is not None else range(len(members)))
        members = [members[i] for i in samples]
        cuts, texts = [], []
        for sample, (example, _) in zip(samples, members):
            pick = draws.choices("look", step, sample)
            cuts.append(pick.choice(example.cuts))
            texts.append(pick.choice(example.texts))
            if pick.random() < self.caption_dropout:
                texts[-1] = self.store.empty
        latents, mask, sizes, condition = self.store.pictures(cuts, draws, step, samples)
        shape = tuple(latents.shape[1:])
        device = self.base.device
        conditioning = self.store.conditioning(texts, sizes)
        return Batch(
            latents_BCHW=latents, noise_BCHW=torch.stack([draws.normal("noise", step, s, shape) for s in samples]).to(device,
                                                                                                                      non_blocking=True),
            offset_BC11=torch.stack([draws.normal("offset", step, s, (shape[0], 1, 1)) for s in samples]).to(device,
                                                                                                             non_blocking=True),
            time_B=torch.stack([draws.uniform("time", step, s, ()) for s in samples]).to(device, non_blocking=True),
            conditioning=conditioning, tokens=self.store.tokens(texts), sizes=sizes, mask_B1HW=mask,
            weight_B=torch.tensor([weight for _, weight in members]).to(device, non_blocking=True),
            names=tuple(example.picture.name for example, _ in members), draws=draws, step=step, samples=samples,
            condition_B3HW=condition)


class Store:
    """The encoded pictures and texts of a run, in memory, on the device where they fit.

    `states` are text states, or tokens where the text encoder is trained (`trained`). `encode` is asked for the latents of cuts
    that are encoded anew each step; `encoded` then holds none. `empty` is the place of the empty caption. `maps`: their
    condition pictures, where wanted.
    """

    def __init__(self, base: Base, cuts: Sequence[Cut], encoded: Sequence[Encoded] | None, states: Sequence[Tensors], empty: int,
                 trained: bool = False, encode: Callable[[list[Cut]], list[Encoded]] | None = None,
                 maps: Maps | None = None) -> None:
        self.base, self.cuts, self.empty, self.trained, self.maps = base, cuts, empty, trained, maps
        self._encode = encode
        self._encoded = list(encoded) if encoded is not None else None
        size = sum(t.numel() * t.element_size() for state in states for t in state.tensors().values())
        size += sum(e.mean_CHW.numel() * 4 for e in self._encoded or [])
        self._place = base.device if size < _free_bytes(base.device) / 4 else torch.device("cpu")
        self._states = [state.to(self._place) for state in states]
        if self._encoded is not None:
            self._encoded = [replace(e, mean_CHW=e.mean_CHW.to(self._place)) for e in self._encoded]

    def pictures(self, cuts: Sequence[int], draws: Draws, step: int,
                 samples: Sequence[int]) -> tuple[Tensor, Tensor | None, tuple[PictureSize, ...], Tensor | None]:
        """Of cuts of one bucket: latents (B, C, H, W), loss weights (B, 1, H, W) if there are any, sizes, condition pictures."""
        places = [self.cuts[i] for i in cuts]
        if self._encoded is not None:
            chosen = [self._encoded[i] for i in cuts]
        else:
            assert self._encode is not None
            spots = [draws.choices("crop", step, sample) for sample in samples]
            places = [replace(cut, at=(spot.random(), spot.random())) for cut, spot in zip(places, spots)]
            chosen = self._encode(places)
        device = self.base.device
        condition = None
        if self.maps is not None:
            condition = self.maps.batch(places, keep=self._encoded is not None).to(device, non_blocking=True)
        values = torch.stack([e.mean_CHW for e in chosen]).to(device, non_blocking=True)
        if chosen[0].std_CHW is not None:
            drawn = [e.std_CHW * draws.normal("latents", step, s, tuple(e.mean_CHW.shape)) for e, s in zip(chosen, samples)
                     if e.std_CHW is not None]
            values = values + torch.stack(drawn).to(device, non_blocking=True)
        mask = None
        if any(e.weight_1HW is not None for e in chosen):
            whole = torch.ones(1, *values.shape[-2:])
            mask = torch.stack([whole if e.weight_1HW is None else e.weight_1HW for e in chosen]).to(device, non_blocking=True)
        return values, mask, tuple(e.size for e in chosen), condition

    def conditioning(self, texts: Sequence[int], sizes: Sequence[PictureSize]) -> Tensors | None:
        """One batch of text states, or None where they are computed in the step."""
        if self.trained:
            return None
        return self.base.family.collate([self._states[i] for i in texts], sizes).to(self.base.device, non_blocking=True)

    def tokens(self, texts: Sequence[int]) -> Tensors | None:
        """One batch of tokens, all of the same number of chunks, or None where text states are cached."""
        if not self.trained:
            return None
        chosen = [self._states[i] for i in texts]
        joined = {name: torch.cat([state.tensors()[name] for state in chosen]) for name in chosen[0].tensors()}
        return replace(chosen[0], **joined)


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float("inf")
