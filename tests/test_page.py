"""The page in a real browser: a person fills it in, starts a real training, steers it, reloads, and gets a finished file.

Pictures of what was seen are kept in tests/artifacts.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BROWSERS
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from aprendiz.micro.pictures import write_pictures
from aprendiz.run import Run
from aprendiz.settings import Job

pytestmark = pytest.mark.page

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = Path(__file__).with_name("artifacts")
PATIENCE = 180_000  # milliseconds; nothing here is timed, a page that hangs is not to hang the suite
SCRIPT = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to teach, and where runs are written."""
    place = tmp_path_factory.mktemp("page")
    write_pictures(place / "fish", "fish", count=3)
    return place


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """The standalone page, as a person starts it."""
    log = open(place / "app.log", "w+", encoding="utf-8")
    environment = {**os.environ, "APRENDIZ_HOME": str(place / "user"), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-m", "aprendiz", "app", "--out", str(place / "out"), "--folder", str(place)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", env=environment)
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said = line
        if "http://" in line:
            break
    else:
        log.seek(0)
        raise AssertionError(log.read())
    yield said[said.index("http://"):].split()[0]
    server.terminate()
    server.wait(60)
    server.stdout.close()
    log.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, opened; errors of its script fail the test, and what it looked like in the end is kept."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 950}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    opened(page, address)
    yield page
    keep(page, request.node.name)
    page.close()
    assert wrong == []


def opened(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#aprendiz-live .ap-runs").wait_for()


def keep(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"page-{name}.png", full_page=True)


def fill(page: Page, setting: str, value: str) -> None:
    page.locator(f"#aprendiz-{setting} >> css=textarea, input").first.fill(value)


def fill_in(page: Page, place: Path, name: str, steps: int) -> None:
    """A small job: little pictures, few steps."""
    fill(page, "data-path", str(place / "fish"))
    fill(page, "data-resolution", "64")
    fill(page, "training-steps", str(steps))
    fill(page, "samples-sample-prompts", "a red fish")
    fill(page, "output-name", name)
    expect(page.locator("#aprendiz-live figure")).to_have_count(3, timeout=PATIENCE)


def panel(page: Page, text: str) -> None:
    page.locator("aprendiz-run").get_by_text(text).first.wait_for()


def press(page: Page, button: str) -> None:
    page.locator("aprendiz-run").get_by_role("button", name=button, exact=True).click()


def test_from_click_to_finished_file_with_pause_reload_stop_and_resume(page: Page, place: Path, address: str) -> None:
    fill_in(page, place, "swimmer", 30)
    page.locator("#aprendiz-start").click()
    press(page, "Pause")  # it is there before the first step, and may be heard before it too
    panel(page, "Paused; the memory is free.")
    keep(page, "paused")
    opened(page, address)  # a reloaded page finds the run by itself
    panel(page, "Paused; the memory is free.")
    assert page.locator(".ap-run").count() == 1
    press(page, "Resume")
    press(page, "Stop")
    panel(page, "Stopped")  # before the first step, or after some
    run = Run.open(place / "out" / "aprendiz" / "swimmer")
    stopped = [event for event in run.events() if event["event"] == "stopped"][-1]["step"]
    assert stopped < 30
    press(page, "Go on")
    panel(page, "Done after 30 steps. The result is swimmer.safetensors.")
    expect(page.locator(".ap-run")).to_contain_text("finished · step 30 of 30", timeout=PATIENCE)
    steps = [event["step"] for event in run.events() if event["event"] == "step"]
    assert steps == list(range(1, 31)) and run.file.stat().st_size > 10_000
    assert page.locator("aprendiz-run img").count() == 2  # before and after, same prompt and seed
    link = page.get_by_role("link", name="Download the file")
    with page.expect_download() as download:
        link.click()
    assert Path(download.value.path()).read_bytes() == run.file.read_bytes()
    try_out(page, address)
    shutil.rmtree(run.folder)  # by hand, while the page shows it
    expect(page.locator(".ap-note")).to_have_text("There is no run swimmer here.", timeout=PATIENCE)
    expect(page.locator("aprendiz-run")).to_have_count(0)


def try_out(page: Page, address: str) -> None:
    """The base and what was learned side by side on one seed: without weight they are the same picture, with it they are not."""
    page.locator('[data-run="swimmer"]').get_by_role("button", name="Try it").click()
    trying = page.locator(".ap-trying")
    expect(trying.get_by_label("Prompt", exact=True)).to_have_value("a red fish")  # as its samples were drawn
    trying.locator(".ap-more summary").click()
    trying.get_by_label("Sampler steps", exact=True).fill("2")
    trying.get_by_label("Pictures on each side").fill("1")
    for weight, alike in (("0", True), ("2", False)):
        trying.get_by_label("Weight").fill(weight)
        page.get_by_role("button", name="Draw", exact=True).click()
        row = page.locator(".ap-try").first
        expect(row).to_contain_text(f"weight {weight}.00")
        expect(row.locator("img")).to_have_count(2, timeout=PATIENCE)
        base, tuned = (Image.open(io.BytesIO(page.request.get(image.get_attribute("src") or "").body()))
                       for image in row.locator("img").all())
        assert (base.tobytes() == tuned.tobytes()) is alike
    keep(page, "try")


def test_all_captions_are_changed_and_put_back_in_the_page(page: Page, place: Path) -> None:
    shutil.copytree(place / "fish", place / "many")
    before = [file.read_text(encoding="utf-8") for file in sorted((place / "many").glob("*.txt"))]
    fill(page, "data-path", str(place / "many"))
    fill(page, "data-trigger", "zwx")
    page.get_by_text("Change all captions").click()
    page.get_by_role("button", name="Write 'zwx' into all").click()
    expect(page.locator(".ap-note")).to_contain_text("3 captions were changed.", timeout=PATIENCE)
    for caption in page.locator("#aprendiz-live figure textarea").all():
        expect(caption).to_have_value(re.compile("^zwx, "), timeout=PATIENCE)
    expect(page.locator(".ap-tag").first).to_contain_text("zwx")
    keep(page, "bench")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#aprendiz-live figure textarea").first).not_to_have_value(re.compile("^zwx"), timeout=PATIENCE)
    assert [file.read_text(encoding="utf-8") for file in sorted((place / "many").glob("*.txt"))] == before


def test_a_preset_and_a_card_fill_in_settings_of_the_method_chosen(page: Page) -> None:
    def choose(part: str, option: str) -> None:
        page.locator(f"#aprendiz-{part} select").select_option(option)

    def value(setting: str) -> Locator:
        return page.locator(f"#aprendiz-{setting} >> css=textarea, input").first

    fill(page, "lora-rank", "5")
    page.locator("#aprendiz-lora-rank").get_by_role("button", name="Put back").click()
    expect(value("lora-rank")).to_have_value("16", timeout=PATIENCE)
    expect(page.get_by_role("button", name="Put back")).to_have_count(0, timeout=PATIENCE)
    page.locator("#aprendiz-check").click()
    expect(page.locator("#aprendiz-data-path .ap-problem")).to_be_visible(timeout=PATIENCE)
    fill(page, "lora-rank", "5")
    checks: list[str] = []
    page.on("request", lambda request: checks.append(request.url) if request.url.endswith("/aprendiz/check") else None)
    page.locator("#aprendiz-lora-rank").get_by_role("button", name="Put back").click()
    expect(value("lora-rank")).to_have_value("16", timeout=PATIENCE)
    expect(page.get_by_role("button", name="Put back")).to_have_count(0, timeout=PATIENCE)
    page.wait_for_timeout(500)
    assert checks == []  # what was answered before is not answered once more
    fill(page, "training-minutes", "40")
    choose("preset", "A style")
    expect(value("training-steps")).to_have_value("2000", timeout=PATIENCE)
    expect(value("lora-rank")).to_have_value("32", timeout=PATIENCE)
    expect(value("training-minutes")).to_have_value("", timeout=PATIENCE)  # one of the two at most
    choose("method-name", "Textual inversion")
    expect(value("training-steps")).to_have_value("")  # what the other method's preset filled in is gone with it
    choose("preset", "A thing or a person")
    expect(value("training-steps")).to_have_value("3000", timeout=PATIENCE)
    choose("card", "A card of 24 GB or more")
    page.get_by_text("Duration, size and device").click()
    expect(value("training-batch-size")).to_have_value("4", timeout=PATIENCE)


def test_a_damaged_picture_that_start_met_stands_beside_it_and_the_name_stays_free(page: Page, place: Path, address: str) -> None:
    shutil.copytree(place / "fish", place / "damaged")
    damaged = place / "damaged" / "fish-02.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    opened(page, address)
    fill(page, "data-path", str(place / "damaged"))
    fill(page, "data-resolution", "64")
    fill(page, "training-steps", "2")
    fill(page, "output-name", "mended")
    page.locator("#aprendiz-start").click()
    first = page.locator("#aprendiz-live figure").first
    expect(first).to_contain_text("fish-02.png is truncated or damaged", timeout=PATIENCE)
    panel(page, "fish-02.png is truncated or damaged")
    damaged.write_bytes(whole)
    page.locator("#aprendiz-start").click()
    panel(page, "Done after 2 steps. The result is mended.safetensors.")
    assert [run.name for run in (place / "out" / "aprendiz").glob("mended*")] == ["mended"]
    fill(page, "training-steps", "1")
    page.locator("#aprendiz-start").click()
    told = "There is another run mended, so this one is called mended-2."
    expect(page.locator(".ap-note")).to_have_text(told, timeout=PATIENCE)
    panel(page, "Done after 1 steps. The result is mended-2.safetensors.")
    for name in ("mended", "mended-2"):
        shutil.rmtree(place / "out" / "aprendiz" / name)


def test_what_is_wrong_stands_beside_the_setting_and_the_picture_it_concerns(page: Page, place: Path) -> None:
    shutil.copytree(place / "fish", place / "trouble")
    (place / "trouble" / "fish-01.txt").unlink()
    fill(page, "data-path", str(place / "trouble"))
    fill(page, "training-steps", "0")
    fill(page, "optimizer-learning-rate", "fast")
    page.locator("#aprendiz-start").click()
    sentence = "training.steps is 0. It must lie between 1 and 10000000."
    expect(page.locator("#aprendiz-training-steps .ap-problem")).to_have_text(sentence)
    expect(page.locator("#aprendiz-optimizer-learning-rate .ap-problem")).to_contain_text("Write a number")
    first = page.locator("#aprendiz-live figure").first
    expect(first).to_contain_text("fish-01.png has no caption", timeout=PATIENCE)
    expect(page.locator("#aprendiz-counted")).to_have_text("3 pictures, 2 with a caption, 1 need you")
    caption = first.get_by_label("Caption of fish-01.png")
    caption.fill("a blue fish")
    expect(first).to_contain_text("Saved", timeout=PATIENCE)
    assert (place / "trouble" / "fish-01.txt").read_text(encoding="utf-8") == "a blue fish\n"
    expect(page.locator("#aprendiz-counted")).to_have_text("3 pictures, 3 with a caption")
    fill(page, "training-steps", "5")
    fill(page, "optimizer-learning-rate", "1e-4")
    Image.new("RGB", (40, 40)).save(place / "trouble" / "tiny.png")  # what only a check finds: it reads every picture
    (place / "trouble" / "tiny.txt").write_text("a small thing", encoding="utf-8")
    page.locator("#aprendiz-check").click()
    expect(page.locator("#aprendiz-summary")).to_contain_text("This can be trained.", timeout=PATIENCE)
    expect(page.locator("#aprendiz-summary")).to_contain_text("Steps: 5")
    expect(page.locator("#aprendiz-estimate")).to_contain_text("Memory: about", timeout=PATIENCE)
    expect(page.locator("#aprendiz-summary")).not_to_contain_text("Memory:")  # once is enough
    expect(page.locator("#aprendiz-live figure").first).to_contain_text("tiny.png is only 40 x 40 pixels", timeout=PATIENCE)
    expect(page.locator("#aprendiz-counted")).to_have_text("4 pictures, 4 with a caption, 1 need you")
    fill(page, "data-path", str(place / "nowhere"))
    expect(page.locator("#aprendiz-data-path .ap-problem")).to_contain_text("There is no folder", timeout=PATIENCE)


HOST = """<div id="aprendiz"></div>
<script>const gradioApp = () => document, onUiLoaded = ready => ready(), onAfterUiUpdate = onUiLoaded</script>
<script>SCRIPT</script>"""


def test_the_page_comes_up_however_late_its_server_answers(browser: Browser, address: str) -> None:
    # As a host's page that is open before the host has mounted the routes; each of them fails once.
    refused: list[str] = []

    def answer(route: Route) -> None:
        name = route.request.url.rpartition("/")[2].partition("?")[0]
        if name in refused:
            route.continue_()
        else:
            refused.append(name)
            route.fulfill(status=404, body="{}")

    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    script = (ROOT / "javascript" / "aprendiz.js").read_text(encoding="utf-8")
    page.route("**/host", lambda route: route.fulfill(content_type="text/html", body=HOST.replace("SCRIPT", script)))
    names = ("page.js", "page.css", "words", "panel.js", "page-parts.js", "page-try.js", "runs")
    for name in names:
        page.route(re.compile(rf"/aprendiz/(again-[0-9]+/)?{re.escape(name)}(\?|$)"), answer)
    page.goto(f"{address.rstrip('/')}/host")
    page.locator("#aprendiz-live .ap-runs").wait_for()
    expect(page.locator(".ap-silence")).to_be_hidden(timeout=PATIENCE)
    assert sorted(refused) == sorted(names)
    assert page.evaluate("!!customElements.get('aprendiz-run')")
    page.wait_for_function("() => [...document.styleSheets].some(sheet => sheet.cssRules.length > 9)")
    page.close()


def test_nothing_is_drawn_into_a_hosts_page_until_it_is_looked_at(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    script = (ROOT / "javascript" / "aprendiz.js").read_text(encoding="utf-8")
    body = HOST.replace("SCRIPT", script).replace('id="aprendiz"', 'id="aprendiz" style="display: none"')
    page.route("**/host", lambda route: route.fulfill(content_type="text/html", body=body))
    page.add_init_script("""new MutationObserver(() => { window.changes = (window.changes ?? 0) + 1 })
        .observe(document, {subtree: true, childList: true})""")
    with page.expect_response("**/aprendiz/missed"):  # what finished meanwhile is placed nevertheless
        page.goto(f"{address.rstrip('/')}/host", wait_until="load")
        before = page.evaluate("window.changes")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.changes") == before
    page.evaluate("document.getElementById('aprendiz').style.display = ''")
    page.locator("#aprendiz-live .ap-runs").wait_for()
    page.close()


def test_that_the_server_does_not_answer_is_told_until_it_does(page: Page) -> None:
    note = page.locator(".ap-silence")
    page.route("**/aprendiz/runs", lambda route: route.abort())
    expect(note).to_contain_text("The server does not answer.", timeout=PATIENCE)
    note.evaluate("""note => new MutationObserver(() => { note.dataset.gone = 'yes' })
        .observe(note, {attributeFilter: ['hidden']})""")
    for _ in range(2):
        with page.expect_request("**/aprendiz/runs"):
            pass
    assert not note.evaluate("note => note.dataset.gone")
    page.unroute("**/aprendiz/runs")
    expect(note).to_be_hidden(timeout=PATIENCE)


def test_a_run_is_followed_on_once_its_server_answers_again(page: Page, place: Path, address: str) -> None:
    run = Run.create(place / "out", Job.read({"data": str(place / "fish"), "steps": 500, "name": "away"}), "digest")
    asked: list[Route] = []

    def answer(route: Route) -> None:
        """Gone at first, then silent, as where the connection was cut, then there."""
        asked.append(route)
        if len(asked) == 1:
            route.abort()
        elif len(asked) > 2:
            route.continue_()

    page.add_init_script("{ const real = AbortSignal.timeout; AbortSignal.timeout = () => real.call(AbortSignal, 2000) }")
    with run.locked():
        run.event("step", step=1, steps=500, loss=0.5)
        opened(page, address)
        panel(page, "step 1 of 500")
        page.route("**/runs/away/events*", answer)
        run.event("step", step=2, steps=500, loss=0.5)
        panel(page, "step 2 of 500")
        expect(page.locator(".ap-silence")).to_be_hidden(timeout=PATIENCE)
    shutil.rmtree(run.folder)


def test_what_is_drawn_is_looked_at_again_once_the_server_answers(page: Page) -> None:
    side = {"key": "k", "count": 0, "done": 0, "total": 4, "waits": None, "by": None, "problems": [], "ready": False}
    answers = iter([{**side, "done": 1}, None, {**side, "problems": [{"text": "Given up.", "warning": False}], "ready": True}])

    def answer(route: Route) -> None:
        told = next(answers)
        route.abort() if told is None else route.fulfill(json=told)

    page.route("**/aprendiz/try", lambda route: route.fulfill(json={"base": "k", "tuned": None}))
    page.route("**/aprendiz/tried*", answer)
    page.locator(".ap-trying > summary").click()
    page.get_by_label("What was learned").select_option("The base alone")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator(".ap-try .ap-problem")).to_have_text("Given up.", timeout=PATIENCE)


def test_script_in_captions_names_and_metadata_stays_text(page: Page, place: Path, address: str) -> None:
    folder = place / "hostile"
    folder.mkdir()
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", SCRIPT)
    name = "<b onclick=x>&amp;.png" if os.name != "nt" else "&amp;.png"
    Image.new("RGB", (128, 128), "red").save(folder / name, pnginfo=told)
    (folder / name.replace(".png", ".txt")).write_text(SCRIPT, encoding="utf-8")
    job = {"method": {"name": SCRIPT}, "base": {"path": SCRIPT}, "data": {"trigger": SCRIPT}}
    run = place / "out" / "aprendiz" / "hostile"
    run.mkdir(parents=True)
    (run / "job.json").write_text(json.dumps(job), encoding="utf-8")
    events = [{"event": "queued"}, {"event": "message", "text": SCRIPT},
              {"event": "sample", "step": 0, "file": SCRIPT, "prompt": SCRIPT, "seed": 1, "index": 0},
              {"event": "failed", "problems": [{"template": SCRIPT.replace("{", ""), "fields": {}, "text": SCRIPT}]}]
    lines = [json.dumps({"v": 1, "attempt": 1, "time": 1.0, **event}) for event in events]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    opened(page, address)
    fill(page, "data-path", str(folder))
    figure = page.locator("#aprendiz-live figure")
    expect(figure).to_contain_text(name, timeout=PATIENCE)
    expect(figure.locator("textarea")).to_have_value(SCRIPT)
    page.locator('[data-run="hostile"] .ap-open').click()
    expect(page.locator("aprendiz-run")).to_contain_text("onerror", timeout=PATIENCE)
    page.locator('[data-run="hostile"]').get_by_label("Compare").check()
    fill(page, "data-trigger", SCRIPT)
    fill(page, "training-steps", SCRIPT)  # comes back in a problem's sentence
    page.locator("#aprendiz-start").click()
    expect(page.locator("#aprendiz-training-steps .ap-problem")).to_contain_text("onerror", timeout=PATIENCE)
    assert page.title() == "Aprendiz"
    assert page.locator("#aprendiz b[onclick], #aprendiz img[src=x], #aprendiz script").count() == 0
    assert page.locator("aprendiz-run img[src=x]").count() == 0
    shutil.rmtree(run)


def test_settings_of_a_run_fill_the_form_and_delete_asks_first(page: Page, place: Path, address: str) -> None:
    job = Job.read({"data": str(place / "fish"), "steps": 77, "rank": 5, "learning_rate": "0.005:100, 1e-5", "name": "older"})
    run = Run.create(place / "out", job, "digest")
    run.attempt = 1
    run.event("stopped", step=0)
    run.log.write_text(f"the last words\n{SCRIPT}", encoding="utf-8")
    broken = run.values() | {"training": {**run.values()["training"], "validate_every_steps": 10}}
    (run.folder / "job.json").write_text(json.dumps(broken), encoding="utf-8")
    opened(page, address)
    row = page.locator('[data-run="older"]')
    with page.expect_popup() as opening:
        row.get_by_role("link", name="Log").click()
    expect(opening.value.locator("pre")).to_have_text(f"the last words\n{SCRIPT}", timeout=PATIENCE)
    opening.value.close()
    row.get_by_role("button", name="Use its settings").click()
    expect(page.locator("#aprendiz-training-steps >> css=textarea, input").first).to_have_value("77", timeout=PATIENCE)
    expect(page.locator("#aprendiz-lora-rank input")).to_have_value("5")
    expect(page.locator("#aprendiz-optimizer-learning-rate >> css=textarea, input").first).to_have_value("0.005:100, 1e-5")
    expect(page.locator("#aprendiz-live figure")).to_have_count(3, timeout=PATIENCE)
    page.locator("#aprendiz-start").click()  # what is wrong with a setting that is folded away unfolds it
    apart = page.locator("#aprendiz-training-validate-every-steps .ap-problem")
    expect(apart).to_contain_text("no pictures are kept apart", timeout=PATIENCE)
    row.get_by_role("button", name="Delete").click()
    expect(row).to_contain_text("Delete older and all its files?")
    row.get_by_role("button", name="Keep it").click()
    assert run.folder.is_dir()
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Yes, delete it").click()
    expect(row).to_have_count(0, timeout=PATIENCE)
    assert not run.folder.exists()


def test_the_page_fits_a_narrow_dark_window_and_every_control_has_a_name(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 900}, color_scheme="dark")
    page.set_default_timeout(PATIENCE)
    opened(page, address)
    page.wait_for_timeout(500)
    keep(page, "narrow-dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    nameless = page.evaluate("""[...document.querySelectorAll('#aprendiz :is(button, input, select, textarea)')]
        .filter(e => e.offsetParent && !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim() || e.title))
        .map(e => e.outerHTML)""")
    assert nameless == []
    for width in (390, 800):
        page.set_viewport_size({"width": width, "height": 844})
        for place in ("#aprendiz-base-path", "#aprendiz-section-output", "#aprendiz-live .ap-pictures"):
            page.locator(place).scroll_into_view_if_needed()
            expect(page.locator("#aprendiz-start")).to_be_in_viewport(ratio=1, timeout=PATIENCE)
    page.locator(".ap-skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#aprendiz-start")).to_be_focused(timeout=PATIENCE)
    page.close()


def finished_run(place: Path, name: str, colour: str, steps: int) -> None:
    """A run as a worker leaves it, with a sample every ten steps."""
    job = Job.read({"data": str(place / "fish"), "steps": steps, "name": name})
    run = Run.create(place / "out", job, "digest")
    run.attempt = 1
    run.samples.mkdir()
    for step in range(0, steps + 1, 10):
        if step:
            run.event("step", step=step, steps=steps, loss=1 / step)
        file = run.samples / f"step-{step:06}-0.png"
        Image.new("RGB", (64, 64), colour if step else "grey").save(file)
        run.event("sample", step=step, file=file, prompt="a fish", seed=1, index=0)
    run.event("finished", step=steps, file=run.file)


def test_runs_are_compared_side_by_side_with_one_slider_over_the_steps(page: Page, place: Path, address: str) -> None:
    finished_run(place, "short", "red", 10)
    finished_run(place, "long", "blue", 30)
    opened(page, address)
    for name in ("short", "long"):
        page.locator(f'[data-run="{name}"]').get_by_label("Compare").check()
    both = page.locator(".ap-comparison")
    expect(both.locator(".ap-head")).to_have_text(["short step 10", "long step 30"], timeout=PATIENCE)
    slider = both.get_by_label("Samples after step")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(both.locator(".ap-head")).to_have_text(["short step 10", "long step 20"], timeout=PATIENCE)
    keep(page, "compare")
    page.keyboard.press("Home")
    expect(both.locator(".ap-head")).to_have_text(["short step 0", "long step 0"], timeout=PATIENCE)
    drawn = [image.get_attribute("alt") for image in both.locator("img").all()]
    assert drawn == ["short, step 0: a fish", "long, step 0: a fish"]
    assert both.locator("polyline").count() == 2
    shutil.rmtree(place / "out" / "aprendiz" / "short")  # as another page deletes it
    expect(both.locator(".ap-head")).to_have_text(["long step 0"], timeout=PATIENCE)
    shutil.rmtree(place / "out" / "aprendiz" / "long")


def test_a_condition_picture_is_chosen_in_the_page(page: Page, place: Path, address: str) -> None:
    page.locator(".ap-trying > summary").click()
    page.get_by_label("What was learned").select_option("A file by its path")
    choose = page.get_by_label("Condition picture", exact=True)
    choose.set_input_files({"name": "<img src=x onerror=alert(1)>.png", "mimeType": "image/png", "buffer": b"no picture"})
    field = page.locator(".ap-control")
    expect(field.locator(".ap-problem")).to_have_text("This file is no picture that can be read. Choose a PNG, JPEG or WebP.",
                                                      timeout=PATIENCE)
    choose.set_input_files(place / "fish" / "fish-01.png")
    shown = field.locator("img.ap-condition")
    expect(shown).to_be_visible(timeout=PATIENCE)
    expect(field.locator(".ap-problem")).to_have_count(0)
    page.wait_for_function("() => document.querySelector('.ap-condition').naturalWidth > 0")
    answer = page.request.get(shown.get_attribute("src") or "").body()
    with Image.open(io.BytesIO(answer)) as kept, Image.open(place / "fish" / "fish-01.png") as sent:
        assert kept.tobytes() == sent.convert(kept.mode).tobytes()

