"""The page in the small: lists stay where a person is, histories are whole, colours can be seen, nothing is swallowed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from test_page import PATIENCE, address, browser, fill, finished_run, keep, opened, page, place
from test_page_silence import first_waits, until

from aprendiz.run import Run
from aprendiz.settings import Job

__all__ = ["address", "browser", "page", "place"]  # fixtures

pytestmark = pytest.mark.page


def run_of(place: Path, name: str, **settings: Any) -> Run:
    return Run.create(place / "out", Job.read({"data": str(place / "fish"), "steps": 500, "name": name, **settings}), "digest")


def test_a_run_that_is_chosen_anew_while_it_is_read_is_shown_whole(page: Page, place: Path, address: str) -> None:
    run = run_of(place, "whole")
    with run.locked():
        for step in range(1, 9):
            run.event("step", step=step, steps=500, loss=0.5)
        opened(page, address)
        page.locator("aprendiz-run").get_by_text("step 8 of 500").first.wait_for()
        waiting = first_waits(page, "**/runs/whole/events*")
        until(page, lambda: len(waiting) > 0)
        page.locator('[data-run="whole"] .ap-open').click()
        page.wait_for_timeout(200)
        waiting[0].continue_()
        page.locator("aprendiz-run").get_by_text("step 8 of 500").first.wait_for()
    shutil.rmtree(run.folder)


def test_the_list_of_runs_stays_where_a_person_is(page: Page, place: Path, address: str) -> None:
    for number in range(12):
        run_of(place, f"listed-{number:02}").event("stopped", step=0)
    going = run_of(place, "listed-zz")
    with going.locked():
        going.event("step", step=1, steps=500, loss=0.5)
        opened(page, address)
        ul = page.locator(".ap-runs ul")
        expect(ul.locator("li")).to_have_count(13, timeout=PATIENCE)
        ul.evaluate("list => { list.scrollTop = 200; list.querySelectorAll('.ap-open')[8].focus({preventScroll: true}) }")
        row = page.locator('[data-run="listed-03"]')
        row.evaluate("row => { row.dataset.mark = 'the same' }")
        going.event("step", step=2, steps=500, loss=0.5)
        expect(page.locator('[data-run="listed-zz"]')).to_contain_text("step 2 of 500", timeout=PATIENCE)
        assert ul.evaluate("list => list.scrollTop") == 200
        assert page.evaluate("document.activeElement.className") == "ap-open"
        expect(row).to_have_attribute("data-mark", "the same")  # a press that is half done is not lost
        row.get_by_role("button", name="Delete").click()
        going.event("step", step=3, steps=500, loss=0.5)  # the others go on while it asks
        expect(page.locator('[data-run="listed-zz"]')).to_contain_text("step 3 of 500", timeout=PATIENCE)
        expect(row.get_by_role("button", name="Keep it")).to_be_focused()
        page.keyboard.press("Escape")
        expect(row.get_by_role("button", name="Delete")).to_be_focused()
    for run in (place / "out" / "aprendiz").glob("listed-*"):
        shutil.rmtree(run)


@pytest.mark.parametrize("typed", ["inf", "nan", "1e999"])
def test_what_is_no_number_is_told_by_check(page: Page, typed: str) -> None:
    fill(page, "optimizer-learning-rate", typed)
    page.locator("#aprendiz-check").click()
    expect(page.locator("#aprendiz-optimizer-learning-rate .ap-problem")).to_be_visible(timeout=PATIENCE)


def test_a_setting_that_does_not_count_and_is_wrong_is_told_of_where_it_can_be_read(page: Page, address: str) -> None:
    settings = page.request.get(f"{address}aprendiz/words").json()["settings"]
    defaults = {one["id"]: one["default"] for one in settings}
    where = next(one["where"] for one in settings
                 if one["when"] and not one["method"] and defaults[one["when"]["id"]] not in one["when"]["values"])
    problem = {"template": "", "fields": {}, "text": "This one is wrong.", "where": where, "warning": False}
    page.route("**/aprendiz/check", lambda route: route.fulfill(json={"done": True, "forecast": {}, "problems": [problem]}))
    page.locator("#aprendiz-check").click()
    expect(page.locator("#aprendiz-summary")).to_contain_text("This one is wrong.", timeout=PATIENCE)
    expect(page.get_by_text("This one is wrong.")).to_be_visible()


def test_every_saved_step_of_one_result_is_drawn_whatever_is_chosen_meanwhile(page: Page, place: Path, address: str) -> None:
    for name, colour in (("first", "red"), ("second", "blue")):
        finished_run(place, name, colour, 20)
        run = Run.open(place / "out" / "aprendiz" / name)
        for step in (10, 20):
            run.event("checkpoint", step=step, file=run.folder / f"{name}-{step:06}.safetensors")
    words = page.request.get(f"{address}aprendiz/words").json()
    words["words"]["at_seed"] = "«seed {seed}»"
    page.route("**/aprendiz/words", lambda route: route.fulfill(json=words))
    opened(page, address)
    asked: list[dict[str, Any]] = []
    side = {"key": "k", "count": 0, "done": 0, "total": 4, "waits": None, "by": None, "problems": [], "ready": True}

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        page.get_by_label("What was learned").select_option("second")
        route.fulfill(json={"base": "k", "tuned": None})

    page.route("**/aprendiz/try", answer)
    page.route("**/aprendiz/tried*", lambda route: route.fulfill(json=side))
    page.locator('[data-run="first"]').get_by_role("button", name="Try it").click()
    page.get_by_role("button", name="Draw every saved step").click()
    until(page, lambda: len(asked) > 2)
    assert {one["run"] for one in asked} == {"first"}
    expect(page.locator(".ap-words").first).to_contain_text("«seed 1»")  # in the words of the person's language
    for name in ("first", "second"):
        shutil.rmtree(place / "out" / "aprendiz" / name)


def test_a_run_that_could_not_be_read_for_the_comparison_is_read_again(page: Page, place: Path, address: str) -> None:
    finished_run(place, "blip", "red", 10)
    opened(page, address)
    page.route("**/runs/blip/events*", lambda route: route.abort())
    page.locator('[data-run="blip"]').get_by_label("Compare").check()
    page.wait_for_timeout(500)
    page.unroute("**/runs/blip/events*")
    expect(page.locator(".ap-comparison .ap-head")).to_have_text(["blip step 10"], timeout=PATIENCE)
    shutil.rmtree(place / "out" / "aprendiz" / "blip")


def test_a_preset_takes_the_place_of_the_one_before_also_by_the_keyboard(page: Page) -> None:
    steps, rank, size = (page.locator(f"#aprendiz-{one} input") for one in ("training-steps", "lora-rank", "data-resolution"))
    fill(page, "lora-rank", "5")
    page.locator("#aprendiz-preset select").focus()
    for _ in range(3):  # a quick try, a thing or a person, a style
        page.keyboard.press("ArrowDown")
    expect(page.locator("#aprendiz-preset select")).to_have_value("2")
    assert (steps.input_value(), rank.input_value()) == ("2000", "32")
    page.locator("#aprendiz-card select").focus()
    page.keyboard.press("ArrowDown")
    assert size.input_value() == "512"
    page.keyboard.press("ArrowDown")
    assert size.input_value() == ""  # which the second card says nothing of
    fill(page, "training-steps", "700")  # a hand's own change stays
    page.keyboard.press("Tab")
    page.locator("#aprendiz-preset select").select_option("As it is")
    assert (steps.input_value(), rank.input_value()) == ("700", "5")
    fill(page, "lora-rank", "0")
    page.locator("#aprendiz-check").click()
    wrong = page.locator("#aprendiz-lora-rank .ap-problem")
    expect(wrong).to_be_visible(timeout=PATIENCE)
    fill(page, "training-steps", "701")
    expect(wrong).to_be_visible()
    page.get_by_role("button", name="Put everything back").click()
    expect(wrong).to_have_count(0)  # what was changed since is no longer known to be wrong
    expect(page.locator("#aprendiz-method-name select")).to_be_focused()


def test_what_start_said_stays_while_the_folder_is_looked_at(page: Page, place: Path) -> None:
    fill(page, "lora-rank", "0")
    fill(page, "optimizer-learning-rate", "fast")
    fill(page, "data-path", str(place / "nowhere"))
    with page.expect_response("**/aprendiz/pictures"):
        page.locator("#aprendiz-start").click()
    expect(page.locator("#aprendiz-data-path .ap-problem")).to_contain_text("There is no folder", timeout=PATIENCE)
    expect(page.locator("#aprendiz-lora-rank .ap-problem")).to_be_visible()
    expect(page.locator("#aprendiz-optimizer-learning-rate .ap-problem")).to_be_visible()
    fill(page, "data-path", os.path.abspath(os.sep))  # outside of what the page may open
    expect(page.locator("#aprendiz-data-path .ap-problem")).to_contain_text("outside the folders", timeout=PATIENCE)
    fill(page, "data-path", str(place / "fish"))
    expect(page.locator("#aprendiz-live figure")).to_have_count(3, timeout=PATIENCE)
    expect(page.locator("#aprendiz-data-path .ap-problem")).to_have_count(0)
    expect(page.locator("#aprendiz-lora-rank .ap-problem")).to_be_visible()


def test_what_a_check_finds_is_told_no_more_once_something_was_started(page: Page) -> None:
    wrong = {"template": "", "fields": {}, "text": "This was wrong before.", "where": "training.steps", "warning": False}
    waiting: list[Route] = []
    page.route("**/aprendiz/check", lambda route: waiting.append(route))
    page.locator("#aprendiz-check").click()
    until(page, lambda: len(waiting) > 0)
    page.locator("#aprendiz-start").click()
    expect(page.locator("#aprendiz-data-path .ap-problem")).to_be_visible(timeout=PATIENCE)
    with page.expect_response("**/aprendiz/check"):
        waiting[0].fulfill(json={"done": True, "forecast": {}, "problems": [wrong]})
    page.wait_for_timeout(300)
    expect(page.get_by_text("This was wrong before.")).to_have_count(0)
    field = page.locator("#aprendiz-data-path input")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(re.compile("folder with the pictures.*Name the folder", re.DOTALL))
    page.locator("#aprendiz-check").click()
    until(page, lambda: len(waiting) > 1)
    fill(page, "output-name", "changed")  # what was asked is no longer what is filled in
    expect(page.locator("#aprendiz-summary")).to_be_empty()
    with page.expect_response("**/aprendiz/check"):
        waiting[1].fulfill(json={"done": True, "forecast": {}, "problems": [wrong]})
    page.wait_for_timeout(300)
    expect(page.get_by_text("This was wrong before.")).to_have_count(0)


def test_what_was_passed_on_to_a_run_is_said_until_it_has_done_it(page: Page, place: Path, address: str) -> None:
    run = run_of(place, "hearing")
    with run.locked():
        run.event("preflight", pictures=3, steps=500, problems=[])
        opened(page, address)
        shown = page.locator("aprendiz-run")
        shown.get_by_text("Opening the model; then comes the first step.").wait_for()
        run.event("step", step=1, steps=500, loss=0.5)
        for button, event in (("Save now", "checkpoint"), ("Pause", "paused")):
            shown.get_by_role("button", name=button).click()
            shown.get_by_text("Passed on. The run hears it").wait_for()
            run.event(event, step=1)
            expect(shown.get_by_text("Passed on. The run hears it")).to_have_count(0, timeout=PATIENCE)
        expect(shown.get_by_role("button")).to_have_text(["Resume", "Stop"])  # nothing that waits for a step
    shutil.rmtree(run.folder)


def test_start_and_what_it_says_stay_in_sight(page: Page, place: Path) -> None:
    page.route("**/aprendiz/start", lambda route: route.abort())
    for width, height in ((1280, 700), (390, 700)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator("#aprendiz-section-output").scroll_into_view_if_needed()
        start = page.locator("#aprendiz-start")
        expect(start).to_be_in_viewport(ratio=1, timeout=PATIENCE)
        start.click()
        expect(page.locator(".ap-note")).to_contain_text("The server did not answer.", timeout=PATIENCE)
        expect(page.locator(".ap-note")).to_be_in_viewport(ratio=1)
        expect(start).to_be_focused()


def test_a_number_that_is_too_large_for_the_browser_arrives_whole(page: Page, place: Path) -> None:
    asked: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.abort()

    page.route("**/aprendiz/start", answer)
    page.get_by_text("Duration, size and device").click()
    fill(page, "training-seed", "9007199254740993")
    page.locator("#aprendiz-start").click()
    until(page, lambda: len(asked) > 0)
    assert asked[0]["form"]["controls"]["aprendiz-training-seed"] == "9007199254740993"


LIGHT = """
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
    const numbers = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
        return [...canvas.getImageData(0, 0, 1, 1).data] }
    const light = colour => colour.slice(0, 3).map(part => part / 255)
        .map(part => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [.2126, .7152, .0722][index], 0)
    const ratio = (one, other) => {
        const [a, b] = [light(one), light(other)].sort((x, y) => y - x)
        return (a + .05) / (b + .05) }
    const under = element => { for (let one = element; one; one = one.parentElement) {
        const found = numbers(getComputedStyle(one).backgroundColor)
        if (found[3] > 250) return found }
        return [255, 255, 255] }"""
TEXTS = f"""() => {{ {LIGHT}
    const found = {{}}
    const texts = '#aprendiz :is(.ap-problem, .ap-soft, button, a, label, summary, input, select)'
    for (const one of document.querySelectorAll(texts)) {{
        if (!one.offsetParent || ['checkbox', 'range'].includes(one.type) || !(one.value || one.textContent.trim())) continue
        const name = `${{one.className}} in ${{one.parentElement.className}}`
        found[name] = Math.min(found[name] ?? 99, ratio(numbers(getComputedStyle(one).color), under(one)))
    }}
    return found }}"""
LINES = f"""() => {{ {LIGHT}
    return [...document.querySelectorAll('.ap-comparison polyline')]
        .map(one => ratio(numbers(getComputedStyle(one).stroke), under(one.closest('.ap-comparison')))) }}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_a_light_and_a_dark_theme(browser: Browser, place: Path, address: str, scheme: str) -> None:
    folder = place / f"pale-{scheme}"
    shutil.copytree(place / "fish", folder)
    (folder / "fish-01.txt").unlink()
    finished_run(place, "pale", "red", 10)
    page = browser.new_page(viewport={"width": 1280, "height": 950}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    opened(page, f"{address}?__theme={scheme}")
    fill(page, "data-path", str(folder))
    fill(page, "training-steps", "0")
    page.locator("#aprendiz-live figure .ap-problem").first.wait_for()
    problems = [{"text": "One that warns.", "where": "", "warning": True, "template": "", "fields": {}},
                {"text": "One that stops.", "where": "training.steps", "warning": False, "template": "", "fields": {}}]
    told = {"done": True, "forecast": {"lines": ["A line."]}, "problems": problems}
    page.route("**/aprendiz/check", lambda route: route.fulfill(json=told))
    page.locator("#aprendiz-check").click()
    page.locator("#aprendiz-training-steps .ap-problem").wait_for()
    expect(page.locator("#aprendiz-counted")).to_have_text("3 pictures, 2 with a caption, 1 need you")
    keep(page, f"contrast-{scheme}")
    found = page.evaluate(TEXTS)
    assert len(found) > 8 and {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    page.close()
    shutil.rmtree(place / "out" / "aprendiz" / "pale")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_lines_of_compared_runs_are_seen_in_a_light_and_a_dark_theme(browser: Browser, place: Path, address: str,
                                                                         scheme: str) -> None:
    names = [f"line-{number}" for number in range(6)]
    for name in names:
        finished_run(place, name, "red", 20)
    page = browser.new_page(viewport={"width": 1280, "height": 950})
    page.set_default_timeout(PATIENCE)
    opened(page, f"{address}?__theme={scheme}")
    for name in names:
        page.locator(f'[data-run="{name}"]').get_by_label("Compare").check()
    expect(page.locator(".ap-comparison polyline")).to_have_count(6, timeout=PATIENCE)
    keep(page, f"lines-{scheme}")
    found = page.evaluate(LINES)
    assert len(found) == 6 and min(found) >= 3
    page.close()
    for name in names:
        shutil.rmtree(place / "out" / "aprendiz" / name)


def test_the_keyboard_stays_where_it_is_when_captions_are_drawn_anew(page: Page, place: Path) -> None:
    folder = place / "focus"
    shutil.copytree(place / "fish", folder)
    fill(page, "data-path", str(folder))
    page.get_by_text("Change all captions").click()
    field = page.get_by_label("Find in all captions")
    field.fill("grey whale")
    add = page.get_by_role("button", name="Put at the end of all")
    add.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ap-note")).to_contain_text("3 captions were changed.", timeout=PATIENCE)
    page.wait_for_timeout(1000)
    expect(add).to_be_focused()
