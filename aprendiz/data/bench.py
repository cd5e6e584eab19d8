"""Changes to all captions of a folder at once: find and replace, and the comma-separated tags that captions are made of.

Only captions in files of their own are changed, those of tables stay. What stood there before is handed back, so that a change
can be undone. Standard library only at module level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import AprendizError, Problem, SettingsError
from ..files import disk_errors, write_atomically
from ..settings import DataSettings
from . import album, captions
from .album import Leaf

MOST_TAGS = 80  # that are listed
WRITERS = 16  # files written at a time: a disk takes as long over one as over several
KINDS = ("replace", "front", "end", "remove", "rename")


@dataclass(frozen=True)
class Change:
    """One change. kind: `replace` find by `by` anywhere; put find in `front` or at the `end` of captions that lack it; `remove`
    the tag find, or `rename` it to `by`.
    """

    kind: str
    find: str
    by: str = ""

    def of(self, caption: str) -> str:
        """A caption, changed."""
        if self.kind == "replace":
            return caption.replace(self.find, self.by)
        parts = split(caption)
        if self.kind in ("front", "end"):
            if captions.has_words(caption, self.find):
                return caption
            return ", ".join([self.find, *parts] if self.kind == "front" else [*parts, self.find])
        if self.find not in parts:
            return caption
        new = (self.by if part == self.find else part for part in parts)
        return ", ".join(dict.fromkeys(part for part in new if part))


@dataclass(frozen=True)
class Done:
    """What a change did. before: the captions that it changed as they were, None without a file. problems: by picture."""

    before: Mapping[str, str | None]
    problems: tuple[Problem, ...]


def split(caption: str) -> list[str]:
    """A caption's comma-separated parts."""
    return [part.strip() for part in caption.split(",") if part.strip()]


def tags(leaves: Sequence[Leaf]) -> list[tuple[str, int]]:
    """The parts that several captions share, the commonest first, with how many have each."""
    counted = Counter(part for leaf in leaves for part in dict.fromkeys(split(leaf.own or "")))
    return [(tag, count) for tag, count in counted.most_common(MOST_TAGS) if count > 1]


def change(settings: DataSettings, wanted: Change) -> Done:
    """Change every caption that the change concerns. Raises SettingsError for no change, DatasetError without a folder."""
    if wanted.kind not in KINDS or not wanted.find.strip():
        raise SettingsError("There is nothing to look for. Write the words to find.")
    if wanted.kind != "replace":
        wanted = Change(wanted.kind, captions.clean(wanted.find), captions.clean(wanted.by))
    return _write(settings, lambda leaf: wanted.of(leaf.own or ""))


def put_back(settings: DataSettings, before: Mapping[str, str | None]) -> Done:
    """Take a change back; a caption file that the change made is emptied."""
    return _write(settings, lambda leaf: (before[leaf.name] or "") if leaf.name in before else (leaf.own or ""))


def _write(settings: DataSettings, told: Callable[[Leaf], str]) -> Done:
    from . import folder
    leaves, _ = album.leaves(settings)
    root = folder.existing(settings.path or "")
    wanted = [(leaf, captions.clean(told(leaf))) for leaf in leaves if leaf.editable]
    changed = [(leaf, text) for leaf, text in wanted if text != (leaf.own or "")]
    with ThreadPoolExecutor(WRITERS) as pool:
        refused = list(pool.map(lambda one: _write_one(root, *one), changed))
    return Done({leaf.name: leaf.own for (leaf, _), wrong in zip(changed, refused) if not wrong},
                tuple(problem for wrong in refused for problem in wrong))


def _write_one(root: Path, leaf: Leaf, text: str) -> list[Problem]:
    """Write a caption; why it could not be written."""
    try:
        _put(root, leaf, text)
    except AprendizError as error:
        return [Problem(one.template, one.fields, leaf.name, one.warning) for one in error.problems]
    return []


def _put(root: Path, leaf: Leaf, text: str) -> None:
    """Into the file that the caption stands in, else into one beside the picture. Raises AprendizError."""
    target = root / leaf.source if leaf.source else (root / leaf.name).with_suffix(captions.EXTENSIONS[0])
    if target.is_symlink():  # rare, and the careful way asks where it leads
        album.write_caption(root, leaf.name, text)
        return
    with disk_errors(target):
        write_atomically(target, (text + "\n").encode() if text else b"")
