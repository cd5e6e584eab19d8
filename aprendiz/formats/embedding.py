"""Embedding files (textual inversion): one word's vectors, in every form that people have.

    .safetensors   {"emb_params": (V, D)} for one text encoder; {"clip_l": (V, 768), "clip_g": (V, 1280)} for SDXL
    .pt            AUTOMATIC1111's {"string_to_param": {"*": (V, D)}, "name", "step", ...}; ParameterDicts of old are read too
    .bin, .pt      {"<word>": (V, D)} or (D,), as diffusers and its forerunners wrote them
    .png           AUTOMATIC1111's picture with the same in its text chunk `sd-ti-embedding`

What is written is the first form, in float32, and the second where it is asked for, in the serialisation of torch before 1.6:
the only one that AUTOMATIC1111 reads from a torch of today. In hosts a word is called by its file's name. Pickles are opened by
torch's reader of plain weights, so one that holds code is refused. Shapes: V vectors, D width of a token.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..nets.embeddings import MOST
from . import container, recognise

if TYPE_CHECKING:
    from torch import Tensor

    from ..families import Family

ENDINGS = (".safetensors", ".pt", ".bin", ".png")
LARGEST = 64_000_000  # bytes: 75 vectors for the three encoders of SD3 are 2 MB, a picture around them a few
SIGNS = re.compile(r"[^\w .-]")
ALONE = "emb_params"
# What weights are put together with; the set stands in the ParameterDict of the oldest files.
HARMLESS = ("torch.", "collections.OrderedDict", "__builtin__.set", "builtins.set")


@dataclass(frozen=True)
class Embedding:
    """A word's vectors by text encoder, float32 (V, D), under the keys of the file's family; the name that calls it."""

    file: Path
    vectors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What calls it: the file's name."""
        return self.file.stem

    @property
    def count(self) -> int:
        """Vectors that the word stands for."""
        return len(next(iter(self.vectors.values())))

    @property
    def family(self) -> str | None:
        """The family it was made for, from its keys and widths; None where they do not tell."""
        return recognise.base_family(_shapes(self.vectors)) or recognise.family_by_metadata(self.metadata)

    @property
    def hash(self) -> str:
        """SHA-256 of the file, in hex; its first twelve digits are AUTOMATIC1111's `TI hashes`."""
        return container.file_hash(self.file)


def read(file: Path) -> Embedding:
    """Any embedding file. Raises ModelError, in one sentence, for all that is none."""
    file = Path(file)
    if not file.is_file():
        raise ModelError("There is no embedding file {file}. Check the path.", file=str(file), where=str(file))
    if file.suffix.lower() not in ENDINGS:
        raise ModelError("{file} is no embedding: these are {endings} files.", file=str(file), endings=", ".join(ENDINGS),
                         where=str(file))
    if file.stat().st_size > LARGEST:
        raise ModelError("{file} is no embedding: it has {size} MB, and embeddings have less than one.", file=str(file),
                         size=round(file.stat().st_size / 1e6), where=str(file))
    metadata: Mapping[str, str] = {}
    if file.suffix.lower() == ".safetensors":
        header = container.read_header(file)
        kind = recognise.kind(header.shapes)
        if kind not in ("textual_inversion", "unknown"):
            raise ModelError("{file} is {kind}, not an embedding. Name an embedding's file.", file=str(file),
                             kind=recognise.kind_name(kind), where=str(file))
        from safetensors.torch import load
        content, metadata = load(file.read_bytes()), header.metadata
    else:
        content = _read_picture(file) if file.suffix.lower() == ".png" else _read_pickle(file)
    return Embedding(file, _checked(file, _vectors(file, content)), metadata)


def fit(found: Embedding, family: Family, widths: Sequence[int]) -> list[Tensor]:
    """The vectors for each text encoder of a base of this family and these widths, in order. Raises ModelError."""
    keys = family.embedding_keys
    given = dict(found.vectors)
    if len(keys) == 1 and len(given) == 1:
        given = {keys[0]: next(iter(given.values()))}
    shown = {key: vectors.shape[1] for key, vectors in given.items()}
    if list(shown.items()) == list(zip(keys, widths)) or shown == dict(zip(keys, widths)):
        return [given[key] for key in keys]
    if found.family not in (None, family.name):
        raise ModelError("{file} is an embedding for {other}, and the base is {family}. Take one that was made for it, or "
                         "another base.", file=found.file.name, other=recognise.title(found.family), family=family.title,
                         where=str(found.file))
    raise ModelError("{file} does not fit the base: its vectors have {found} numbers, the base's {wanted}. Take an embedding "
                     "that was made for this base.", file=found.file.name, found=" + ".join(map(str, shown.values())),
                     wanted=" + ".join(map(str, widths)), where=str(found.file))


def check_name(name: str) -> None:
    """Raises ModelError where a file's name cannot be typed in a prompt."""
    sign = SIGNS.search(name)
    if sign or not name.strip():
        raise ModelError("The embedding's name '{name}' holds '{sign}', where prompts and hosts cut names. Rename the file: "
                         "letters, digits, dots, hyphens and underscores.", name=name, sign=sign[0] if sign else name)


def write(file: Path, vectors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A word as `.safetensors` in float32, read back and compared. Writes over a file of this name. Raises AprendizError."""
    import torch

    from .kohya import stored, write_tensors
    kept = {key: stored(tensor, torch.float32, key) for key, tensor in vectors.items()}
    write_tensors(file, kept, metadata, again=True)
    there = read(file).vectors
    if list(there) != sorted(kept) or not all(torch.equal(there[key], kept[key]) for key in kept):
        raise ModelError("{file} was written, but what was read back is something else ({what}). Check the disk, and save again.",
                         file=file.name, what=", ".join(there), where=str(file))
    return file


def write_pt(file: Path, vectors: Mapping[str, Tensor], step: int, base_name: str, base_sha256: str | None) -> Path:
    """The same as AUTOMATIC1111's `.pt`; for several text encoders the plain dictionary that it reads there."""
    import torch

    from .writing import write_whole
    kept = {key: tensor.detach().to("cpu", torch.float32).contiguous().clone() for key, tensor in vectors.items()}
    content: dict[str, Any] = dict(kept)
    if len(kept) == 1:
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": next(iter(kept.values()))}, "name": file.stem,
                   "step": step, "sd_checkpoint": (base_sha256 or "")[:10] or None, "sd_checkpoint_name": base_name}
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return write_whole(file, stream.getvalue())


def _shapes(vectors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in vectors.items()}


def _read_pickle(file: Path) -> Any:
    """What a pickle of plain weights holds. Raises ModelError for one with anything else in it."""
    import torch
    allowed: Any = contextlib.nullcontext()
    newer = hasattr(torch.serialization, "safe_globals")  # since 2.5; before, AUTOMATIC1111's oldest files are refused
    if newer:
        allowed = torch.serialization.safe_globals([torch.nn.ParameterDict])
    content = file.read_bytes()
    try:
        with allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wonders at pickles that torch did not write
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError,
            OSError) as error:
        called = _called(content)
        if foreign := next((name for name in called if not name.startswith(HARMLESS)), None):
            raise ModelError("{file} is a pickle that holds more than vectors ({what}), and such files can run code, so it was "
                             "not opened. Take its .safetensors version.", file=str(file), what=foreign,
                             where=str(file)) from None
        if not newer and any(name.endswith(".ParameterDict") for name in called):
            raise ModelError("{file} is of the oldest form of embedding, which PyTorch {version} cannot open without running "
                             "what stands in it; 2.5 can. Update PyTorch, or take the file's .safetensors version.",
                             file=str(file), version=torch.__version__.split("+")[0], where=str(file)) from None
        raise _unreadable(file) from error


def _called(content: bytes) -> list[str]:
    """What a pickle would call, such as 'os.system', in order. Nothing is run."""
    with contextlib.suppress(zipfile.BadZipFile, KeyError):
        archive = zipfile.ZipFile(io.BytesIO(content))
        content = archive.read(next((name for name in archive.namelist() if name.endswith("data.pkl")), ""))
    stream, words, called = io.BytesIO(content), [""], []
    with contextlib.suppress(ValueError, IndexError, UnicodeDecodeError):
        while stream.tell() < len(content):  # torch before 1.6 wrote several pickles, one after the other
            for code, told, _ in pickletools.genops(stream):
                words += [told] if isinstance(told, str) else []
                if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                    called.append(".".join(words[-2:]) if code.name == "STACK_GLOBAL" else str(told).replace(" ", "."))
    return called


def _read_picture(file: Path) -> Any:
    """What the text chunk of AUTOMATIC1111's embedding pictures holds."""
    import torch
    from PIL import Image

    def tensor(values: dict[str, Any]) -> Any:
        return torch.tensor(values["TORCHTENSOR"]) if "TORCHTENSOR" in values else values

    try:
        with Image.open(file) as picture:
            told = picture.info.get("sd-ti-embedding")
        if not isinstance(told, str):
            raise ModelError("{file} is a picture without an embedding in it.", file=str(file), where=str(file))
        return json.loads(base64.b64decode(told), object_hook=tensor)
    except (OSError, ValueError, TypeError, RecursionError, Image.DecompressionBombError) as error:
        raise _unreadable(file) from error


def _unreadable(file: Path) -> ModelError:
    return ModelError("{file} cannot be read as an embedding: it is damaged, or something else. Download or copy it again.",
                      file=str(file), where=str(file))


def _vectors(file: Path, content: Any) -> dict[str, Any]:
    """The tensors of a file by text encoder."""
    if not isinstance(content, Mapping):
        raise _unreadable(file)
    if "string_to_param" in content:
        inner = content["string_to_param"]
        # A ParameterDict that torch before 1.12 wrote keeps its tensors where modules do.
        inner = getattr(inner, "_parameters", inner)
        found = dict(inner) if isinstance(inner, Mapping) else {}
    else:
        found = {str(key): value for key, value in content.items() if hasattr(value, "shape")}
    if len(found) > 1 and not found.keys() <= {"clip_l", "clip_g", "t5xxl"}:
        raise ModelError("{file} holds several embeddings ({names}), and only files with one can be used.", file=str(file),
                         names=", ".join(list(found)[:5]), where=str(file))
    if not found:
        raise _unreadable(file)
    return found if len(found) > 1 or found.keys() <= {"clip_l", "clip_g"} else {ALONE: next(iter(found.values()))}


def _checked(file: Path, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Vectors (V, D) in float32, as many for each encoder, no more than a prompt holds, each a number."""
    import torch
    vectors: dict[str, Tensor] = {}
    for key, value in sorted(found.items()):
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or not value.is_floating_point() or value.ndim not in (1, 2) or not value.numel():
            raise ModelError("{file} is no embedding: {key} is no list of vectors.", file=str(file), key=key, where=str(file))
        vectors[key] = value.detach().float().reshape(-1, value.shape[-1]).clone()
    counts = {len(one) for one in vectors.values()}
    if len(counts) > 1:
        raise ModelError("{file} is damaged: it holds another number of vectors for each text encoder ({counts}).",
                         file=str(file), counts=", ".join(str(len(one)) for one in vectors.values()), where=str(file))
    if counts.pop() > MOST:
        raise ModelError("{file} holds {count} vectors, more than the {most} that one part of a prompt holds.", file=str(file),
                         count=len(next(iter(vectors.values()))), most=MOST, where=str(file))
    if not all(bool(torch.isfinite(one).all()) for one in vectors.values()):
        raise ModelError("{file} is damaged: some of its numbers are none.", file=str(file), where=str(file))
    return vectors
