"""control-maps: condition pictures for a ControlNet, made from a folder of pictures."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..data.folder import SHEET as SHEET_NAME
from ..errors import DatasetError, ProblemsError, SettingsError
from ..settings import DataSettings
from ..texts import say
from ..views.terminal import Screen, own_output, put, put_json

if TYPE_CHECKING:
    from ..data.conditions import Recipe
    from ..data.folder import Picture

PAIRS = 12  # shown on the sheet
SHOWN = 512  # pixels of a picture's longer side on the sheet


@dataclass(frozen=True)
class Made:
    """A picture and where its condition picture goes. there: it lies there already."""

    picture: Picture
    file: Path
    there: bool


def control_maps(asked: argparse.Namespace) -> int:
    """Make what is not there yet, tell where it is, and show some of it."""
    recipe = read_recipe(asked)
    folder = Path(asked.folder)
    planned = plan(folder, asked.out)
    missing = [one for one in planned if not one.there]
    with own_output() as stream:
        screen = Screen(stream, asked.json)
        for done, one in enumerate(missing, 1):
            make(one, recipe)
            if asked.json:
                put_json({"file": str(one.file)})
            else:
                screen.progress(say("Condition pictures"), done, len(missing))
        screen.close()
    pairs = sheet_of(planned, asked.out or folder, recipe.kind)
    if asked.json:
        put_json({"made": len(missing), "there": len(planned) - len(missing), "sheet": str(pairs)})
        return 0
    there = len(planned) - len(missing)
    put(say("{made} condition pictures were made; {there} were there already.", made=len(missing), there=there))
    put(say("Written: {file}", file=str(pairs)))
    return 0


def read_recipe(asked: argparse.Namespace) -> Recipe:
    """What is to be made. Raises SettingsError, ProblemsError with what a kind lacks."""
    from ..data.annotators import KINDS, problems
    from ..data.conditions import COMPUTED, Recipe
    if asked.kind not in (*COMPUTED, *KINDS):
        raise SettingsError("{name} is '{value}'. It can be: {choices}.", name="kind", value=asked.kind,
                            choices=", ".join((*COMPUTED, *KINDS)))
    recipe = Recipe(kind=asked.kind, source="computed", low=number(asked.canny_low, "canny-low"),
                    high=number(asked.canny_high, "canny-high"), thickness=int(number(asked.thickness, "thickness", most=8)),
                    annotators=None if asked.annotators is None else str(asked.annotators))
    found = problems(recipe)
    if found:
        raise ProblemsError(found)
    return recipe


def number(text: str, name: str, most: int = 100_000) -> float:
    """A number that is not negative. Raises SettingsError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise SettingsError("{name} is '{value}'. It takes a number from 0 to {most}.", name=name, value=text, most=most)
    return value


def plan(folder: Path, out: Path | None) -> list[Made]:
    """Every picture with the file of its condition picture: beside it as name.cond.png, or under the same name in `out`.

    Raises DatasetError where there are no pictures.
    """
    from ..data.folder import scan
    found = scan(DataSettings(path=str(folder), masks=False))
    if not found.pictures:
        raise DatasetError("{folder} has no pictures that can be read. Put png, jpg, webp, bmp or avif files into it, "
                           "or name another folder.", folder=str(folder), where="folder")
    planned = []
    for picture in found.pictures:
        if out is None:
            file = picture.condition or picture.file.with_name(f"{picture.file.stem}.cond.png")
        else:
            file = out / PurePosixPath(picture.name).with_suffix(".png")
        planned.append(Made(picture, file, file.is_file()))
    return planned


def make(one: Made, recipe: Recipe) -> None:
    """Write one condition picture, of its picture's size. Raises AprendizError."""
    from PIL import Image

    from ..data.conditions import compute
    from ..data.pictures import read
    from ..formats import png
    rgb, _ = read(one.picture, DataSettings())
    png.save_over(Image.fromarray(compute(rgb, recipe, one.picture.digest)), one.file)


def sheet_of(planned: list[Made], beside: Path, kind: str) -> Path:
    """A sheet of some pairs, under a name that no dataset takes for a picture."""
    from ..evaluate.grid import Card, grid
    from ..formats import png
    chosen = planned[::max(1, -(-len(planned) // PAIRS))]
    cards = [Card(one.picture.name, (small(one.picture.file), small(one.file))) for one in chosen]
    return png.save_over(grid(cards, (say("picture"), kind), beside.absolute().name), beside / SHEET_NAME)


def small(file: Path) -> Any:
    """A picture as shown on the sheet."""
    from PIL import Image, ImageOps
    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    picture.thumbnail((SHOWN, SHOWN))
    return picture
