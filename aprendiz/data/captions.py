"""Captions: reading what stands beside a picture, and varying it while training.

A caption is one line of UTF-8 text; line breaks, tabs and runs of spaces in a file become single spaces. Its *parts* are
what commas separate, as taggers write them; a comma inside brackets, such as `(red, blue:1.2)`, separates nothing.
Standard library only.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..errors import DatasetError, Problem
from ..settings import DataSettings

EXTENSIONS = (".txt", ".caption")
NEARLY = (".text", ".captions", ".cap", ".tag", ".tags", ".md", ".txt.txt", ".prompt")  # meant as captions, and read by nobody
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
         codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # in this order: UTF-32's mark begins as UTF-16's does

UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufeff\u200b]")  # control characters that part no words, byte order marks


@dataclass(frozen=True)
class Told:
    """What one source says of one picture. source: as messages name it. texts: several where a list was given. picture: the name
    that the source uses for it, where it is not simply beside it. condition: the name of what a ControlNet is shown with it;
    shows: this is such a picture itself."""

    source: str
    texts: tuple[str, ...]
    picture: str = ""
    condition: str = ""
    shows: bool = False


# Reading


def decode(data: bytes, file: str) -> str:
    """Text of a file's bytes, with or without the UTF-8 mark. Raises DatasetError that names another encoding."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            raise DatasetError("{file} is written in {encoding}, but captions are read as UTF-8. Save it again as UTF-8.",
                               where=file, file=file, encoding=encoding)
    if b"\0" in data:  # no caption holds a zero byte, and every other byte of Latin text in UTF-16 is one
        raise DatasetError("{file} is written in {encoding}, but captions are read as UTF-8. Save it again as UTF-8.",
                           where=file, file=file, encoding="UTF-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError("{file} is not UTF-8: its byte {position} ({byte}) is of another encoding, perhaps Windows-1252. "
                           "Save it again as UTF-8.", where=file, file=file, position=error.start + 1,
                           byte=f"0x{data[error.start]:02x}") from error


def clean(text: str) -> str:
    """One line: line breaks, tabs and runs of spaces become single spaces, unseen marks go, halves of letters become '?'."""
    return " ".join(UNSEEN.sub("", shown(text)).split())


def fold(name: str) -> str:
    """A file's name as compared: neither case nor the two ways of writing accents (macOS's and everybody else's) count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shown(text: str) -> str:
    """A file's name, or any text, as it can be printed: what is no text becomes question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_file(file: Path, name: str) -> str:
    """A text file whole. Raises DatasetError if it cannot be opened or is no UTF-8."""
    try:
        return decode(file.read_bytes(), name)
    except OSError as error:
        raise DatasetError("{file} cannot be opened: {reason}.", where=name, file=name,
                           reason=error.strerror or type(error).__name__) from error


def beside(files: Sequence[str], extensions: Sequence[str] = EXTENSIONS) -> dict[str, list[str]]:
    """Files with these endings, by what stands before the ending, folded."""
    found: dict[str, list[str]] = {}
    for name in files:
        for extension in extensions:
            if name.lower().endswith(extension):
                found.setdefault(fold(name[:-len(extension)]), []).append(name)
    return found


def match(picture: str, candidates: Mapping[str, list[str]]) -> list[str]:
    """The files among `candidates` (from `beside`) that belong to a picture: `a.txt` or `a.png.txt` to `a.png`.

    A name in the picture's own case is preferred where both are there.
    """
    stem = os.path.splitext(picture)[0]
    names = [*candidates.get(fold(stem), ()), *candidates.get(fold(picture), ())]
    exact = [name for name in names if name.startswith(stem + ".")]
    return exact or names


def read_metadata(file: Path, name: str) -> tuple[list[Told], list[Problem]]:
    """What the lines of a `metadata.jsonl` (imagefolder convention) say, and what is wrong with them.

    Each line is an object with `file_name`, relative to the file's own folder, and `text` or `caption`: a text or a list of them;
    `conditioning_image` (or `condition`) names what a ControlNet is shown with it.
    """
    told: list[Told] = []
    problems: list[Problem] = []
    try:
        lines = read_file(file, name).split("\n")
    except DatasetError as error:
        return told, error.problems
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                told += _metadata_line(line, name, number)
            except DatasetError as error:
                problems += error.problems
    return told, problems


def _metadata_line(line: str, name: str, number: int) -> list[Told]:
    """What one line says. Raises DatasetError."""
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise DatasetError("Line {line} of {file} is no JSON ({reason}). Each line must be an object such as "
                           '{{"file_name": "a.png", "text": "a caption"}}.',
                           where=name, file=name, line=number, reason=str(error)) from error
    picture = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(picture, str) or not picture:
        raise DatasetError("Line {line} of {file} names no picture. Each line must be an object such as "
                           '{{"file_name": "a.png", "text": "a caption"}}.', where=name, file=name, line=number)
    condition = entry.get("conditioning_image") or entry.get("condition") or ""
    if not isinstance(condition, str):
        raise DatasetError("Line {line} of {file} has a conditioning_image that is no file's name.", where=name, file=name,
                           line=number)
    told = [Told(f"{name}:{number}", (), picture, condition)]
    for value in (entry.get("text"), entry.get("caption")):
        texts = [value] if isinstance(value, str) else value
        if value is None:
            continue
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DatasetError("Line {line} of {file} has a caption that is neither a text nor a list of texts.",
                               where=name, file=name, line=number)
        told.append(Told(f"{name}:{number}", tuple(clean(text) for text in texts), picture))
    return told


# Filling in


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with the trigger word in front, unless it is somewhere in it as a word of its own, in any case."""
    if not trigger or has_words(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def has_words(caption: str, words: str) -> bool:
    """Whether words are somewhere in a caption, not within others ('man' is not in 'woman'), in any case."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caption, re.IGNORECASE) is not None


def class_prompt(class_word: str) -> str:
    """What is said of the base's own pictures of a kind of thing, and asks for them (Ruiz et al. 2023)."""
    return f"a photo of a {class_word}"


def fill(template: str, values: Mapping[str, str | None]) -> str:
    """A template's [trigger], [class], [folder] and [name] filled in, as far as they have values; made clean."""
    for key, value in values.items():
        if value is not None:
            template = template.replace(f"[{key}]", value)
    return clean(template)


# Varying


def parts(caption: str) -> list[str]:
    """What commas separate, outside round brackets; brackets that never close do not count."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(caption):
        if letter in "()" and caption[place - 1:place] != "\\":
            depth = max(0, depth + (1 if letter == "(" else -1))
        elif letter == "," and depth == 0:
            found.append(caption[start:place])
            start = place + 1
    found.append(caption[start:])
    if depth:
        found = caption.split(",")
    return [part.strip() for part in found if part.strip()]


def variant(caption: str, settings: DataSettings, random: Random, trigger: str | None = None) -> str:
    """The caption as one training step sees it: left out, shuffled, thinned, as the settings say; all draws are `random`'s.

    The first `keep_tags` parts neither move nor go. A part that holds the trigger (`trigger`, else the settings' own) never goes,
    and at least one part stays: a caption is left out as a whole only by `caption_dropout`.
    """
    if settings.caption_dropout and random.random() < settings.caption_dropout:
        return ""
    if not settings.shuffle_tags and not settings.tag_dropout:
        return caption
    all_parts = parts(caption)
    kept, rest = all_parts[:settings.keep_tags], all_parts[settings.keep_tags:]
    if settings.tag_dropout:
        draws = [random.random() for _ in rest]
        word = trigger or settings.trigger
        stays = [draw >= settings.tag_dropout or (word is not None and with_trigger(part, word) == part)
                 for draw, part in zip(draws, rest)]
        if rest and not kept and not any(stays):
            stays[draws.index(max(draws))] = True
        rest = [part for part, stay in zip(rest, stays) if stay]
    if settings.shuffle_tags:
        random.shuffle(rest)
    return ", ".join(kept + rest)
