"""The dataset folder: what is found, what is said of it, and what is passed over."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from aprendiz.data import captions
from aprendiz.data.folder import Dataset, Picture, held_out, scan
from aprendiz.errors import DatasetError
from aprendiz.settings import DataSettings


def paint(file: Path, shade: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """A small real picture; each shade has other bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256, 7)).save(file)
    return file


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def look(folder: Path, **settings: object) -> Dataset:
    return scan(DataSettings(path=str(folder), **settings))  # type: ignore[arg-type]


def by_name(dataset: Dataset) -> dict[str, Picture]:
    return {picture.name: picture for picture in dataset.pictures}


def said(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {picture.name: picture.captions for picture in dataset.pictures}


def told(dataset: Dataset, warnings: bool = True) -> list[str]:
    return [problem.english for problem in dataset.problems if warnings or not problem.warning]


def test_every_kind_of_picture_is_found_in_any_case(tmp_path: Path) -> None:
    for shade, name in enumerate(["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp", "f.PNG"]):
        paint(tmp_path / name, shade)
    assert list(by_name(look(tmp_path, caption="x"))) == ["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp", "f.PNG"]


def test_a_picture_of_a_kind_that_is_not_read_is_warned_of(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.TIFF")
    dataset = look(tmp_path, caption="x")
    assert list(by_name(dataset)) == ["a.png"]
    assert told(dataset) == ["b.TIFF is not read: pictures are png, jpg, jpeg, webp, bmp or avif. Save it as one of these, "
                             "or remove it."]


def test_captions_come_from_txt_caption_and_metadata(tmp_path: Path) -> None:
    for shade, name in enumerate(["a.png", "b.png", "c.png", "sub/d.png", "e.png"]):
        paint(tmp_path / name, shade)
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "b.caption", "two")
    write(tmp_path / "metadata.jsonl", '{"file_name": "c.png", "text": "three"}\n\n'
                                       '{"file_name": "sub/d.png", "caption": "four"}\n'
                                       '{"file_name": ".\\\\E.PNG", "text": ["five", "fünf", "five"]}\n')
    dataset = look(tmp_path)
    assert dataset.problems == ()
    assert said(dataset) == {"a.png": ("one",), "b.png": ("two",), "c.png": ("three",), "sub/d.png": ("four",),
                             "e.png": ("five", "fünf")}


def test_captions_match_whatever_the_case_and_the_way_accents_are_written(tmp_path: Path) -> None:
    paint(tmp_path / "IMG.JPG", 1)
    paint(tmp_path / "caf\u00e9.png", 2)
    paint(tmp_path / "full.png", 3)
    write(tmp_path / "img.TXT", "one")
    write(tmp_path / "cafe\u0301.txt", "two")
    write(tmp_path / "full.png.txt", "three")
    assert said(look(tmp_path)) == {"IMG.JPG": ("one",), "caf\u00e9.png": ("two",), "full.png": ("three",)}


def test_the_caption_in_the_pictures_own_case_is_preferred(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    write(tmp_path / "a.txt", "lower")
    write(tmp_path / "A.txt", "upper")
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("this file system does not tell case apart")
    paint(tmp_path / "A.png", 2)
    dataset = look(tmp_path)
    assert said(dataset) == {"A.png": ("upper",), "a.png": ("lower",)}
    assert dataset.problems == ()


def test_a_caption_is_one_line_of_what_can_be_seen(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("\ufeff  a\tred   dog,\r\n on\u3000grass \r\n\r\n".encode())
    paint(tmp_path / "b.png", 1)
    write(tmp_path / "metadata.jsonl", r'{"file_name": "b.png", "text": "half \ud83d of\u0000 a\u200b\u001f face \ud83d\udc36"}')
    assert said(look(tmp_path)) == {"a.png": ("a red dog, on grass",), "b.png": ("half ? of a face 🐶",)}


def test_two_captions_that_differ_are_an_error_and_two_alike_are_none(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "b.png", 2)
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, "a dog")
    write(tmp_path / "a.caption", "a dog \n")
    write(tmp_path / "b.caption", "a cat")
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "text": "a  dog"}')
    dataset = look(tmp_path)
    assert told(dataset) == ["b.png has two captions: 'a cat' in b.caption, and 'a dog' in b.txt. Keep one of them."]
    assert [(problem.where, problem.warning) for problem in dataset.problems] == [("b.png", False)]


@pytest.mark.parametrize(("data", "words"), [
    ("a dög".encode("utf-16"), "is written in UTF-16"),
    ("a dög".encode("utf-16-be"), "is written in UTF-16"),
    ("a dög".encode("utf-32"), "is written in UTF-32"),
    ("a dög".encode("cp1252"), "is not UTF-8: its byte 4 (0xf6)"),
])
def test_a_caption_of_another_encoding_is_an_error_that_names_it(tmp_path: Path, data: bytes, words: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    dataset = look(tmp_path)
    assert len(dataset.problems) == 1 and not dataset.problems[0].warning
    assert told(dataset)[0].startswith(f"a.txt {words}") and told(dataset)[0].endswith("Save it again as UTF-8.")


def test_missing_and_empty_captions_are_warned_of_each_with_its_remedy(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "sub/b.png", 2)
    write(tmp_path / "sub/b.txt", " \n")
    dataset = look(tmp_path)
    assert told(dataset) == ["a.png has no caption. Write a.txt, set one for all with --caption, or a --trigger.",
                             "sub/b.txt holds no caption, so sub/b.png is trained without one. Write one into it, or set one for "
                             "all with --caption."]
    assert all(problem.warning for problem in dataset.problems)
    assert said(dataset) == {"a.png": ("",), "sub/b.png": ("",)}
    dataset = look(tmp_path, trigger="sks", class_word="dog")
    assert said(dataset) == {"a.png": ("sks dog",), "sub/b.png": ("sks dog",)}
    assert told(dataset)[0] == ("a.png has no caption, so it is trained as 'sks dog'. "
                                "Write a.txt or set one for all with --caption.")


def test_a_caption_under_a_wrong_name_is_not_silently_ignored(tmp_path: Path) -> None:
    for shade, name in enumerate(["a.png", "b.png", "c.png"]):
        paint(tmp_path / name, shade)
    write(tmp_path / "a.txt.txt", "one")
    write(tmp_path / "b.tags", "two")
    write(tmp_path / "c_.txt", "three")
    problems = told(look(tmp_path))
    assert "a.png has no caption, for a.txt.txt is not read. Rename it to a.txt." in problems
    assert "b.png has no caption, for b.tags is not read. Rename it to b.txt." in problems
    assert "c_.txt belongs to no picture, so nothing is learned from it. A caption has its picture's name." in problems


def test_pictures_of_the_bases_own_are_captioned_with_what_kind_of_thing_they_show(tmp_path: Path) -> None:
    for shade, name in enumerate(["a.png", "b.png", "cats/c.png", "1_bird/d.png"]):
        paint(tmp_path / name, shade)
    write(tmp_path / "b.txt", "a dog in the snow")
    write(tmp_path / "cats/concept.json", '{"class_word": "cat"}')
    dataset = scan(DataSettings(path=str(tmp_path), class_word="dog"), prior=True)
    assert said(dataset) == {"1_bird/d.png": ("bird",), "a.png": ("a photo of a dog",), "b.png": ("a dog in the snow",),
                             "cats/c.png": ("a photo of a cat",)}
    assert told(dataset) == []


def test_pictures_of_the_bases_own_without_a_word_for_them_are_warned_of(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    dataset = scan(DataSettings(path=str(tmp_path)), prior=True)
    assert said(dataset) == {"a.png": ("",)}
    assert told(dataset) == ["a.png, one of the base's own pictures, has no caption. Write a.txt, or tell what such pictures "
                             "show with --class-word."]


def test_other_texts_are_left_alone_where_no_caption_is_missing(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    write(tmp_path / "a.txt", "a dog")
    write(tmp_path / "readme.txt", "where these pictures come from")
    assert look(tmp_path).problems == ()


def test_the_template_fills_in_trigger_class_folder_and_name(tmp_path: Path) -> None:
    paint(tmp_path / "3_red vases/blue jug.png")
    dataset = look(tmp_path, trigger="sks", class_word="vase", caption="[trigger] [class], [folder]: [name]")
    assert said(dataset) == {"3_red vases/blue jug.png": ("sks vase, red vases: blue jug",)}
    assert dataset.problems == ()


def test_a_template_that_asks_for_what_is_not_set_is_one_error(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "b.png", 2)
    dataset = look(tmp_path, caption="a photo of [trigger]")
    assert told(dataset, warnings=False) == ["The caption 'a photo of [trigger]' asks for [trigger], but no trigger is set."]
    assert dataset.problems[0].where == "data.caption"


@pytest.mark.parametrize(("caption", "expected"), [
    ("a dog", "sks, a dog"), ("a SKS dog", "a SKS dog"), ("sks", "sks"), ("masks on a wall", "sks, masks on a wall"),
    ("sks_2 dog", "sks, sks_2 dog"), ("(sks:1.2) dog", "(sks:1.2) dog"), ("a [trigger] dog", "a sks dog"),
])
def test_the_trigger_is_put_before_captions_that_lack_it_as_a_word(tmp_path: Path, caption: str, expected: str) -> None:
    paint(tmp_path / "a.png")
    write(tmp_path / "a.txt", caption)
    assert said(look(tmp_path, trigger=" sks ")) == {"a.png": (expected,)}


def test_numbered_folders_repeat_and_name_their_pictures(tmp_path: Path) -> None:
    paint(tmp_path / "10_sks dog/a.png", 1)
    paint(tmp_path / "10_sks dog/b.png", 2)
    paint(tmp_path / "10_sks dog/deeper/c.png", 3)
    paint(tmp_path / "2024_summer/d.png", 4)
    write(tmp_path / "10_sks dog/b.txt", "on grass")
    write(tmp_path / "2024_summer/d.txt", "a beach")
    dataset = look(tmp_path, repeats=3)
    assert dataset.problems == ()
    assert {p.name: (p.captions[0], p.repeats, p.concept, p.class_word) for p in dataset.pictures} == {
        "10_sks dog/a.png": ("sks dog", 10, "10_sks dog", "dog"),
        "10_sks dog/b.png": ("on grass", 10, "10_sks dog", "dog"),
        "10_sks dog/deeper/c.png": ("sks dog", 10, "10_sks dog/deeper", "dog"),
        "2024_summer/d.png": ("a beach", 3, "2024_summer", None)}


def test_a_folder_shown_0_times_is_left_out_with_a_warning(tmp_path: Path) -> None:
    paint(tmp_path / "0_old/a.png", 1)
    paint(tmp_path / "1_new/b.png", 2)
    dataset = look(tmp_path)
    assert list(by_name(dataset)) == ["1_new/b.png"]
    assert told(dataset) == ["The name of 0_old says that its pictures are shown 0 times, so they are left out. "
                             "Let it begin with 1_ to show them."]


def test_concepts_have_their_own_trigger_class_caption_and_repeats(tmp_path: Path) -> None:
    for shade, name in enumerate(["a.png", "alice/b.png", "alice/deeper/c.png", "5_bob man/d.png"]):
        paint(tmp_path / name, shade)
        write((tmp_path / name).with_suffix(".txt"), "smiling")
    write(tmp_path / "alice/concept.json", '{"trigger": "alc", "class_word": "woman", "repeats": 7}')
    write(tmp_path / "5_bob man/concept.json", '{"trigger": "bb"}')
    dataset = look(tmp_path, trigger="sks", class_word="thing")
    assert {p.name: (p.captions[0], p.trigger, p.class_word, p.repeats) for p in dataset.pictures} == {
        "a.png": ("sks, smiling", "sks", "thing", 1), "alice/b.png": ("alc, smiling", "alc", "woman", 7),
        "alice/deeper/c.png": ("alc, smiling", "alc", "woman", 7), "5_bob man/d.png": ("bb, smiling", "bb", "thing", 5)}


@pytest.mark.parametrize(("text", "expected"), [
    ('{"triger": "x"}', "There is no setting 'sub/concept.json.triger'. Did you mean 'trigger'?"),
    ('{"repeats": 0}', "sub/concept.json.repeats is 0. It must lie between 1 and 10000."),
    ('{"repeats": "many"}', "sub/concept.json.repeats is 'many', but it takes a whole number, or nothing for off."),
    ("[]", 'sub/concept.json must be an object such as {"trigger": "sks", "class_word": "dog", "repeats": 10}.'),
    ("{", "sub/concept.json is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))."),
])
def test_a_bad_concept_file_is_an_error(tmp_path: Path, text: str, expected: str) -> None:
    paint(tmp_path / "sub/a.png")
    write(tmp_path / "sub/concept.json", text)
    assert told(look(tmp_path, caption="x"), warnings=False) == [expected]


@pytest.mark.parametrize(("line", "expected", "warning"), [
    ("{", "Line 2 of metadata.jsonl is no JSON (", False),
    ('{"text": "x"}', "Line 2 of metadata.jsonl names no picture.", False),
    ('{"file_name": "a.png", "text": 5}', "Line 2 of metadata.jsonl has a caption that is neither a text nor a list of", False),
    ('{"file_name": "Gone.png", "text": "x"}', "metadata.jsonl:2 names Gone.png, but the folder has no such picture.", True),
    ('{"file_name": "a.png", "text": "another"}',
     "a.png has two captions: 'a dog' in metadata.jsonl:1, and 'another' in metadata.jsonl:2. Keep one of them.", False),
])
def test_a_bad_line_of_metadata_is_named_by_its_number(tmp_path: Path, line: str, expected: str, warning: bool) -> None:
    paint(tmp_path / "a.png")
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "text": "a dog"}\n' + line)
    dataset = look(tmp_path)
    assert [(problem.english[:len(expected)], problem.warning) for problem in dataset.problems] == [(expected, warning)]


def test_masks_are_no_pictures_and_belong_to_theirs(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "b.jpg", 2)
    paint(tmp_path / "B.Mask.PNG", 3)
    paint(tmp_path / "lost.mask.png", 4)
    dataset = look(tmp_path, caption="x")
    assert {p.name: p.mask and p.mask.name for p in dataset.pictures} == {"a.png": None, "b.jpg": "B.Mask.PNG"}
    assert told(dataset) == ["lost.mask.png is a mask without a picture. A mask has its picture's name."]
    without = look(tmp_path, caption="x", masks=False)
    assert [p.mask for p in without.pictures] == [None, None] and without.digest != dataset.digest


def test_hidden_files_and_what_systems_leave_behind_are_passed_over(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    for name in (".hidden.png", "__MACOSX/b.png", ".aprendiz/c.png", "@eaDir/d.png", "._a.png"):
        paint(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    dataset = look(tmp_path, caption="x")
    assert list(by_name(dataset)) == ["a.png"] and dataset.problems == ()


def test_samples_of_a_run_inside_the_folder_are_not_learned(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "output/aprendiz/sks/samples/step-000200-0.png")
    for name in ("job.json", "events.jsonl"):
        write(tmp_path / "output/aprendiz/sks" / name, "{}")
    assert list(by_name(look(tmp_path, caption="x"))) == ["a.png"]


def test_links_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    paint(tmp_path / "sub/a.png")
    try:
        (tmp_path / "sub/again").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
        (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("links cannot be made here")
    dataset = look(tmp_path, caption="x")
    assert list(by_name(dataset)) == ["sub/a.png"]
    assert sorted(text.split(":")[0] for text in told(dataset)) == ["gone.png cannot be opened", "self.png cannot be opened"]


@pytest.mark.parametrize("name", ["日本語 写真.png", "naïve – “quotes” 🐕.png", "a" * 200 + ".png", "two.dots.v2.png",
                                  " spaced .png", "%s {file}.png"])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    paint(tmp_path / name)
    dataset = look(tmp_path)
    assert list(by_name(dataset)) == [name]
    assert told(dataset)[0].startswith(f"{name} has no caption.")
    write((tmp_path / name).with_suffix(".txt"), "a dog")
    assert said(look(tmp_path)) == {name: ("a dog",)}


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="these systems take only names that are text")
def test_a_name_that_is_no_text_can_still_be_told_of(tmp_path: Path) -> None:
    paint(tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    dataset = look(tmp_path, caption="[name]")
    assert said(dataset) == {"caf?.png": ("caf?",)}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no folder .*nowhere. Name the folder"):
        look(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="is a file. Name the folder"):
        look(paint(tmp_path / "a.png"))
    with pytest.raises(DatasetError, match="There is no folder"):
        look(tmp_path / ("n" * 300))
    with pytest.raises(DatasetError, match="No pictures were given"):
        scan(DataSettings())


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a dog")
    dataset = look(tmp_path)
    assert dataset.pictures == ()
    assert told(dataset, warnings=False) == [
        f"{tmp_path} has no pictures that can be read. Put png, jpg, webp, bmp or avif files into it, or name another folder."]


def test_what_is_no_picture_is_an_error_and_left_out(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("<html>404</html>", encoding="utf-8")
    dataset = look(tmp_path, caption="x")
    assert list(by_name(dataset)) == ["a.png"]
    assert told(dataset, warnings=False) == [
        "b.png is empty: it has no bytes. Copy it again, or remove it.",
        "c.png is no picture that can be read, whatever its name says. Save it anew as PNG or JPEG, or remove it."]


def test_the_digest_is_of_the_content_wherever_and_in_whatever_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two/deep"
    for shade, name in enumerate(["a.png", "b.png", "c.png"]):
        paint(one / name, shade)
        write((one / name).with_suffix(".txt"), f"number {shade}")
    paint(one / "a.mask.png", 9)
    first = look(one)
    shutil.copytree(one, two)
    assert look(two).digest == first.digest
    for old, new in (("a.png", "z.png"), ("a.txt", "z.txt"), ("a.mask.png", "z.mask.png")):
        (two / old).rename(two / new)
    assert look(two).digest == first.digest
    seen = {first.digest}
    for change in (lambda: write(two / "b.txt", "another"), lambda: paint(two / "z.mask.png", 10),
                   lambda: paint(two / "c.png", 77), lambda: (two / "b.png").unlink()):
        change()
        seen.add(look(two).digest)
    assert len(seen) == 5
    assert look(one, repeats=2).digest != first.digest


def test_the_held_out_share_is_chosen_by_content_alone(tmp_path: Path) -> None:
    for shade in range(20):
        paint(tmp_path / f"{shade:02}.png", shade)
    kept = {p.digest for p in look(tmp_path, caption="x", validation_share=0.3).pictures if p.validation}
    assert len(kept) == 6
    for shade in range(20):
        (tmp_path / f"{shade:02}.png").rename(tmp_path / f"x{99 - shade}.png")
    assert {p.digest for p in look(tmp_path, caption="x", validation_share=0.3).pictures if p.validation} == kept
    paint(tmp_path / "one more.png", 300)
    more = {p.digest for p in look(tmp_path, caption="x", validation_share=0.3).pictures if p.validation}
    assert len(kept & more) >= 5


def test_copies_of_a_picture_are_held_out_together() -> None:
    digests = [f"{n:03}" for n in range(40)] * 2
    kept = held_out(digests, 0.25)
    assert len(kept) == 10
    assert held_out(digests, 0.0) == set() and len(held_out(digests, 0.001)) == 1


def test_sizes_are_upright_and_nothing_is_decoded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 100)).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[:-50])  # scanning sees the header alone
    assert {p.name: p.size for p in look(tmp_path, caption="x").pictures} == {"a.jpg": (100, 300), "b.jpg": (100, 300)}


def test_five_thousand_pictures_are_scanned(tmp_path: Path) -> None:
    data = paint(tmp_path / "p0.png").read_bytes()
    for n in range(1, 5000):
        (tmp_path / f"p{n}.png").write_bytes(data + str(n).encode())
    seen: list[tuple[int, int]] = []
    dataset = scan(DataSettings(path=str(tmp_path), caption="x"), lambda done, of: seen.append((done, of)))
    assert len({picture.digest for picture in dataset.pictures}) == 5000
    assert seen == [(n, 5000) for n in range(1, 5001)]


# Captions while training


def vary(caption: str, count: int, **settings: object) -> list[str]:
    chosen = DataSettings(**settings)  # type: ignore[arg-type]
    return [captions.variant(caption, chosen, random.Random(seed)) for seed in range(count)]


def test_a_caption_stays_as_it_is_unless_told() -> None:
    assert vary("a,b , c", 3) == ["a,b , c"] * 3


def test_shuffling_keeps_every_part_and_the_first_ones_in_place() -> None:
    found = vary("sks, a, (b, c:1.2), d", 50, shuffle_tags=True, keep_tags=1)
    assert all(text.startswith("sks, ") and sorted(captions.parts(text)) == ["(b, c:1.2)", "a", "d", "sks"] for text in found)
    assert len(set(found)) == 6
    assert found == vary("sks, a, (b, c:1.2), d", 50, shuffle_tags=True, keep_tags=1)


def test_thinning_drops_its_share_but_never_the_trigger_nor_everything() -> None:
    found = vary("sks dog, a, b, c, d", 2000, tag_dropout=0.4, trigger="sks")
    assert all(text.startswith("sks dog") for text in found)
    left = sum(len(captions.parts(text)) - 1 for text in found) / 2000 / 4
    assert 0.57 < left < 0.63
    assert set(vary("a, b", 50, tag_dropout=1.0)) == {"a", "b"}


@pytest.mark.parametrize("shuffle", [False, True])
def test_thinning_leaves_the_parts_that_are_kept_in_place(shuffle: bool) -> None:
    found = vary("a, b, c, d", 200, tag_dropout=0.9, keep_tags=2, shuffle_tags=shuffle)
    assert all(captions.parts(text)[:2] == ["a", "b"] for text in found)
    assert 0.05 < sum(len(captions.parts(text)) - 2 for text in found) / 200 / 2 < 0.15


def test_a_caption_is_left_out_for_its_share_of_steps() -> None:
    found = vary("a dog, red", 2000, caption_dropout=0.1)
    assert 150 < found.count("") < 250 and set(found) == {"", "a dog, red"}


@pytest.mark.parametrize(("caption", "expected"), [
    ("a, b ,,c", ["a", "b", "c"]), ("(a, b), c", ["(a, b)", "c"]), (":(, a", [":(", "a"]), ("", []),
    (r"name \(x, y\), z", [r"name \(x", r"y\)", "z"]),
])
def test_parts_are_what_commas_separate_outside_brackets(caption: str, expected: list[str]) -> None:
    assert captions.parts(caption) == expected
