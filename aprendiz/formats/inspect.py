"""What a `.safetensors` file is, and for a LoRA what each host would load of it, by the names that the host's own code takes.

Only headers are read and bytes hashed: nothing is loaded, nothing can run. `verify` is called after every save.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, Problem
from ..settings import SECTIONS
from ..texts import say
from . import container, keys, metadata, names, recognise
from .adapter_config import Alphas

if TYPE_CHECKING:
    from ..families import Base, Family

FORGE_LIMIT = 12  # Forge leaves out a whole file with more unmatched tensors than this


@dataclass(frozen=True)
class HostRow:
    """What one host would do with a LoRA file.

    loaded, total: modules; ignored: the tensors left out, by name; refused: the whole file is.
    opens: whether the host can open a base of this shape at all (names are compared with its nearest then).
    """

    host: str
    version: str
    loaded: int
    total: int
    ignored: tuple[str, ...] = ()
    refused: bool = False
    opens: bool = True
    note: Problem | None = None

    @property
    def whole(self) -> bool:
        """Whether every module loads and nothing is left out."""
        return self.loaded == self.total and not self.ignored and not self.refused

    @property
    def ignored_modules(self) -> tuple[str, ...]:
        """The modules, rather than the tensors, that are left out."""
        return tuple(dict.fromkeys((names.split(key) or (key, ""))[0] for key in self.ignored))


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    shape: which frozen list its network is of, None where it is of none (then hosts are compared by the family's).
    ranks, alphas, dtypes: how often each occurs; modules: by part. sha256: of the file; data_sha256: of its tensors alone
    (AutoV3). vectors: of an embedding.
    """

    file: Path
    kind: str
    family: str | None
    size: int
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    sha256: str
    data_sha256: str
    metadata: Mapping[str, str]
    shape: str | None = None
    algorithm: str = ""
    ranks: Mapping[int, int] = field(default_factory=dict)
    alphas: Mapping[float, int] = field(default_factory=dict)
    modules: Mapping[str, int] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    job: Mapping[str, Any] | None = None
    hosts: tuple[HostRow, ...] = ()
    vectors: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        told: dict[str, Any] = {name: getattr(self, name) for name in (
            "kind", "family", "size", "tensors", "parameters", "dtypes", "sha256", "data_sha256", "metadata", "shape",
            "algorithm", "ranks",
            "alphas", "modules", "unmatched", "triggers", "job", "vectors")}
        rows = [asdict(row) | {"note": str(row.note) if row.note else None, "whole": row.whole} for row in self.hosts]
        return {"file": str(self.file), **told, "hosts": rows}

    def lines(self, most: int = 8) -> list[str]:
        """For people, in their language; of ignored names the first `most` (None of them is left out of `as_dict`)."""
        told = [say("{file}: {what}, {size} MB, {tensors} tensors ({dtypes})", file=self.file.name, what=self.title,
                    size=f"{self.size / 1e6:.1f}", tensors=self.tensors, dtypes=", ".join(sorted(self.dtypes)))]
        if self.kind == "lora":
            told += self._lora_lines(most)
        if self.kind == "textual_inversion":
            told.append(say("{count} vectors, called by the file's name: {name}, in ComfyUI embedding:{name}", count=self.vectors,
                            name=self.file.stem))
        told.append(say("hashes: {short} (whole file, AutoV2), {data} (tensors, AutoV3)", short=self.sha256[:10],
                        data=self.data_sha256[:12]))
        return told

    @property
    def title(self) -> str:
        """What it is, in words: 'LoRA for Stable Diffusion 1.x'."""
        family = recognise.title(self.family)
        if self.kind == "lora" and self.family is None:
            return say("{algorithm} for a family that its names do not tell", algorithm=self.algorithm)
        if self.kind == "lora":
            return say("{algorithm} for {family}", algorithm=self.algorithm, family=family)
        return {
            "checkpoint": say("checkpoint of {family}", family=family),
            "network": say("network of {family}, without text encoder and VAE", family=family),
            "vae": say("VAE"), "text_encoder": say("text encoder"),
            "textual_inversion": say("embedding (textual inversion) for {family}", family=family),
            "controlnet": say("ControlNet for {family}", family=family),
            "controlnet_lllite": say("ControlNet-LLLite for {family}", family=family),
        }.get(self.kind, say("file of no kind known here"))

    def _lora_lines(self, most: int) -> list[str]:
        modules = ", ".join(f"{part} {count}" for part, count in self.modules.items())
        told = [say("rank {ranks}, alpha {alphas}; modules: {modules}", ranks=_numbers(self.ranks),
                    alphas=_numbers(self.alphas) or "-",
                    modules=modules or "-")]
        if self.triggers:
            told.append(say("called by: {triggers}", triggers=", ".join(self.triggers)))
        if self.job is not None:
            told.append(say("made by this program: its job is in the file, and `inspect --json` prints it"))
        if self.unmatched:
            told.append(say("{count} tensors belong to no module known here: {names}", count=len(self.unmatched),
                            names=_some(self.unmatched, most)))
        width = max((len(f"{row.host} {row.version}") for row in self.hosts), default=0)
        for row in self.hosts:
            told.append(f"  {f'{row.host} {row.version}':<{width}}  {row_words(row)}")
            told += [f"  {'':<{width}}    {line}" for line in _ignored_lines(row, most)]
        return told


def row_words(row: HostRow) -> str:
    """One host's answer in a sentence."""
    if row.note is not None and not row.opens:
        return str(row.note)
    if row.refused:
        return say("refuses the whole file")
    if row.whole:
        return say("loads all {total} modules", total=row.total)
    return say("loads {loaded} of {total} modules, ignores {ignored} tensors", loaded=row.loaded, total=row.total,
               ignored=len(row.ignored))


def _ignored_lines(row: HostRow, most: int) -> list[str]:
    if not row.ignored or not row.opens:
        return []
    modules = row.ignored_modules
    return [*modules[:most], *([say("and {count} more", count=len(modules) - most)] if len(modules) > most else [])]


def _some(found: Iterable[str], most: int) -> str:
    listed = list(found)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _numbers(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(counts))


def inspect(file: Path) -> Inspection:
    """Tell what a file is. Raises ModelError for what is no readable `.safetensors` file."""
    file = Path(file)
    header = container.read_header(file)
    shapes = header.shapes
    kind = recognise.kind(shapes)
    parameters = 0
    for shape in shapes.values():
        count = 1
        for n in shape:
            count *= n
        parameters += count
    common: dict[str, Any] = {
        "file": file, "kind": kind, "size": header.size, "tensors": len(shapes), "parameters": parameters,
        "dtypes": dict(Counter(tensor.dtype for tensor in header.tensors.values())), "sha256": container.file_hash(file),
        "data_sha256": container.data_hash(file, header), "metadata": header.metadata, "triggers": trigger_words(header.metadata),
        "job": job_in(header.metadata)}
    if kind == "textual_inversion":
        family = recognise.base_family(shapes) or recognise.family_by_metadata(header.metadata)
        return Inspection(family=family, vectors=max(shape[0] if len(shape) > 1 else 1 for shape in shapes.values()), **common)
    if kind != "lora":
        return Inspection(family=recognise.base_family(shapes), **common)
    family = recognise.lora_family(shapes, header.metadata)
    spots = {name: names.place(name) for name in modules_of(shapes)}
    ranks = _ranks(shapes)
    return Inspection(
        family=family, shape=shape_of(shapes, family), algorithm=recognise.algorithm(shapes),
        ranks=dict(Counter(ranks.values())), alphas=dict(Counter(_alphas(file, header, ranks).values())),
        modules=dict(sorted(Counter(spot[0] for spot in spots.values() if spot).items())),
        unmatched=tuple(key for key in shapes if not (parts := names.split(key)) or not spots.get(parts[0])),
        hosts=check_lora_keys(shapes, family), **common)


def modules_of(shapes: Iterable[str]) -> dict[str, set[str]]:
    """The endings of each module's tensors, by the module's name as the file has it."""
    found: dict[str, set[str]] = {}
    for key in shapes:
        if parts := names.split(key):
            found.setdefault(parts[0], set()).add(parts[1])
    return found


def _ranks(shapes: recognise.Shapes) -> dict[str, int]:
    inner = {**dict.fromkeys(names.DOWN, 0), ".hada_w1_b": 0, ".lokr_w2_b": 0}
    return {parts[0]: shape[inner[parts[1]]] for key, shape in shapes.items() if (parts := names.split(key)) and parts[1] in inner
            and shape}


def _alphas(file: Path, header: container.Header, ranks: Mapping[str, int]) -> dict[str, float]:
    """Each module's alpha, read from the few bytes that it takes, or from what diffusers told of it. ranks: by module."""
    import torch
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64,
              "I32": torch.int32}
    found = {}
    with file.open("rb") as opened:
        for key, tensor in header.tensors.items():
            if key.endswith(".alpha") and tensor.dtype in dtypes and tensor.end > tensor.start:
                opened.seek(header.data + tensor.start)
                content = bytearray(opened.read(tensor.end - tensor.start))
                alpha = float(torch.frombuffer(content, dtype=dtypes[tensor.dtype])[0])
                found[key.removesuffix(".alpha")] = round(alpha, 6)
    told = Alphas(header.metadata)
    for name in ranks.keys() - found.keys():
        spot = names.place(name)
        if spot is not None and (said := told.of(*spot, ranks[name])) is not None:
            found[name] = round(said, 6)
    return found


def trigger_words(told: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call a LoRA, as its metadata tells them: ours, modelspec's, kohya's class tokens."""
    found = [word.strip() for word in told.get("modelspec.trigger_phrase", "").split(",")]
    job = job_in(told)
    found.append(((job or {}).get("data") or {}).get("trigger") or "")
    datasets = _json(told.get("ss_datasets"))
    for one in datasets if isinstance(datasets, list) else []:
        subsets = one.get("subsets") if isinstance(one, dict) else None
        found += [str(subset.get("class_tokens") or "") for subset in subsets or [] if isinstance(subset, dict)]
    return tuple(dict.fromkeys(word for word in found if word))


def job_in(told: Mapping[str, str]) -> dict[str, Any] | None:
    """The job that a file of ours carries; None where what stands there is none."""
    job = _json(told.get(metadata.JOB))
    sections = [job.get(name, {}) for name in ("method", *SECTIONS)] if isinstance(job, dict) else [None]
    return job if all(isinstance(section, dict) for section in sections) else None


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


# ---- hosts ----

def check_lora_keys(file_or_keys: Path | Iterable[str], family: Family | str | None) -> tuple[HostRow, ...]:
    """What each host would load of a LoRA: a file, or its tensors' names.

    A mapping to their shapes tells which shape of base it is for, too. Empty where there is no frozen list for the family.
    """
    if isinstance(file_or_keys, Path):
        shapes: Mapping[str, tuple[int, ...]] = container.read_header(file_or_keys).shapes
    elif isinstance(file_or_keys, Mapping):
        shapes = file_or_keys
    else:
        shapes = dict.fromkeys(file_or_keys, ())
    name = family if isinstance(family, str) or family is None else family.name
    if name not in ("sd1", "sd2", "sdxl"):
        return ()
    shape = shape_of(shapes, name)
    return tuple(_row(keys.frozen(host), shapes, shape, name) for host in keys.HOSTS)


def shape_of(shapes: recognise.Shapes, family: str | None) -> str | None:
    """Which of the frozen shapes a LoRA's network has, by its widths.

    None: none of them, or a file that has no network to tell by.
    """
    widths = {shape[1] for key, shape in shapes.items() if (parts := names.split(key)) and parts[1] in names.DOWN
              and len(shape) > 1}
    if family is None or not widths:
        return family
    known = {"sd1": {320, 640, 768, 960, 1280, 1920, 2560, 3072, 5120, 4},
             "sd2": {320, 640, 960, 1024, 1280, 1920, 2560, 4096, 5120, 4},
            "sdxl": {320, 640, 768, 960, 1280, 1920, 2048, 2560, 2816, 3072, 5120, 4}}
    if family == "sd1" and widths <= {4, 32, 64, 96, 128, 192, 384}:
        return "micro"
    return family if widths <= known.get(family, set()) else None


def _row(host: keys.FrozenKeys, shapes: recognise.Shapes, shape: str | None, family: str) -> HostRow:
    opens = shape in host.accepted
    accepted = host.accepted[shape if shape is not None and opens else family]
    modules = modules_of(shapes)
    ignored = [key for key in shapes if not _taken(key, accepted, host.suffixes)]
    left_out = {(names.split(key) or (key, ""))[0] for key in ignored}
    loaded = sum(1 for name in modules if name in accepted and name not in left_out)
    refused = any(key.startswith(host.refuses) for key in shapes) if host.refuses else False
    if host.host == "Forge" and len(ignored) > FORGE_LIMIT:
        refused = True
    if host.host == "diffusers":
        refused = refused or _diffusers_refuses(shapes, ignored)
    if refused:
        loaded, ignored = 0, ignored or list(shapes)
    return HostRow(host.host, host.version, loaded, len(modules), tuple(ignored), refused, opens, _note(host, shape, opens))


def _taken(key: str, accepted: Mapping[str, str], suffixes: frozenset[str]) -> bool:
    parts = names.split(key)
    return parts is not None and parts[0] in accepted and parts[1] in suffixes


def _diffusers_refuses(shapes: recognise.Shapes, ignored: Iterable[str]) -> bool:
    """diffusers converts a file only if all of its names are kohya's, and raises where something is left over."""
    flat = [key.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")) for key in shapes]
    if any(flat) and not all(flat):
        return True
    return all(flat) and any(not key.endswith((".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale"))
                             for key in ignored)


def _note(host: keys.FrozenKeys, shape: str | None, opens: bool) -> Problem | None:
    if opens:
        return None
    if shape is None:
        return Problem("cannot be told: the base has widths of its own", {"host": host.host})
    return Problem("opens no base of this shape", {"host": host.host})


def verify(file: Path, base: Base) -> Inspection:
    """Open a LoRA just written, compare its bytes with its hashes and its names with the base's modules and the hosts' lists.

    Raises ModelError where the file is not what was to be written.
    """
    from . import kohya
    found = inspect(file)
    told = found.metadata.get("sshs_model_hash", found.data_sha256)
    if found.kind != "lora":
        return found
    read = kohya.read_all(file, base.family)
    there = {part: {name for name, _ in module.named_modules()} for part, module in base.parts().items()}
    missing = [one.module for one in read.weights if one.module not in there.get(one.part, ())]
    if told != found.data_sha256 or missing or read.unmatched:
        raise ModelError("{file} was written, but what was read back is something else ({what}). Check the disk, and save again.",
                         file=file.name, what=_some([*missing, *read.unmatched], 3) or "hash", where=str(file))
    return found

