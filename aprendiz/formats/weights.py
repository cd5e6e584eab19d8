"""Tensors out of `.safetensors` files and into them, one at a time and in memory of their own.

Nothing is mapped: what is read is read once, so the memory that loading takes is the tensors in their target precision and one
more, and Windows may replace the file meanwhile, which is seen when more of it is read. A model split over several files
(diffusers' `.index.json`) reads as one. "Scaled" fp8 files keep a factor beside each matrix (`scale_weight`, in newer ones
`weight_scale`, as ComfyUI writes them): it is multiplied in as the matrix is read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..files import disk_errors, move_into_place, temporary_name
from .container import Header, Tensor, read_header

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
Place = tuple[Path, Header, Tensor]
STEM = "diffusion_pytorch_model"  # of the weights of diffusers' modules; transformers' are called "model"
VOCABULARY = "token_embedding"  # in the names of a text encoder's vectors
FACTORS = (".scale_weight", ".weight_scale")  # what a matrix of a scaled file is to be multiplied by
ASIDE = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")  # what else such files hold, for hosts
_UNREAD: ContextVar[bool] = ContextVar("unread", default=False)
VARIANTS = ("", ".fp16", ".non_ema", ".fp32", ".bf16")  # of diffusers' file names, the usual one first


@dataclass(frozen=True)
class Weights:
    """Named tensors in one or more files. places: name -> (file, its header, what that says of the tensor).

    factors: the same of what the matrices of a scaled file are multiplied by, by the matrix's name.
    """

    file: Path
    places: Mapping[str, Place]
    metadata: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, Place] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Shape by name."""
        return {name: tensor.shape for name, (_, _, tensor) in self.places.items()}

    def under(self, *prefixes: str) -> Weights:
        """The tensors whose names begin with one of these, without it; the first prefix that any has counts."""
        for prefix in prefixes:
            found, factors = ({name[len(prefix):]: place for name, place in of.items() if name.startswith(prefix)}
                              for of in (self.places, self.factors))
            if found:
                return Weights(self.file, found, self.metadata, factors)
        return Weights(self.file, {}, self.metadata)

    def read(self, name: str) -> torch.Tensor:
        """One tensor in the precision of the file, scaled ones in float32. Raises ModelError where it cannot be had."""
        unread = _UNREAD.get() and VOCABULARY not in name
        values = self._read(self.places[name], unread)
        if name not in self.factors or unread:
            return values
        factor = self._read(self.factors[name], False).float()
        if factor.numel() != 1 and factor.shape != (len(values), 1):  # one for all, or one a row
            raise ModelError("{file} is packed in a form that is not read: {name} has factors of the shape {shape}. Take the "
                             "model in fp16, bf16 or fp32.", file=self.file.name, name=name, shape=list(factor.shape))
        return values.float() * factor.reshape(-1, *[1] * (values.dim() - 1))

    def _read(self, place: Place, unread: bool) -> torch.Tensor:
        import torch
        file, header, tensor = place
        dtype = _dtypes().get(tensor.dtype)
        if dtype is None:
            raise ModelError("{file} holds numbers of the kind {kind}, which are not read. Take the model in fp16, bf16 or fp32.",
                             file=file.name, kind=tensor.dtype)
        if unread:
            return torch.empty(tensor.shape, dtype=dtype, device="meta")
        values = torch.empty(tensor.shape, dtype=dtype)
        if values.numel():
            try:
                with file.open("rb", buffering=0) as opened:
                    _check_same(os.fstat(opened.fileno()), header, file)
                    opened.seek(header.data + tensor.start)
                    _fill(opened, memoryview(values.reshape(-1).view(torch.uint8).numpy()), file)
            except OSError as error:
                raise ModelError("{file} cannot be read: {reason}. Is it on a drive that is still there?", file=str(file),
                                 reason=error.strerror or str(error)) from error
        return values


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """While tensors come without their numbers, on the meta device: what a model takes can be told from its headers.

    Vocabularies are read all the same: they are small, and methods begin from their rows.
    """
    before = _UNREAD.set(True)
    try:
        yield
    finally:
        _UNREAD.reset(before)


def _check_same(now: os.stat_result, header: Header, file: Path) -> None:
    if (now.st_size, now.st_mtime_ns) != (header.size, header.changed):
        raise ModelError("{file} was replaced while it was in use. Leave a model as it is until what runs with it has ended.",
                         file=str(file), where=str(file))


def _fill(opened: object, buffer: memoryview, file: Path) -> None:
    done = 0
    while done < len(buffer):
        count = opened.readinto(buffer[done:done + (1 << 30)])  # type: ignore[attr-defined]  # Linux reads at most 2 GB at once
        if not count:
            raise ModelError("{file} ended while it was read. Is it being written or copied? Try again.", file=str(file))
        done += count


def _dtypes() -> dict[str, torch.dtype]:
    import torch
    known = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
             "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
             "U8": "uint8", "BOOL": "bool"}
    return {name: getattr(torch, dtype) for name, dtype in known.items() if hasattr(torch, dtype)}


def open_weights(file: Path) -> Weights:
    """What is in one file. Raises ModelError where it is no readable `.safetensors` file."""
    header = read_header(file)
    return _apart(file, _places(file, header), header.metadata)


def open_folder(folder: Path, stem: str) -> Weights | None:
    """The weights of one part of a diffusers folder (`diffusion_pytorch_model`, `model`), whole or in several files.

    None if there are none. Raises ModelError where there are only pickles, or where a file is damaged.
    """
    for variant in VARIANTS:
        file = folder / f"{stem}{variant}.safetensors"
        if file.is_file():
            return open_weights(file)
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _open_parts(index)
    pickles = sorted([*folder.glob(f"{stem}*.bin"), *folder.glob("pytorch_model*.bin")])
    if pickles:
        read_header(pickles[0])  # says what it is, and the remedy
        raise ModelError("{file} is no .safetensors file: it does not begin like one. Name one that is, or download it again.",
                         file=str(pickles[0]), where=str(pickles[0]))
    return None


def _open_parts(index: Path) -> Weights:
    names: Iterable[str] = sorted(set(read_json(index).get("weight_map", {}).values()))
    places: dict[str, Place] = {}
    for name in names:
        file = index.parent / name
        places |= _places(file, read_header(file))
    return _apart(index, places, {})


def _places(file: Path, header: Header) -> dict[str, Place]:
    return {name: (file, header, tensor) for name, tensor in header.tensors.items()}


def _apart(file: Path, places: Mapping[str, Place], metadata: Mapping[str, str]) -> Weights:
    """The factors of a scaled file told apart from its tensors."""
    factors = {name.removesuffix(end) + ".weight": place
               for name, place in places.items() for end in FACTORS if name.endswith(end)}
    if not factors:
        return Weights(file, places, metadata)
    return Weights(file, {name: place for name, place in places.items() if not name.endswith((*FACTORS, *ASIDE))}, metadata,
                   {name: place for name, place in factors.items() if name in places})


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file without a second copy of it in memory, whole or not at all. Raises RunError."""
    import torch
    kinds = {dtype: name for name, dtype in _dtypes().items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    temporary = temporary_name(file)
    with disk_errors(file):
        try:
            with temporary.open("wb") as opened:
                opened.write(len(text).to_bytes(8, "little") + text)
                for tensor in tensors.values():
                    opened.write(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
                opened.flush()
                os.fsync(opened.fileno())
            move_into_place(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(file: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON file's object. Raises ModelError where it cannot be read; `missing` stands for a file that is not there."""
    if missing is not None and not file.is_file():
        return missing
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("{file} cannot be read: {reason}. Download the model again.",
                         file=str(file), reason=str(error), where=str(file)) from error
    return content if isinstance(content, dict) else {}
