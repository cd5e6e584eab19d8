"""Condition pictures: found beside pictures, computed as the hosts compute them, and moved exactly as their pictures are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aprendiz.__main__ import main
from aprendiz.data import annotators
from aprendiz.data.cache import Cache, Cut
from aprendiz.data.conditions import COMPUTED, Recipe, canny, compute, edge_f1
from aprendiz.data.folder import Picture, scan
from aprendiz.data.maps import Maps, check, condition_of, numbers
from aprendiz.data.pictures import fit
from aprendiz.errors import ProblemsError
from aprendiz.settings import DataSettings

Note = Callable[[str, object], None]
FILES = Recipe(kind="other", source="files")


def waves(width: int = 80, height: int = 96, shift: int = 0) -> np.ndarray:
    """A picture full of edges in every direction."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * x + 3 * y * y) // 40 % 256, x * y // 7 % 256, (x * 3 + shift) % 256], -1).astype(np.uint8)


def save(file: Path, pixels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def pair(folder: Path, condition: np.ndarray | None = None, picture: np.ndarray | None = None) -> list[Picture]:
    """A folder of one picture with its condition picture, as scanned."""
    save(folder / "a.png", waves() if picture is None else picture)
    if condition is not None:
        save(folder / "a.cond.png", condition)
    return list(scan(DataSettings(path=str(folder), caption="x")).pictures)


# Computed


def test_canny_is_opencvs_to_the_pixel() -> None:
    # Made once with OpenCV 5.0: cv2.Canny(waves(), 100, 200).
    found = canny(waves())[..., 0] > 0
    assert int(found.sum()) == 404
    digest = hashlib.sha256(np.packbits(found).tobytes()).hexdigest()
    assert digest == "e4f25a3e502318c0cbc8ac516e3797e72934084c49e9bdaffcf6f828d4477eca"


def test_canny_draws_one_line_where_two_areas_meet_and_none_elsewhere() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, 12:] = 255
    lines = canny(picture)[..., 0]
    assert (lines.sum(1) == 255).all()
    assert np.flatnonzero(lines[5]).item() in (11, 12)
    assert not canny(np.full((20, 30, 3), 90, np.uint8)).any()


def test_weak_edges_count_only_where_they_lead_to_strong_ones() -> None:
    picture = np.zeros((60, 40, 3), np.uint8)
    picture[:, 20:] = np.linspace(10, 90, 60, dtype=np.uint8)[:, None, None]  # an edge that grows stronger downwards
    lonely = picture.copy()
    lonely[20:] = lonely[19]  # it never becomes strong
    lines = canny(picture, 60, 200)[..., 0] > 0
    assert lines[18].any() and not lines[0].any()
    assert not canny(lonely, 60, 200).any()


@pytest.mark.parametrize("kind", COMPUTED)
def test_every_computed_kind_gives_a_picture_of_the_same_size_always_the_same(kind: str) -> None:
    made = compute(waves(70, 50), Recipe(kind=kind), "seed")
    assert made.shape == (50, 70, 4 if kind == "inpaint" else 3) and made.dtype == np.uint8
    assert np.array_equal(made, compute(waves(70, 50), Recipe(kind=kind), "seed"))
    assert made[..., :3].max() > 0 and not np.array_equal(made[..., :3], waves(70, 50))


def test_what_inpainting_hides_is_minus_one_to_the_network_and_the_rest_is_the_picture() -> None:
    made = compute(waves(), Recipe(kind="inpaint"), "seed")
    hidden = made[..., 3] == 0
    assert 0.02 < hidden.mean() < 0.9
    told = numbers(torch.from_numpy(made).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert (told[hidden] == -1).all()
    assert np.allclose(told[~hidden] * 255, waves()[~hidden])
    assert not np.array_equal(made, compute(waves(), Recipe(kind="inpaint"), "another seed"))


def test_lines_are_widened_by_as_much_as_is_asked() -> None:
    thin = compute(waves(), Recipe(), "")
    thick = compute(waves(), Recipe(thickness=1), "")
    padded = np.pad(thin[..., 0], 1)
    around = [padded[1 + dy:97 + dy, 1 + dx:81 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert np.array_equal(thick[..., 0], np.maximum.reduce(around))


def test_edge_agreement_is_one_for_the_same_lines_zero_for_others_and_forgives_two_pixels() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[10] = 255
    assert edge_f1(picture, picture) == 1
    assert edge_f1(picture, np.roll(picture, 2, 0)) == 1
    assert edge_f1(picture, np.roll(picture, 3, 0)) == 0
    assert edge_f1(picture, np.zeros_like(picture)) == 0


# Moved with their pictures


@pytest.mark.parametrize("flip", (False, True))
@pytest.mark.parametrize("bucket", ((80, 64), (64, 96), (48, 96)))
def test_crops_and_mirrors_move_picture_and_condition_alike_to_the_pixel(
        tmp_path: Path, bucket: tuple[int, int], flip: bool) -> None:
    settings = DataSettings(crop="random")
    picture, = pair(tmp_path, 255 - waves())
    for at in ((0.0, 0.0), (0.37, 0.81), (1.0, 1.0)):
        cut = Cut(picture, bucket, at, flip)
        cropped = fit(waves(), None, bucket, "random", at)[0]
        wanted = 255 - (cropped[:, ::-1] if flip else cropped)
        maps = Maps(FILES, settings, Cache(None))
        assert np.array_equal(maps.of(cut).permute(1, 2, 0).numpy(), wanted)


def test_a_picture_that_keeps_its_size_is_cut_and_not_scaled_and_its_condition_with_it(tmp_path: Path) -> None:
    picture, = pair(tmp_path, 255 - waves())
    width, height = picture.size
    bucket = (width - 5, height - 3)
    kept, _, told = fit(waves(), None, bucket, "center", (0.5, 0.5), resize=False)
    assert np.array_equal(kept, waves()[told.crop[1]:told.crop[1] + bucket[1], told.crop[0]:told.crop[0] + bucket[0]])
    made = condition_of(Cut(picture, bucket, resize=False), DataSettings(resize=False), FILES)
    assert np.array_equal(made, 255 - kept)
    assert fit(waves(), None, (2 * width, height), "center", (0.5, 0.5), resize=False)[0].shape == (height, 2 * width, 3)


@pytest.mark.parametrize("bucket", ((64, 64), (128, 64), (160, 192)))
def test_resizing_leaves_no_shift_between_picture_and_condition(tmp_path: Path, bucket: tuple[int, int]) -> None:
    """A mask goes with its picture's pixels; as a condition picture the same file goes the same way."""
    grey = np.repeat(waves()[..., :1], 3, -1)
    picture, = pair(tmp_path, grey)
    wanted = fit(waves(), grey[..., 0], bucket, "random", (0.3, 0.9))[1]
    made = condition_of(Cut(picture, bucket, (0.3, 0.9)), DataSettings(crop="random"), FILES)
    assert wanted is not None and np.array_equal(made[..., 0], wanted)


def test_a_computed_condition_is_that_of_the_picture_as_it_is_cut(tmp_path: Path) -> None:
    picture, = pair(tmp_path)
    maps, cut = Maps(Recipe(), DataSettings(crop="random"), Cache(tmp_path / "cache")), Cut(picture, (64, 64), (0.2, 0.7), True)
    wanted = canny(fit(waves(), None, (64, 64), "random", (0.2, 0.7))[0])[:, ::-1]
    assert np.array_equal(maps.of(cut)[0].numpy(), wanted[..., 0])
    again = Maps(Recipe(), DataSettings(crop="random"), Cache(tmp_path / "cache"))
    again.fill([cut], lambda done, of: None)
    assert torch.equal(again.of(cut), maps.of(cut)) and again.cache.hits == 1 and again.cache.made == 0
    assert again.batch([cut, cut]).shape == (2, 3, 64, 64)


# Found


def test_all_three_ways_of_pairing_find_the_same_pairs_and_no_condition_is_a_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "one" / f"{name}.png", waves())
        save(tmp_path / "one" / f"{name}.cond.png", canny(waves()))
        save(tmp_path / "two" / "images" / "x" / f"{name}.png", waves())
        save(tmp_path / "two" / "conditions" / "x" / f"{name}.webp", canny(waves()))
        save(tmp_path / "three" / f"{name}.png", waves())
        save(tmp_path / "three" / "shown" / f"{name}.png", canny(waves()))
        with (tmp_path / "three" / "metadata.jsonl").open("a", encoding="utf-8") as lines:
            told = {"file_name": f"{name}.png", "conditioning_image": f"shown/{name}.png", "text": "waves"}
            lines.write(json.dumps(told) + "\n")
    for folder in ("one", "two", "three"):
        found = scan(DataSettings(path=str(tmp_path / folder), caption="x"))
        assert [picture.file.stem for picture in found.pictures] == ["a", "b"], folder
        assert all(one.condition and one.condition.is_file() and one.condition_digest for one in found.pictures), folder
        assert [problem for problem in found.problems if not problem.warning] == []
        assert check(found.pictures, FILES) == []


def test_another_condition_picture_is_another_dataset(tmp_path: Path) -> None:
    pair(tmp_path, canny(waves()))
    before = scan(DataSettings(path=str(tmp_path))).digest
    pair(tmp_path, 255 - waves())
    assert scan(DataSettings(path=str(tmp_path))).digest != before


# Wrong


def test_condition_pictures_that_say_nothing_are_told_of_before_anything_loads(tmp_path: Path, answers: Note) -> None:
    inverted = 255 - waves()
    given = {
        "none at all": pair(tmp_path / "a"),
        "the picture itself": pair(tmp_path / "b", waves()),
        "the picture's pixels, saved anew": pair(tmp_path / "c", np.dstack([waves(), np.full((96, 80), 255, np.uint8)])),
        "all black": pair(tmp_path / "d", np.zeros_like(inverted)),
        "of another shape": pair(tmp_path / "e", inverted[:60]),
    }
    words = {"none at all": "No picture has a condition picture", "the picture itself": "the same as its picture",
             "the picture's pixels, saved anew": "the same as its picture", "all black": "all black",
             "of another shape": "is 80 x 60 pixels"}
    for what, pictures in given.items():
        problem, = check(pictures, FILES)
        assert words[what] in str(problem) and not problem.warning
        answers(f"condition pictures: {what}", problem)


def test_unpaired_and_missing_condition_pictures_are_named(tmp_path: Path, answers: Note) -> None:
    pair(tmp_path, 255 - waves())
    save(tmp_path / "b.png", waves(shift=9))
    save(tmp_path / "c.png", waves(shift=18))
    told = {"file_name": "c.png", "conditioning_image": "gone.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(told), encoding="utf-8")
    unpaired, missing = check(scan(DataSettings(path=str(tmp_path), caption="x")).pictures, Recipe(kind="canny", source="auto"))
    assert "b.png has no condition picture, but 2 others have" in str(unpaired)
    assert "gone.png" in str(missing) and "is not there" in str(missing)
    answers("a condition picture for some pictures only", unpaired)
    answers("metadata.jsonl names a condition picture that is missing", missing)


def test_a_condition_picture_without_a_picture_is_warned_of(tmp_path: Path, answers: Note) -> None:
    save(tmp_path / "a.png", waves())
    save(tmp_path / "z.cond.png", canny(waves()))
    found = scan(DataSettings(path=str(tmp_path), caption="x"))
    problems = [problem for problem in found.problems if "without a picture" in str(problem)]
    assert len(problems) == 1 and problems[0].warning
    answers("a condition picture without a picture", problems[0])


def test_a_condition_picture_of_another_size_is_brought_to_its_pictures_with_a_warning(tmp_path: Path) -> None:
    picture, = pair(tmp_path, np.asarray(Image.fromarray(255 - waves()).resize((160, 192))))
    problem, = check([picture], FILES)
    assert problem.warning and "brought to that size" in str(problem)
    made = condition_of(Cut(picture, (80, 96)), DataSettings(), FILES)
    assert np.abs(made.astype(int) - (255 - waves())).mean() < 12


# Drawn by models


def test_a_kind_that_needs_a_model_names_the_folder_and_the_files_that_it_lacks(tmp_path: Path, answers: Note) -> None:
    for kind in annotators.KINDS:
        unnamed, = annotators.problems(Recipe(kind=kind))
        lacking, = annotators.problems(Recipe(kind=kind, annotators=str(tmp_path)))
        assert "--annotators" in str(unnamed)
        assert str(tmp_path) in str(lacking) and annotators.KINDS[kind].files[0] in str(lacking)
        with pytest.raises(ProblemsError):
            compute(waves(), Recipe(kind=kind, annotators=str(tmp_path)), "")
    answers("--kind openpose without a folder of models", unnamed)
    answers("--kind openpose with an empty folder", lacking)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_depth_and_segments_come_from_models_in_a_local_folder(tmp_path: Path) -> None:
    from transformers import (
        GLPNConfig,
        GLPNForDepthEstimation,
        GLPNImageProcessor,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )
    torch.manual_seed(0)
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1], "decoder_hidden_size": 8}
    GLPNForDepthEstimation(GLPNConfig(**sizes)).save_pretrained(tmp_path / "depth")
    GLPNImageProcessor().save_pretrained(tmp_path / "depth")
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=7)).save_pretrained(tmp_path / "seg")
    SegformerImageProcessor().save_pretrained(tmp_path / "seg")
    for kind in ("depth", "seg"):
        recipe = Recipe(kind=kind, annotators=str(tmp_path))
        assert annotators.problems(recipe) == []
        made = compute(waves(96, 64), recipe, "")
        assert made.shape == (64, 96, 3) and made.dtype == np.uint8 and made.max() > 0


def test_classes_have_colours_far_apart() -> None:
    colours = annotators.palette(150)
    assert len({tuple(colour) for colour in colours.tolist()}) == 150


# From the command line


def test_control_maps_makes_what_is_missing_and_shows_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        save(tmp_path / "images" / f"{number}.png", np.roll(waves(), 9 * number, 1))
    command = ["control-maps", str(tmp_path / "images"), "--out", str(tmp_path / "conditions"), "--json"]
    assert main(command) == 0
    first = tmp_path / "conditions" / "0.png"
    with Image.open(first) as made:
        assert np.array_equal(np.asarray(made), canny(waves()))
    (tmp_path / "conditions" / "1.png").unlink()
    stamp = first.stat().st_mtime_ns
    assert main(command) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[3]["made"] == 3 and told[-1]["made"] == 1 and told[-1]["there"] == 2
    assert first.stat().st_mtime_ns == stamp
    with Image.open(told[-1]["sheet"]) as sheet:
        assert sheet.width > 2 * 80
    found = scan(DataSettings(path=str(tmp_path), caption="x"))
    assert len(found.pictures) == 3 and check(found.pictures, Recipe(source="files")) == []


@pytest.mark.parametrize(("arguments", "sentence"), (
    (["--kind", "cany"], "It can be: canny"), (["--thickness", "many"], "takes a number"), (["--kind", "mlsd"], "--annotators")))
def test_wrong_arguments_of_control_maps_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: Note,
                                                          arguments: list[str], sentence: str) -> None:
    save(tmp_path / "a.png", waves())
    assert main(["control-maps", str(tmp_path), *arguments]) == 1
    told = capsys.readouterr().err.strip()
    assert sentence in told and "\n" not in told
    answers(f"control-maps {' '.join(arguments)}", told)
