"""The page where nobody answers for a while: it asks again by itself, keeps what was typed, comes up however it was cut off."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from test_page import PATIENCE, address, browser, fill, opened, page, place, press

from aprendiz.run import Run
from aprendiz.settings import Job

__all__ = ["address", "browser", "page", "place"]  # fixtures

pytestmark = pytest.mark.page

UNANSWERED = "The server does not answer. Trying again."
UNHEARD = "The server did not answer. Look whether it was done, and press again if it was not."


def look_at(page: Page, place: Path, name: str) -> Path:
    """A folder of its own with three captioned pictures, shown in the page."""
    folder = place / name
    shutil.copytree(place / "fish", folder)
    fill(page, "data-path", str(folder))
    expect(page.locator("#aprendiz-live figure textarea")).to_have_count(3, timeout=PATIENCE)
    expect(page.locator("#aprendiz-live figure").first.locator("a")).to_have_attribute("href", re.compile(name), timeout=PATIENCE)
    return folder


def first_waits(page: Page, address: str) -> list[Route]:
    """The requests to come for an address; the first of them is left to wait."""
    waiting: list[Route] = []

    def answer(route: Route) -> None:
        waiting.append(route)
        if len(waiting) > 1:
            route.continue_()

    page.route(address, answer)
    return waiting


def until(page: Page, found: Callable[[], bool]) -> None:
    """Let the page go on until something has been seen of it."""
    for _ in range(PATIENCE // 100):
        if found():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it never came")


def caption(page: Page, name: str = "fish-01.png") -> tuple[Locator, Locator]:
    figure = page.locator("#aprendiz-live figure").filter(has=page.get_by_label(f"Caption of {name}"))
    return figure, figure.locator("textarea")


def held(folder: Path, name: str = "fish-01.txt") -> str:
    return (folder / name).read_text(encoding="utf-8").strip()


def test_a_check_that_nobody_answered_is_made_once_the_server_is_back(page: Page) -> None:
    lost: list[str] = []

    def gone(route: Route) -> None:
        lost.append(route.request.url)
        route.abort()

    fill(page, "training-steps", "0")
    page.route("**/aprendiz/check", gone)
    page.locator("#aprendiz-check").click()
    expect(page.locator("#aprendiz-summary")).to_contain_text(UNANSWERED, timeout=PATIENCE)
    until(page, lambda: len(lost) > 1)
    page.unroute("**/aprendiz/check")
    expect(page.locator("#aprendiz-training-steps .ap-problem")).to_contain_text("training.steps is 0.", timeout=PATIENCE)
    expect(page.locator("#aprendiz-summary")).not_to_contain_text(UNANSWERED)


def test_a_start_that_nobody_answered_is_left_to_the_person(page: Page, place: Path) -> None:
    started: list[str] = []

    def gone(route: Route) -> None:
        started.append(route.request.url)
        route.abort()

    look_at(page, place, "unheard")
    page.route("**/aprendiz/start", gone)
    page.locator("#aprendiz-start").click()
    expect(page.locator(".ap-note")).to_have_text(UNHEARD, timeout=PATIENCE)
    page.wait_for_timeout(3000)
    assert len(started) == 1
    expect(page.locator("#aprendiz-start")).to_be_enabled()


def test_what_is_filled_in_outlives_a_reload_and_is_put_back_at_once(page: Page, address: str) -> None:
    base, method = page.locator("#aprendiz-base-path"), page.locator("#aprendiz-method-name select")
    base.locator("select").select_option("Another, by its path")
    base.get_by_label("Base, by its path").fill("/models/mine.safetensors")
    fill(page, "output-name", "kept")
    fill(page, "data-path", "")
    page.get_by_text("Pictures and captions", exact=True).click()
    flip = page.get_by_label("Flip", exact=True)
    assert not flip.is_checked()
    flip.check()
    method.select_option("Textual inversion")
    page.locator("#aprendiz-preset select").select_option("A style")
    page.locator("#aprendiz-card select").select_option("A card of 4 to 6 GB")
    page.locator("#aprendiz-textual-inversion-vectors input").fill("3")
    opened(page, address)
    expect(base.get_by_label("Base, by its path")).to_have_value("/models/mine.safetensors")
    expect(page.locator("#aprendiz-output-name input")).to_have_value("kept")
    expect(method).to_have_value("textual_inversion")
    expect(page.locator("#aprendiz-textual-inversion-vectors input")).to_have_value("3")
    expect(page.locator("#aprendiz-training-steps input")).to_have_value("3000")
    expect(page.locator("#aprendiz-preset select")).not_to_have_value("")
    expect(page.locator("#aprendiz-card select")).to_have_value("0")
    expect(page.get_by_label("Flip", exact=True)).to_be_checked()
    page.get_by_role("button", name="Put everything back").click()
    expect(base.locator("select")).to_have_value("micro")
    expect(page.locator("#aprendiz-training-steps input")).to_have_value("")
    expect(page.get_by_label("Flip", exact=True)).not_to_be_checked()
    expect(page.locator(".ap-changed")).to_have_count(0)
    expect(page.get_by_role("button", name="Put everything back")).to_be_hidden()
    method.select_option("LoRA")
    expect(page.locator("#aprendiz-lora-rank input")).to_have_value("16")


def test_a_thumbnail_that_did_not_come_is_asked_for_again(page: Page, place: Path) -> None:
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.abort() if len(asked) == 1 else route.continue_()

    page.route("**/aprendiz/thumbnail*", answer)
    look_at(page, place, "thumbs")
    page.wait_for_function("() => [...document.querySelectorAll('#aprendiz-live figure img')].every(one => one.naturalWidth > 0)")
    assert len(asked) == 4


def test_a_caption_that_nobody_took_is_saved_once_the_server_is_back(page: Page, place: Path) -> None:
    folder = look_at(page, place, "taken")
    figure, text = caption(page)
    lost: list[str] = []

    def gone(route: Route) -> None:
        lost.append(route.request.post_data_json["captions"]["fish-01.png"])
        route.abort()

    page.route("**/aprendiz/captions", gone)
    text.fill("a red fish")
    expect(figure).to_contain_text(UNANSWERED, timeout=PATIENCE)
    until(page, lambda: len(lost) > 1)
    text.press_sequentially(" in a bowl")  # goes on while nobody answers
    page.unroute("**/aprendiz/captions")
    expect(figure).to_contain_text("Saved", timeout=PATIENCE)
    expect(figure.locator(".ap-problem")).to_have_count(0)
    assert held(folder) == "a red fish in a bowl" and set(lost) == {"a red fish"}


def test_the_newest_text_of_a_caption_is_saved_whatever_becomes_of_older_ones(page: Page, place: Path) -> None:
    folder = look_at(page, place, "newest")
    figure, text = caption(page)
    waiting = first_waits(page, "**/aprendiz/captions")
    text.fill("an older text")
    until(page, lambda: len(waiting) > 0)
    text.fill("a newer text")
    text.blur()
    page.wait_for_timeout(1500)
    assert len(waiting) == 1  # never two at once
    late = waiting[0].request.post_data
    waiting[0].abort()  # as where a connection is cut; what was sent may still arrive, late
    expect(figure).to_contain_text("Saved", timeout=PATIENCE)
    assert held(folder) == "a newer text"
    answer = page.evaluate("""body => fetch('aprendiz/captions', {
        method: 'POST', body, headers: {'Content-Type': 'application/json'}}).then(answer => answer.json())""", late)
    assert answer["captions"] == {} and held(folder) == "a newer text"


def test_what_was_typed_goes_to_its_own_folder_and_outlives_a_reload(page: Page, place: Path, address: str) -> None:
    folder = look_at(page, place, "mine")
    _, text = caption(page)
    page.route("**/aprendiz/captions", lambda route: route.abort())
    text.fill("typed in the first folder")
    text.blur()
    other = look_at(page, place, "other")  # pictures of the same names
    untouched = held(other)
    expect(caption(page)[1]).to_have_value(untouched)
    fill(page, "data-path", str(folder))
    expect(caption(page)[1]).to_have_value("typed in the first folder", timeout=PATIENCE)
    opened(page, address)  # as Gradio loads its page anew when its server was started anew
    fill(page, "data-path", str(folder))
    expect(caption(page)[1]).to_have_value("typed in the first folder", timeout=PATIENCE)
    page.unroute("**/aprendiz/captions")
    expect(caption(page)[0]).to_contain_text("Saved", timeout=PATIENCE)
    assert held(folder) == "typed in the first folder" and held(other) == untouched


def test_a_caption_that_was_changed_elsewhere_is_not_written_over(page: Page, place: Path) -> None:
    folder = look_at(page, place, "elsewhere")
    figure, text = caption(page)
    (folder / "fish-01.txt").write_text("a newer text", encoding="utf-8")
    text.fill("typed here")
    expect(figure).to_contain_text("was changed elsewhere meanwhile, to 'a newer text'", timeout=PATIENCE)
    assert held(folder) == "a newer text"
    expect(text).to_have_value("typed here")
    text.press_sequentially(", and meant")
    expect(figure).to_contain_text("Saved", timeout=PATIENCE)
    assert held(folder) == "typed here, and meant"


def test_what_is_not_asked_again_by_itself_says_so(page: Page, place: Path, address: str) -> None:
    run = Run.create(place / "out", Job.read({"data": str(place / "fish"), "steps": 50, "name": "deaf"}), "digest")
    with run.locked():
        run.event("step", step=1, steps=50, loss=0.5)
        opened(page, address)
        page.locator("aprendiz-run").get_by_text("step 1 of 50").first.wait_for()
        page.route("**/aprendiz/runs/deaf/tell", lambda route: route.abort())
        press(page, "Pause")
        expect(page.locator(".ap-note")).to_have_text(UNHEARD, timeout=PATIENCE)
    shutil.rmtree(run.folder)


def test_a_line_of_what_was_done_outlives_a_silence(page: Page, place: Path) -> None:
    folder = look_at(page, place, "undone")
    before = held(folder)
    page.get_by_text("Change all captions").click()
    page.get_by_label("Find in all captions").fill("grey whale")
    page.get_by_role("button", name="Put at the end of all").click()
    expect(page.locator(".ap-note")).to_contain_text("3 captions were changed.", timeout=PATIENCE)
    page.route("**/aprendiz/runs", lambda route: route.abort())
    expect(page.locator(".ap-silence")).to_have_text(UNANSWERED, timeout=PATIENCE)
    page.unroute("**/aprendiz/runs")
    expect(page.locator(".ap-silence")).to_be_hidden(timeout=PATIENCE)
    page.get_by_role("button", name="Undo").click()
    expect(caption(page)[1]).to_have_value(before, timeout=PATIENCE)


def test_a_server_that_asks_for_a_login_is_not_told_as_silent(page: Page) -> None:
    page.route("**/aprendiz/runs", lambda route: route.fulfill(status=401))
    expect(page.locator(".ap-silence")).to_have_text("The server no longer knows who you are. Load this page anew to log in.",
                                                     timeout=PATIENCE)


def test_a_page_that_cannot_ask_for_its_texts_says_why_in_the_persons_language(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    told = {"status": 401}
    page.route("**/aprendiz/words", lambda route: route.fulfill(**told) if told else route.continue_())
    page.goto(address)
    expect(page.locator("#aprendiz")).to_have_text("The server no longer knows who you are. Load this page anew to log in.",
                                                   timeout=PATIENCE)
    told.clear()
    page.locator("#aprendiz-live .ap-runs").wait_for()
    page.close()


def test_the_standalone_page_comes_up_whatever_failed_once(browser: Browser, address: str) -> None:
    refused: list[str] = []

    def answer(route: Route) -> None:
        name = re.sub(r".*/", "", route.request.url)
        if name in refused:
            return route.continue_()
        refused.append(name)
        return route.abort()

    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.route(re.compile(r"/aprendiz/(again-\d+/)?(page|panel)[^/]*$"), answer)
    opened(page, address)
    page.wait_for_function("""() => [...document.styleSheets]
        .some(sheet => sheet.href?.endsWith('page.css') && sheet.cssRules.length > 9)""")
    scripts = {name for name in refused if name.endswith(".js")}
    assert {"page.js", "page-parts.js", "page-captions.js", "page-compare.js", "panel.js"} < scripts
    page.close()
