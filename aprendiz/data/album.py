"""The dataset as a page shows it: every picture with the caption that its own file holds, thumbnails, and captions written back.

Names are relative to the dataset's folder, with forward slashes. Only pictures of the folder are ever opened, only their caption
files are ever written. Pillow is imported where a picture is opened, nothing else but the standard library.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DatasetError, Problem
from ..files import home, write_atomically
from ..settings import DataSettings
from . import captions, folder

SIDE = 256  # pixels of a thumbnail's longer side
LONGEST = 20_000  # characters of a caption
MOST_THUMBNAILS = 20_000  # files kept; about 10 kB each


@dataclass(frozen=True)
class Leaf:
    """One picture on the page.

    own: what its caption file holds, None without one. taught: what is trained, with trigger and templates. source: the name of
    the file the caption stands in. editable: whether it stands in a file of the picture's own, or nowhere yet.
    """

    name: str
    own: str | None
    taught: tuple[str, ...]
    source: str = ""
    editable: bool = True


def leaves(settings: DataSettings) -> tuple[list[Leaf], list[Problem]]:
    """Every picture of the folder, and what is wrong as far as names and captions tell. Raises DatasetError."""
    noted: dict[str, str] = {}
    root, found, problems = folder.listing(settings, noted)
    beside: dict[Path, dict[str, list[str]]] = {}
    tables = _tables(root, found)
    shown = []
    for picture in found:
        place = picture.file.parent
        if place not in beside:
            beside[place] = captions.beside(_files(place))
        files = captions.match(picture.file.name, beside[place])
        own, source = None, ""
        if files:
            source = picture.name[:picture.name.rfind("/") + 1] + files[0]
            own = noted.get(captions.shown(source))  # what cannot be read is told of among the problems
        tabled = not files and captions.fold(picture.name) in tables
        shown.append(Leaf(picture.name, own, picture.captions, source, not tabled))
    return shown, problems


def _files(place: Path) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []


def _tables(root: Path, found: Sequence[folder.Picture]) -> set[str]:
    """The folded names of pictures that a metadata.jsonl captions."""
    named: set[str] = set()
    holding = {picture.file.parent for picture in found}
    places = {place for one in holding for place in (one, *one.parents) if place == root or root in place.parents}
    for place in places:
        for file in _files(place):
            if file.lower() == "metadata.jsonl":
                below = place.relative_to(root).as_posix()
                for told in captions.read_metadata(place / file, file)[0]:
                    if told.texts:
                        named.add(captions.fold(os.path.normpath(os.path.join(below, told.picture)).replace("\\", "/")))
    return named


def stamp(file: Path) -> str:
    """What changes when a file does."""
    try:
        known = file.stat()
    except OSError:
        return ""
    return f"{known.st_mtime_ns:x}-{known.st_size:x}"


def inside(root: Path, name: str) -> Path:
    """The file of a picture in the folder. Raises DatasetError for a name that leads out of it, or to what is no picture."""
    parts = PurePosixPath(name).parts
    wrong = "\\" in name or ":" in name or "\0" in name or not parts or any(part in ("..", ".", "/") for part in parts)
    file = root.joinpath(*parts) if not wrong else root
    hidden = any(part.startswith(".") for part in parts)
    if wrong or hidden or file.suffix.lower() not in folder.EXTENSIONS or not within(file, root) or not file.is_file():
        raise DatasetError("There is no picture {name} in this folder.", name=captions.shown(name), where=name)
    return file


def within(file: Path, root: Path) -> bool:
    """Whether a file, all links followed, lies in the folder."""
    try:
        return file.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def caption(root: Path, name: str) -> str:
    """What one picture's own caption file holds; empty without one that can be read in this folder. Raises DatasetError."""
    file = inside(root, name)
    files = captions.match(file.name, captions.beside(_files(file.parent)))
    if not files or not within(file.with_name(files[0]), root):
        return ""
    try:
        return captions.clean(captions.read_file(file.with_name(files[0]), captions.shown(files[0])))
    except DatasetError:  # it is told of among the folder's problems, and may be written anew
        return ""


def write_caption(root: Path, name: str, text: str) -> str:
    """Write one picture's caption into its own file, which is made where there is none; the text as it will be read.

    Raises DatasetError, RunError.
    """
    file = inside(root, name)
    if len(text) > LONGEST:
        raise DatasetError("The caption of {file} has {count} characters. Shorten it to {limit}.", where=name, file=name,
                           count=len(text), limit=LONGEST)
    files = captions.match(file.name, captions.beside(_files(file.parent)))
    if not files and captions.fold(name) in _tables(root, [_bare(file, name)]):
        raise DatasetError("The caption of {file} stands in a metadata.jsonl. Change it there.", where=name, file=name)
    target = file.with_name(files[0]) if files else file.with_suffix(captions.EXTENSIONS[0])
    if target.is_symlink() and not within(target, root):
        raise DatasetError("The caption of {file} is a link that leads out of the folder. Change it there.", where=name,
                           file=name)
    cleaned = captions.clean(text)
    write_atomically(target, (cleaned + "\n").encode() if cleaned else b"")
    return cleaned


def _bare(file: Path, name: str) -> folder.Picture:
    return folder.Picture(file, (0, 0), "", (), name=name)


def thumbnail(root: Path, name: str) -> bytes:
    """A small JPEG of a picture, upright; kept in the user's data folder, so that it is made once. Raises DatasetError."""
    file = inside(root, name)
    key = hashlib.sha256(f"{file.resolve()}|{stamp(file)}|{SIDE}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    kept = home() / "thumbnails" / key[:2] / f"{key}.jpg"
    with suppress(OSError):
        return kept.read_bytes()
    data = _shrink(file, name)
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, data)
        _tidy(kept.parent)
    return data


def _shrink(file: Path, name: str) -> bytes:
    from io import BytesIO

    from PIL import Image

    from . import pictures
    with pictures.quietly(), pictures.opened(file, name) as (stream, image):
        turn = pictures.UPRIGHT.get(pictures.orientation(stream, image))
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG alone: decodes at a fraction of the size
        image.load()
        rgb, alpha = pictures.separate(image)
        small: Any = rgb.convert("RGB") if alpha is None else pictures.over(rgb.convert("RGB"), alpha, (255, 255, 255))
        small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        out = BytesIO()
        (small.transpose(turn) if turn is not None else small).save(out, "JPEG", quality=82)
        return out.getvalue()


def _tidy(place: Path) -> None:
    """Keep one of the 256 places of thumbnails within its share, the oldest going first."""
    files = sorted(place.glob("*.jpg"), key=lambda file: file.stat().st_mtime)
    for file in files[:max(0, len(files) - MOST_THUMBNAILS // 256)]:
        with suppress(OSError):
            file.unlink()
