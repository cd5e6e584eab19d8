"""The dataset folder: which pictures there are, what is said of them, how often each is shown.

    pictures      png, jpg, jpeg, webp, bmp, avif, in any case, in the folder and in its sub-folders
    captions      name.txt or name.caption beside a picture, `metadata.jsonl` in its folder or above; two that differ are an
                  error. Without one: the template (`caption`), else the name of an `N_name` folder, else the trigger word; of
                  pictures of the base's own the class word
    masks         name.mask.png: no picture itself, but how much each pixel of `name` counts
    conditions    name.cond.png, a folder `conditions` beside a folder `images`, or `conditioning_image` in metadata.jsonl: no
                  picture itself, but what a ControlNet is shown with `name`
    10_sks dog    a folder whose pictures are shown 10 times an epoch (at most three digits: 2024_summer is a year); its name
                  tells a trigger word and a class word where nothing else does
    concept.json  a folder's own {"trigger", "class_word", "caption", "repeats"}, before what the settings say; inherited by
                  the folders in it

Hidden files, __MACOSX, Thumbs.db and their like are passed over, and so are the folders of runs. Nothing is decoded here: headers
are read and bytes hashed (`preflight` reads the pictures whole). Names are relative to the folder, with forward slashes.
Standard library only at module level.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import knobs
from ..errors import DatasetError, Problem
from ..knobs import knob
from ..settings import DataSettings
from . import captions
from .captions import Told, clean, fold, shown

if TYPE_CHECKING:
    from .pictures import Header

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
OTHER = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jfif", ".jpe", ".jxl", ".jp2", ".tga", ".psd", ".svg", ".dng", ".cr2")
SHEET = "control-maps.png"  # a sheet of pictures with their conditions
IGNORED = {SHEET, "__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "@eadir", "$recycle.bin"}
RUN_FILES = {"job.json", "events.jsonl"}  # a run's folder holds samples, which nobody wants to learn from by accident
MASKS = tuple(f".mask{extension}" for extension in EXTENSIONS)
CONDITIONS = tuple(f".cond{extension}" for extension in EXTENSIONS)
PAIRED = ("conditions", "conditioning_images")  # folders beside `images` that hold condition pictures
NUMBERED = re.compile(r"(\d{1,3})_(.*\S.*)")


@dataclass(frozen=True)
class Picture:
    """One picture and all that is known of it without decoding.

    size: (width, height), upright. digest, mask_digest, condition_digest: SHA-256 of the files' bytes. captions: at least one,
    the trigger already in front where it was lacking; "" where there is nothing to say. validation: kept apart. concept: the
    name of its folder. name: relative to the dataset's folder. condition: what a ControlNet is shown with it.
    """

    file: Path
    size: tuple[int, int]
    digest: str
    captions: tuple[str, ...]
    mask: Path | None = None
    repeats: int = 1
    concept: str = ""
    class_word: str | None = None
    validation: bool = False
    name: str = ""
    trigger: str | None = None
    mask_digest: str | None = None
    condition: Path | None = None
    condition_digest: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The pictures in the order of their names, what is wrong with the folder, and the identity of its content.

    digest: of all pictures, masks, captions and repeats; names, order and place of the folder do not count.
    """

    pictures: tuple[Picture, ...]
    digest: str
    problems: tuple[Problem, ...]
    folder: Path = Path()


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What a folder says of itself in `concept.json`."""

    trigger: str | None = knob(None, "The word that calls what this folder shows.")
    class_word: str | None = knob(None, "What kind of thing it is.")
    caption: str | None = knob(None, "One caption for pictures without their own.")
    repeats: int | None = knob(None, "How often each of its pictures is shown in an epoch.", min=1, max=10000)


@dataclass(frozen=True)
class Place:
    """A folder on the way through the dataset: where it is, what it holds, what counts in it.

    name: relative, "" for the dataset's own folder. title: the folder's name without its number. numbered: the title of the
    nearest `N_name` folder, if any. partners: condition pictures in the folder that belongs to this one, by their folded stems.
    prior: its pictures are the base's own, for prior preservation.
    """

    path: Path
    name: str
    title: str
    concept: Concept
    numbered: str | None = None
    files: tuple[str, ...] = ()
    partners: Mapping[str, Path] = field(default_factory=dict)
    prior: bool = False

    def relative(self, file: str) -> str:
        """The name of one of its files in messages."""
        return shown(f"{self.name}/{file}" if self.name else file)

    @property
    def trigger(self) -> str | None:
        """The word for [trigger]: the concept's, else the first of an `N_name` folder."""
        return self.concept.trigger or (self.numbered.split()[0] if self.numbered else None)

    @property
    def class_word(self) -> str | None:
        """The word for [class]: the concept's, else what follows the first of an `N_name` folder."""
        return self.concept.class_word or (" ".join(self.numbered.split()[1:]) or None if self.numbered else None)


def scan(settings: DataSettings, progress: Callable[[int, int], None] | None = None, prior: bool = False) -> Dataset:
    """Everything about the folder but the pixels. `progress(done, all)` is called while files are hashed. prior: as in `Place`.

    What is wrong is collected in `Dataset.problems`; only a folder that cannot be read at all raises DatasetError.
    """
    root, found, problems = listing(settings, prior=prior)
    measured, unreadable = _measure(found, settings.masks, progress)
    gone = {picture.name for picture in found} - {picture.name for picture in measured}  # of these one complaint is enough
    problems = unreadable + [problem for problem in problems if not (problem.warning and problem.where in gone)]
    if not measured:
        problems.append(Problem("{folder} has no pictures that can be read. Put png, jpg, webp, bmp or avif files into it, "
                                "or name another folder.", {"folder": shown(str(root))}, "data.path"))
    kept_apart = held_out([picture.digest for picture in measured], settings.validation_share)
    pictures = tuple(replace(picture, validation=picture.digest in kept_apart) for picture in measured)
    once = {(problem.template, repr(problem.fields)): problem for problem in problems}
    return Dataset(pictures, content(pictures), tuple(once.values()), root)


def listing(settings: DataSettings, noted: dict[str, str] | None = None,
            prior: bool = False) -> tuple[Path, list[Picture], list[Problem]]:
    """The folder, its pictures by name with captions and masks, sizes and digests still lacking, and what is wrong so far.

    No picture is opened, so this is quick however many there are. noted: takes what each caption file holds, by its relative
    name, for whoever would read them once more. Raises DatasetError for a folder that cannot be read at all.
    """
    root = existing(settings.path)
    problems: list[Problem] = []
    start = Place(root, "", root.name, Concept(trigger=clean(settings.trigger or "") or None, class_word=settings.class_word,
                                               caption=settings.caption, repeats=settings.repeats), prior=prior)
    places = paired(list(walk(start, problems, set())), problems)
    told = _metadata(places, problems)
    found: list[Picture] = []
    for place in places:
        found += _describe(place, told, problems, {} if noted is None else noted)
    return root, sorted(found, key=lambda picture: picture.name), problems


def existing(path: str | None) -> Path:
    """The dataset's folder. Raises DatasetError where there is none."""
    if not path:
        raise DatasetError("No pictures were given. Name the folder that they are in (data).", where="data.path")
    folder = Path(path).expanduser()
    if os.path.isdir(folder):
        return folder.absolute()
    if os.path.exists(folder):
        raise DatasetError("{folder} is a file. Name the folder that the pictures are in.", where="data.path",
                           folder=shown(str(folder)))
    raise DatasetError("There is no folder {folder}. Name the folder that the pictures are in.", where="data.path",
                       folder=shown(str(folder)))


def held_out(digests: Sequence[str], share: float) -> set[str]:
    """The digests kept apart for validation: a share of the different pictures, at least one, chosen by content alone.

    Copies of a picture stay on one side, and a picture that comes or goes moves no more than its place.
    """
    if not share:
        return set()
    order = sorted(set(digests), key=lambda digest: hashlib.sha256(f"validation {digest}".encode()).digest())
    return set(order[:max(1, int(share * len(order) + 1e-9))])


def content(pictures: Sequence[Picture]) -> str:
    """The identity of a dataset's content."""
    rows = sorted([p.digest, p.mask_digest or "", list(p.captions), p.repeats, p.class_word or "",
                   *([p.condition_digest] if p.condition_digest else [])] for p in pictures)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# Folders


def walk(place: Place, problems: list[Problem], seen: set[str]) -> Iterator[Place]:
    """A folder and all in it, in the order of names; one that a link leads back to is entered once."""
    real = os.path.normcase(os.path.realpath(place.path))
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(place.path) as entries:
            # Most systems' listings tell, without a look at each file; of a link, where it leads to.
            folders = {entry.name: os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir() for entry in entries}
    except OSError as error:
        problems.append(Problem("The folder {folder} cannot be read: {reason}.",
                                {"folder": shown(place.name or str(place.path)), "reason": reason(error)}, shown(place.name)))
        return
    if RUN_FILES <= folders.keys():
        return
    names = [name for name in sorted(folders) if not name.startswith(".") and name.lower() not in IGNORED]
    inner = {name for name in names if folders[name]}
    place = _own(replace(place, files=tuple(name for name in names if name not in inner)), problems)
    yield place
    for name in sorted(inner):
        deeper = replace(place, path=place.path / name, name=f"{place.name}/{name}" if place.name else name, title=name)
        yield from walk(deeper, problems, seen)


def paired(places: Sequence[Place], problems: list[Problem]) -> list[Place]:
    """The places, those of condition pictures joined to the pictures' own: images/a/1.png to conditions/a/1.png."""
    by_name = {place.name: place for place in places}
    taken: set[str] = set()
    found = []
    for place in places:
        parts = place.name.split("/")
        depth = next((i for i, part in enumerate(parts) if part.lower() == "images"), None)
        names = [] if depth is None else ["/".join([*parts[:depth], folder, *parts[depth + 1:]]) for folder in PAIRED]
        other = next((by_name[name] for name in names if name in by_name), None)
        if other is not None:
            taken.add(other.name)
            stems = {fold(os.path.splitext(name)[0]) for name in place.files}
            files = [name for name in other.files if name.lower().endswith(EXTENSIONS)]
            place = replace(place, partners={fold(os.path.splitext(name)[0]): other.path / name for name in files})
            problems += [_lonely(other.relative(name)) for name in files if fold(os.path.splitext(name)[0]) not in stems]
        found.append(place)
    return [place for place in found if place.name not in taken]


def _lonely(name: str) -> Problem:
    return Problem("{file} is a condition picture without a picture. A condition picture has its picture's name.",
                   {"file": name}, name, warning=True)


def _own(place: Place, problems: list[Problem]) -> Place:
    """What a folder's name and its concept.json say, over what it inherits."""
    numbered = NUMBERED.fullmatch(place.title)
    place = replace(place, title=clean(shown(numbered[2] if numbered else place.title)))
    if numbered:
        place = replace(place, numbered=place.title, concept=replace(place.concept, repeats=int(numbered[1])))
    file = next((name for name in place.files if name.lower() == "concept.json"), None)
    if file is not None:
        own, found = _concept(place.path / file, place.relative(file))
        problems += found
        said = {name: value for name, value in asdict(own).items() if value is not None}
        place = replace(place, concept=replace(place.concept, **said))
    if place.concept.repeats == 0:
        folder = shown(place.name or place.path.name)
        problems.append(Problem("The name of {folder} says that its pictures are shown 0 times, so they are left out. "
                                "Let it begin with 1_ to show them.", {"folder": folder}, folder, warning=True))
    return place


def _concept(file: Path, name: str) -> tuple[Concept, list[Problem]]:
    """A concept.json as far as it can be read, and what is wrong with it."""
    try:
        values = json.loads(captions.read_file(file, name))
    except DatasetError as error:
        return Concept(), error.problems
    except ValueError as error:
        return Concept(), [Problem("{file} is no JSON ({reason}).", {"file": name, "reason": str(error)}, name)]
    if not isinstance(values, dict):
        return Concept(), [Problem('{file} must be an object such as {{"trigger": "sks", "class_word": "dog", "repeats": 10}}.',
                                   {"file": name}, name)]
    concept, problems = knobs.read(Concept, values, name)
    return concept or Concept(), problems


def reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return error.strerror or type(error).__name__


# Captions


def _metadata(places: Sequence[Place], problems: list[Problem]) -> dict[str, list[Told]]:
    """What every metadata.jsonl says, by the picture's folded relative name; names of no picture are warned of."""
    told: dict[str, list[Told]] = {}
    for place in places:
        for file in place.files:
            if file.lower() == "metadata.jsonl":
                entries, found = captions.read_metadata(place.path / file, place.relative(file))
                problems += found
                for entry in entries:
                    key = posixpath.normpath(posixpath.join(place.name, entry.picture.replace("\\", "/")))
                    if entry.condition:
                        beside = posixpath.normpath(posixpath.join(place.name, entry.condition.replace("\\", "/")))
                        # Of the condition picture nothing is said, but that it is one.
                        one = replace(entry, picture=entry.condition, texts=(), condition="", shows=True)
                        told.setdefault(fold(beside), []).append(one)
                        entry = replace(entry, condition=str(place.path / entry.condition.replace("\\", "/")))
                    told.setdefault(fold(key), []).append(entry)
    there = {fold(posixpath.join(place.name, file)) for place in places for file in place.files}
    there |= {key for key, entries in told.items() if any(entry.shows for entry in entries)}  # looked for when it is read
    for key, entries in told.items():
        if key not in there:
            problems.append(Problem("{source} names {picture}, but the folder has no such picture.",
                                    {"source": entries[0].source, "picture": shown(entries[0].picture)}, entries[0].source,
                                    warning=True))
    return told


def _describe(place: Place, told: Mapping[str, list[Told]], problems: list[Problem], noted: dict[str, str]) -> list[Picture]:
    """The pictures of a folder with their captions and masks; sizes and digests are still lacking. noted: as in `listing`."""
    beside_pictures = (*MASKS, *CONDITIONS)
    names = [name for name in place.files if name.lower().endswith(EXTENSIONS) and not name.lower().endswith(beside_pictures)]
    names = [name for name in names if not any(entry.shows for entry in told.get(fold(posixpath.join(place.name, name)), ()))]
    masks, conditions = captions.beside(place.files, MASKS), captions.beside(place.files, CONDITIONS)
    beside = captions.beside(place.files)
    nearly = captions.beside(place.files, captions.NEARLY)
    pictures, used, lacking = [], set(), False
    for name in names:
        own = captions.match(name, beside)
        sources = _read_sources(place, own, problems)
        noted.update((source.source, source.texts[0]) for source in sources if source.texts)
        entries = told.get(fold(posixpath.join(place.name, name)), ())
        sources += [entry for entry in entries if entry.texts]
        texts, problem = choose(place, name, sources, captions.match(name, nearly))
        problems += [problem] if problem else []
        mask, shown_with = captions.match(name, masks), captions.match(name, conditions)
        column = next((Path(entry.condition) for entry in entries if entry.condition), None)
        condition = place.path / shown_with[0] if shown_with else column or place.partners.get(fold(os.path.splitext(name)[0]))
        used |= {*own, *mask, *shown_with}
        lacking |= not sources
        pictures.append(Picture(
            file=place.path / name, size=(0, 0), digest="", captions=texts, mask=place.path / mask[0] if mask else None,
            repeats=place.concept.repeats or 0, concept=shown(place.name or place.path.name), class_word=place.class_word,
            name=place.relative(name), trigger=place.concept.trigger, condition=condition))
    problems += _unused(place, used, beside if lacking else {}, masks)
    alone = {name for found in conditions.values() for name in found} - used
    problems += [_lonely(place.relative(name)) for name in sorted(alone)]
    return pictures if place.concept.repeats else []


def _unused(place: Place, used: set[str], beside: Mapping[str, list[str]], masks: Mapping[str, list[str]]) -> list[Problem]:
    """Files that look as if they were meant to count and do not. Texts are only suspect where a caption is missing (`beside`)."""
    problems = [Problem("{file} is not read: pictures are png, jpg, jpeg, webp, bmp or avif. Save it as one of these, "
                        "or remove it.", {"file": place.relative(name)}, place.relative(name), warning=True)
                for name in place.files if name.lower().endswith(OTHER)]
    for name in sorted({name for found in beside.values() for name in found} - used):
        problems.append(Problem("{file} belongs to no picture, so nothing is learned from it. A caption has its picture's name.",
                                {"file": place.relative(name)}, place.relative(name), warning=True))
    for name in sorted({name for found in masks.values() for name in found} - used):
        problems.append(Problem("{file} is a mask without a picture. A mask has its picture's name.",
                                {"file": place.relative(name)}, place.relative(name), warning=True))
    return problems


def _read_sources(place: Place, files: Sequence[str], problems: list[Problem]) -> list[Told]:
    """The texts of caption files; one that cannot be read is a problem, and counts as something said by nobody."""
    said = []
    for file in files:
        name = place.relative(file)
        try:
            said.append(Told(name, (clean(captions.read_file(place.path / file, name)),)))
        except DatasetError as error:
            problems += error.problems
            said.append(Told("", ()))
    return said


def choose(place: Place, name: str, sources: Sequence[Told], nearly: Sequence[str]) -> tuple[tuple[str, ...], Problem | None]:
    """The captions of one picture from all that is said of it, and the problem with that, if any."""
    said = [replace(source, texts=tuple(text for text in source.texts if text)) for source in sources]
    said = [source for source in said if source.texts]
    problem = None
    if not said:
        caption, problem = _caption_for(place, name)
        if problem is None and all(source.source for source in sources):  # a text that cannot be read is told of already
            problem = _without(place, place.relative(name), caption, sources, nearly)
        return (caption,), problem
    for other in said[1:]:
        if other.texts != said[0].texts:
            problem = Problem("{file} has two captions: '{one}' in {first}, and '{two}' in {second}. Keep one of them.",
                              {"file": place.relative(name), "one": _quoted(said[0].texts), "first": said[0].source,
                               "two": _quoted(other.texts), "second": other.source}, place.relative(name))
    trigger = place.concept.trigger
    texts = (captions.with_trigger(captions.fill(text, {"trigger": trigger}), trigger) for text in said[0].texts)
    return tuple(dict.fromkeys(texts)), problem


def _quoted(texts: Sequence[str]) -> str:
    """Captions as a message quotes them: the beginning is enough to know them by."""
    text = " / ".join(texts)
    return text if len(text) <= 80 else text[:77] + "..."


def _caption_for(place: Place, name: str) -> tuple[str, Problem | None]:
    """The caption of a picture without its own: by the template, the folder's name, or 'sks dog' as DreamBooth does it."""
    trigger, template = place.concept.trigger, place.concept.caption
    if template is not None:
        values = {"trigger": place.trigger, "class": place.class_word, "folder": place.title,
                  "name": shown(os.path.splitext(name)[0])}
        for key, setting in (("trigger", "trigger"), ("class", "class_word")):
            if f"[{key}]" in template and values[key] is None:
                return "", Problem("The caption '{caption}' asks for [{key}], but no {setting} is set.",
                                   {"caption": template, "key": key, "setting": setting}, "data.caption")
        return captions.with_trigger(captions.fill(template, values), trigger), None
    if place.numbered:
        return captions.with_trigger(place.numbered, trigger), None
    if place.prior and place.class_word:
        return captions.class_prompt(place.class_word), None
    return " ".join(word for word in (trigger, place.class_word) if word) if trigger else "", None


def _without(place: Place, picture: str, caption: str, sources: Sequence[Told], nearly: Sequence[str]) -> Problem | None:
    """The warning for a picture without a caption of its own; None where one was chosen for all."""
    known = {"file": picture, "caption": caption, "right": os.path.splitext(picture)[0] + captions.EXTENSIONS[0]}
    if sources and caption:
        return Problem("{source} holds no caption, so {file} is trained as '{caption}'. Write one into it, or remove it.",
                       {**known, "source": sources[0].source}, picture, warning=True)
    if sources:
        return Problem("{source} holds no caption, so {file} is trained without one. Write one into it, or set one for all with "
                       "--caption.",
                       {**known, "source": sources[0].source}, picture, warning=True)
    if place.concept.caption is not None or place.numbered:
        return None
    if nearly:
        return Problem("{file} has no caption, for {other} is not read. Rename it to {right}.",
                       {**known, "other": place.relative(nearly[0])}, picture, warning=True)
    if place.prior:
        return None if caption else Problem("{file}, one of the base's own pictures, has no caption. Write {right}, or tell what "
                                            "such pictures show with --class-word.", known, picture, warning=True)
    if caption:
        return Problem("{file} has no caption, so it is trained as '{caption}'. Write {right} or set one for all with --caption.",
                       known, picture, warning=True)
    return Problem("{file} has no caption. Write {right}, set one for all with --caption, or a --trigger.",
                   known, picture, warning=True)


# Files


def _measure(found: Sequence[Picture], masks: bool,
             progress: Callable[[int, int], None] | None) -> tuple[list[Picture], list[Problem]]:
    """The pictures with sizes and digests, less those whose header cannot be read, and what is wrong with these."""
    from .pictures import quietly
    measured: list[Picture] = []
    problems: list[Problem] = []
    with quietly(), ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(lambda picture: _one(picture, masks), found), 1):
            if isinstance(result, Picture):
                measured.append(result)
            else:
                problems += result
            if progress:
                progress(done, len(found))
    return measured, problems


def _one(picture: Picture, masks: bool) -> Picture | list[Problem]:
    """A picture with what its files' bytes tell, or what is wrong with them."""
    from .pictures import digest, header
    try:
        known: Header = header(picture.file, picture.name)
        if picture.condition is not None and picture.condition.is_file():  # where it is missing matters to those who need it
            with picture.condition.open("rb") as stream:
                picture = replace(picture, condition_digest=digest(stream))
        if picture.mask is None or not masks:
            return replace(picture, size=known.size, digest=known.digest, mask=None)
        with picture.mask.open("rb") as stream:
            return replace(picture, size=known.size, digest=known.digest, mask_digest=digest(stream))
    except DatasetError as error:
        return error.problems
    except OSError as error:
        return [Problem("The mask or condition picture of {file} cannot be opened: {reason}.",
                        {"file": picture.name, "reason": reason(error)}, picture.name)]
