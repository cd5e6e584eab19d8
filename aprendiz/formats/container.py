"""A `.safetensors` file as bytes: its header checked and read, its tensors hashed, its metadata exchanged.

Layout: 8 bytes, the header's length n, little-endian; n bytes of JSON, `{"name": {"dtype", "shape", "data_offsets"},
"__metadata__": {text: text}}`; then the data section. Nothing here is mapped into memory, so that Windows lets the file be
replaced. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ModelError, RunError
from .writing import write_whole

LARGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses more
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
         "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}
CHUNK = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor. start, end: bytes within the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header. data: where the data section begins, in bytes from the start of the file; size: of the file; changed:
    when it was last written, in nanoseconds."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data: int
    size: int
    changed: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by tensor name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def read_header(file: Path) -> Header:
    """The header of a file, checked against its size. Raises ModelError in words for everything that is no such file."""
    if file.is_dir():
        raise ModelError("{file} is a folder, not a file. Name the .safetensors file in it.", file=str(file), where=str(file))
    try:
        with file.open("rb") as opened:
            return _read(opened, os.fstat(opened.fileno()), file)
    except FileNotFoundError:
        raise ModelError("There is no file {file}. Check the path.", file=str(file), where=str(file)) from None
    except OSError as error:
        raise ModelError("{file} cannot be read: {reason}.", file=str(file), reason=error.strerror or str(error),
                         where=str(file)) from error


def _read(opened: BinaryIO, told: os.stat_result, file: Path) -> Header:
    begin, size = opened.read(8), told.st_size
    if size == 0:
        raise ModelError("{file} is empty. Download or copy it again.", file=str(file), where=str(file))
    # As a length, a pickle's first eight bytes are larger than the file; a header of 640 bytes begins like one otherwise.
    protocol = begin[:1] == b"\x80" and begin[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if begin[:2] == b"PK" or (protocol and int.from_bytes(begin, "little") > size):
        raise ModelError("{file} is a pickle (.ckpt, .pt or .bin), which can run code when it is opened. "
                         "Take its .safetensors version, or convert it with a tool you trust.", file=str(file), where=str(file))
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or length < 2 or length > LARGEST_HEADER:
        raise ModelError("{file} is no .safetensors file: it does not begin like one. Name one that is, or "
                         "download it again.", file=str(file), where=str(file))
    if 8 + length > size:
        raise ModelError("{file} is cut off: it has {size} bytes, and its header alone takes {wanted}. Download or copy it "
                         "again.",
                         file=str(file), size=size, wanted=8 + length, where=str(file))
    try:
        content = json.loads(opened.read(length).decode("utf-8"))
        metadata = content.pop("__metadata__", None) or {}
        tensors = {name: _tensor(entry) for name, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("{file} is no .safetensors file, or a damaged one: its header cannot be read.",
                         file=str(file), where=str(file)) from error
    wanted = 8 + length + max((tensor.end for tensor in tensors.values()), default=0)
    if size < wanted:
        raise ModelError("{file} is cut off: it has {size} bytes of {wanted}. Download or copy it again.",
                         file=str(file), size=size, wanted=wanted, where=str(file))
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()}, 8 + length, size, told.st_mtime_ns)


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    shape = tuple(int(n) for n in entry["shape"])
    start, end = (int(n) for n in entry["data_offsets"])
    count = 1
    for n in shape:
        count *= n
    dtype = str(entry["dtype"])
    if start < 0 or end < start or min(shape, default=1) < 0 or (dtype in BYTES and end - start != count * BYTES[dtype]):
        raise ValueError("offsets do not fit the shape")
    return Tensor(dtype, shape, start, end)


def data_hash(file: Path, header: Header | None = None) -> str:
    """SHA-256 of the data section, in hex: the same whatever the metadata (kohya's sshs_model_hash, Civitai's AutoV3)."""
    start = (header or read_header(file)).data
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        opened.seek(start)
        while block := opened.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def holds(file: Path, data: str) -> bool:
    """Whether a file is there and its tensors have this hash."""
    try:
        return data_hash(file) == data
    except ModelError:
        return False


def file_hash(file: Path) -> str:
    """SHA-256 of the whole file, in hex (its first ten digits are AutoV2, the `[hash]` of a checkpoint in WebUIs)."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def hash_fields(content: bytes) -> dict[str, str]:
    """The hash fields of serialised tensors: kohya's two, and modelspec's. `content` is a whole file without our metadata."""
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    legacy = hashlib.sha256(memoryview(content)[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": digest, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": "0x" + digest}


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same file under other metadata; its data section is untouched."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    header.pop("__metadata__", None)
    if metadata:
        header = {"__metadata__": dict(metadata), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data section begins at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length:]))


def write_new(file: Path, content: bytes, again: bool = False) -> Path:
    """Write a file whole under just this name. Raises RunError where it exists (unless `again`) or cannot be written.

    A LoRA's alias is its file's name, and ComfyUI keeps files by name, so another name is no answer, nor is writing over one.
    """
    if file.exists() and not again:
        raise RunError("{file} exists already, and nothing is written over it. Choose another name, or move it away.",
                       file=str(file), where=str(file))
    return write_whole(file, content)
