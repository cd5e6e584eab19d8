"""What is encoded once: latents of every picture as it is cropped and mirrored, text states of every caption.

Files are safetensors under `.cache/`, each named by the hash of everything it depends on: the picture's bytes, how it is
cut, the encoder's weights, our version of the encoding. Runs share them; an interrupted fill leaves only whole files; the
oldest go when the folder grows past its bound. Shapes: N entries, C latent channels, H W latent size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from ..families import PictureSize, Tensors
from ..files import write_atomically
from .pictures import fit, placed, read

if TYPE_CHECKING:
    from ..draws import Draws
    from ..families import Base
    from ..settings import DataSettings
    from .folder import Picture

ENCODING = 2  # raised when the same inputs would encode differently
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cut:
    """One way in which a picture becomes a training example: bucket (width, height), where the crop lies, mirrored or not.

    resize: brought to the bucket's size; otherwise only cut to it.
    """

    picture: Picture
    bucket: tuple[int, int]
    at: tuple[float, float] = (0.5, 0.5)
    flip: bool = False
    resize: bool = True


@dataclass(frozen=True)
class Encoded:
    """Latents of one cut: their mean, their spread where latents are sampled, and the loss weight of each latent pixel."""

    mean_CHW: Tensor
    std_CHW: Tensor | None
    weight_1HW: Tensor | None
    size: PictureSize


class Cache:
    """The folder of encoded pictures and captions, bounded in size; `folder` None keeps nothing on disk."""

    def __init__(self, folder: Path | None, size_gb: float = 20.0) -> None:
        self.folder = folder
        self.size_gb = size_gb
        self.hits = 0
        self.made = 0

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, or None where they are not there or not whole."""
        if self.folder is None or not (file := self._file(key)).is_file():
            return None
        try:
            tensors = load(file.read_bytes())  # not mapped: Windows lets nobody replace or remove a file that is
            os.utime(file)
        except Exception as broken:  # safetensors raises its own Rust errors; a file that does not read is simply made again
            if not isinstance(broken, OSError) and type(broken).__module__.split(".")[0] not in ("safetensors",
                                                                                                 "safetensors_rust"):
                raise
            return None
        self.hits += 1
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under a key; whole or not at all."""
        self.made += 1
        if self.folder is not None:
            self._file(key).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(key), save({name: t.contiguous().cpu() for name, t in tensors.items()}))

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def trim(self) -> None:
        """Let the files that were used longest ago go until the folder is within its bound."""
        if self.folder is None or not self.folder.is_dir():
            return
        files = []
        for file in self.folder.glob("*/*.safetensors"):
            with suppress(OSError):  # another run has just trimmed it
                stat = file.stat()
                files.append((stat.st_mtime, stat.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files, key=lambda entry: entry[0]):
            if total <= self.size_gb * 1e9:
                return
            with suppress(OSError):  # another run is reading it, which Windows heeds; it goes another time
                file.unlink(missing_ok=True)
                total -= size


def key_of(*parts: object) -> str:
    """The hash of everything that an entry depends on."""
    return hashlib.sha256("\n".join(map(str, (ENCODING, *parts))).encode()).hexdigest()[:40]


def fingerprint(module: nn.Module) -> str:
    """Identity of a module's weights: names, shapes, and values evenly spread over every tensor (1,024 of each)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 1024)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:24]


def encode_cuts(base: Base, cuts: Sequence[Cut], settings: DataSettings, cache: Cache, progress: Progress) -> list[Encoded]:
    """Every cut's latents, from the cache or encoded now, a few of one bucket at a time."""
    assert base.vae is not None
    vae = fingerprint(base.vae)
    keys = [key_of("latents", base.family.name, vae, _look(cut, settings)) for cut in cuts]
    found: dict[int, Encoded] = {}
    missing: list[int] = []
    for i, key in enumerate(keys):
        tensors = cache.get(key)
        if tensors is None or (settings.draws_latents and "std" not in tensors):
            missing.append(i)
        else:
            found[i] = _unpack(tensors)
    progress(len(found), len(cuts))
    for group in _groups(missing, cuts):
        for i, encoded in zip(group, encode_now(base, [cuts[i] for i in group], settings)):
            cache.put(keys[i], _pack(encoded))
            found[i] = encoded
        progress(len(found), len(cuts))
    return [found[i] for i in range(len(cuts))]


def drawn_once(encoded: Sequence[Encoded], draws: Draws) -> list[Encoded]:
    """Of each cut one draw of its latents' distribution in place of the mean, the same all through a run."""
    drawn = []
    for i, one in enumerate(encoded):
        assert one.std_CHW is not None
        noise_CHW = draws.normal("latents", 0, i, tuple(one.std_CHW.shape))
        drawn.append(replace(one, mean_CHW=one.mean_CHW + one.std_CHW * noise_CHW, std_CHW=None))
    return drawn


def encode_now(base: Base, cuts: Sequence[Cut], settings: DataSettings) -> list[Encoded]:
    """Read, cut and encode pictures of one bucket."""
    pixels, weights, sizes = zip(*(_prepare(cut, settings) for cut in cuts))
    vae = next(base.parts()["vae"].parameters())
    with torch.no_grad():
        mean_BCHW, std_BCHW = base.family.encode_images(base, torch.stack(pixels).to(vae.device))
    mean_BCHW, std_BCHW = mean_BCHW.float().cpu(), std_BCHW.float().cpu()
    return [Encoded(mean_BCHW[i], std_BCHW[i] if settings.draws_latents else None, _shrink(weights[i], mean_BCHW[i]), sizes[i])
            for i in range(len(cuts))]


def _prepare(cut: Cut, settings: DataSettings) -> tuple[Tensor, Tensor | None, PictureSize]:
    """Pixels (3, H, W) in [-1, 1] and weights (1, H, W) in [0, 1] of a cut, and where it lies in the picture as mirrored."""
    rgb, weight = read(cut.picture, settings)
    rgb, weight, size = fit(rgb, weight, cut.bucket, settings.crop, cut.at, cut.resize)
    pixels = torch.from_numpy(rgb).permute(2, 0, 1).float() / 127.5 - 1
    weight_1HW = None if weight is None else torch.from_numpy(weight)[None].float() / 255
    if cut.flip:
        pixels = pixels.flip(-1)
        weight_1HW = None if weight_1HW is None else weight_1HW.flip(-1)
        covering, (_, top, right, _) = placed(size.original, cut.bucket, settings.crop, cut.at, cut.resize)
        size = replace(size, crop=(covering[0] - right, top))
    return pixels, weight_1HW, size


def _shrink(weight_1HW: Tensor | None, latents_CHW: Tensor) -> Tensor | None:
    """Pixel weights as weights of latent pixels (mean over the area that each stands for)."""
    return None if weight_1HW is None else F.adaptive_avg_pool2d(weight_1HW, (latents_CHW.shape[-2], latents_CHW.shape[-1]))


def _look(cut: Cut, settings: DataSettings) -> str:
    """Everything about a cut and the settings that changes its pixels, in one line."""
    return repr((cut.picture.digest, cut.picture.mask_digest, cut.bucket, settings.crop, cut.at, cut.flip, settings.transparency,
                 settings.background, *(() if cut.resize else ("own size",))))


def _groups(indices: Iterable[int], cuts: Sequence[Cut], size: int = 4) -> list[list[int]]:
    """Indices in groups of at most `size` of one bucket."""
    by_bucket: dict[tuple[int, int], list[int]] = {}
    for i in indices:
        by_bucket.setdefault(cuts[i].bucket, []).append(i)
    return [group[k:k + size] for group in by_bucket.values() for k in range(0, len(group), size)]


def _pack(encoded: Encoded) -> dict[str, Tensor]:
    size = encoded.size
    tensors = {"mean": encoded.mean_CHW, "size": torch.tensor([*size.original, *size.crop, *size.target], dtype=torch.int64)}
    tensors |= {"std": encoded.std_CHW} if encoded.std_CHW is not None else {}
    return tensors | ({"weight": encoded.weight_1HW} if encoded.weight_1HW is not None else {})


def _unpack(tensors: dict[str, Tensor]) -> Encoded:
    n = [int(v) for v in tensors["size"]]
    size = PictureSize((n[0], n[1]), (n[2], n[3]), (n[4], n[5]))
    return Encoded(tensors["mean"], tensors.get("std"), tensors.get("weight"), size)


def encode_texts(base: Base, texts: Sequence[str], max_tokens: int, cache: Cache, progress: Progress) -> list[Tensors]:
    """Text states of every text, a batch of one each, from the cache or encoded now."""
    encoders = "".join(fingerprint(module) for module in base.text_encoders)
    states: list[Tensors] = []
    for text in texts:
        key = key_of("text", base.family.name, encoders, base.clip_skip, max_tokens, text)
        tensors = cache.get(key)
        if tensors is None:
            with torch.no_grad():
                state = base.family.encode_tokens(base, base.family.tokenize(base, [text], max_tokens, weighted=False)).to("cpu")
            cache.put(key, state.tensors())
        else:
            state = base.family.Conditioning(**tensors)
        states.append(state)
        progress(len(states), len(texts))
    return states
