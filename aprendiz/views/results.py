"""Where a finished run's files go in a host: each into the folder where the host looks for its kind, and what calls it there.

Nothing is written over: a name that is taken by other tensors gives `name-2`. Standard library only: hosts import this.
"""

from __future__ import annotations

import filecmp
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import registry
from ..errors import ModelError, RunError
from ..files import disk_errors, move_into_place, temporary_name
from ..formats import container
from ..run import Run

KINDS = {"--lora": "lora", "--embedding": "embedding", "--controlnet": "controlnet", "--hypernetwork": "hypernetwork",
         "--base": "checkpoint"}  # as `generate` is told, and what a host calls it
BESIDE = (".json", ".png", ".preview.png")  # what hosts show beside a file
CALLS = {"lora": "<lora:{name}:1>", "hypernetwork": "<hypernet:{name}:1>", "embedding": "{name}"}

_PLACING = threading.Lock()


def files(method: str, file: Path) -> dict[str, Path]:
    """The files that a method writes for a result of this name, by their kind; pivotal tuning has two."""
    words = registry.methods()[method].arguments(file)
    return {KINDS[flag]: Path(value) for flag, value in zip(words, words[1:]) if flag in KINDS}


def written(run: Run) -> dict[str, Path]:
    """The files of a finished run that are there, by their kind."""
    return {kind: file for kind, file in files(str(run.values()["method"]["name"]), run.file).items() if file.is_file()}


def place(run: Run, folder_of: Callable[[str], Path | None]) -> dict[str, Path]:
    """Put a finished run's files where the host looks: where each stands, by its kind; once for the same content.

    folder_of: the host's folder for a kind, None where it has none. Raises RunError, also where the files are gone.
    """
    placed = {}
    found = written(run)
    if not found:
        raise RunError("The result of {name} is no longer in its folder, {folder}. Train it once more, with again turned on.",
                       name=run.name, folder=str(run.folder))
    for kind, file in found.items():
        folder = folder_of(kind)
        if folder is not None:
            placed[kind] = _put(file, folder)
    return placed


def prompt(placed: Mapping[str, Path], trigger: str | None) -> str:
    """What a prompt needs for them to be seen: `<lora:fish:1> fish`; empty where no word calls them."""
    calls = [CALLS[kind].format(name=file.stem) for kind, file in placed.items() if kind in CALLS]
    # An embedding is its own word.
    return " ".join(dict.fromkeys([*calls, *([trigger] if trigger and calls and "embedding" not in placed else [])]))


def _put(file: Path, folder: Path) -> Path:
    with _PLACING, disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number, target = 1, folder / file.name
        while target.exists():
            if _same(target, file):
                return target
            number += 1
            target = folder / f"{file.stem}-{number}{file.suffix}"
        for ending in BESIDE:
            if file.with_suffix(ending).is_file() and not target.with_suffix(ending).exists():
                _copy(file.with_suffix(ending), target.with_suffix(ending))
        _copy(file, target)  # last: a host that looks meanwhile finds it whole
    return target


def _copy(file: Path, target: Path) -> None:
    temporary = temporary_name(target)
    try:
        renamed = _renamed(file, target.stem) if target.stem != file.stem else None
        if renamed is None:
            shutil.copyfile(file, temporary)
        else:
            temporary.write_bytes(renamed)
        move_into_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _renamed(file: Path, name: str) -> bytes | None:
    """A LoRA's content under another alias: two files with one alias are mistaken for each other. None for other files."""
    try:
        metadata = container.read_header(file).metadata
    except ModelError:
        return None
    if "ss_output_name" not in metadata:
        return None
    return container.with_metadata(file.read_bytes(), {**metadata, "ss_output_name": name})


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors, whatever their metadata say; of other files than .safetensors, the same bytes."""
    try:
        heads = [container.read_header(file) for file in (one, other)]
    except ModelError:
        return filecmp.cmp(one, other, shallow=False)
    if heads[0].size - heads[0].data != heads[1].size - heads[1].data or heads[0].shapes != heads[1].shapes:
        return False
    return container.data_hash(one, heads[0]) == container.data_hash(other, heads[1])
