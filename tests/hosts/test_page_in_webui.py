"""The Train tab in a real AUTOMATIC1111, Forge or reForge, in a real browser: from click to a LoRA that changes a picture.

`WEBUI_DIR` is the host's folder, `WEBUI_PYTHON` its interpreter. The base has the true shape of Stable Diffusion 1.5 and random
weights, and is taught at 64 pixels; where only the run counts, not what it learns, micro is. Each run writes the host's row into
`benchmarks/hosts/`; pictures of what was seen are kept in tests/artifacts.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import true_checkpoint
import webui_host
from conftest import BROWSERS
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from aprendiz.micro.pictures import write_pictures
from aprendiz.run import Run

HERE = Path(__file__).parent
ROWS = HERE.parents[1] / "benchmarks" / "hosts"
ARTIFACTS = HERE.parent / "artifacts"
PATIENCE = 600_000  # milliseconds; nothing here is timed, a page that hangs is not to hang the suite
TRUE = {"width": 64, "height": 64, "steps": 3}
STEPS = 16
# AUTOMATIC1111 throws this where txt2img's size changes: its `onCalcResolutionHires` answers an event that has no outputs.
HOSTS_OWN = ("Cannot read properties of undefined (reading 'props')",)
ENDLESS = 1_000_000  # steps of runs that are ended before their time

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's folder for models and settings, with a base, pictures, and ourselves as an extension."""
    data = webui_host.prepare(tmp_path_factory.mktemp("webui"))
    webui_host.add_ourselves(data)
    true_checkpoint.write_sd1(data / "models" / "Stable-diffusion" / "true.safetensors")
    write_pictures(data / "fish", "fish", count=3)
    return data


@pytest.fixture(scope="module")
def host(data: Path) -> Iterator[webui_host.Host]:
    """The host with its page."""
    running = webui_host.start(Path(os.environ["WEBUI_DIR"]), os.environ["WEBUI_PYTHON"], data, "true", page=True)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, host: webui_host.Host, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The host's page with the tab open; errors of scripts fail the test, and what it looked like in the end is kept."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    opened(page, host)
    yield page
    keep(page, host, request.node.name)
    page.close()
    assert [error for error in wrong if error not in HOSTS_OWN] == []


def opened(page: Page, host: webui_host.Host) -> None:
    """Open the host and go to our tab."""
    page.goto(f"http://127.0.0.1:{host.port}/", wait_until="domcontentloaded")
    tab(page)


def tab(page: Page) -> None:
    page.locator("#tabs button").filter(has_text="Train").first.click()
    if page.locator("#train_tabs").count():
        page.locator("#train_tabs button").filter(has_text="Aprendiz").first.click()
    page.locator("#aprendiz-live .ap-runs").wait_for()


def keep(page: Page, host: webui_host.Host, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{host.name.lower()}-{name}.png", full_page=True)


def fill(page: Page, setting: str, value: str) -> None:
    page.locator(f"#aprendiz-{setting} >> css=textarea, input").first.fill(value)


def fill_in(page: Page, data: Path, name: str, steps: int, base: Path | str = "micro") -> None:
    """A small job."""
    page.locator("#aprendiz-base-path select").select_option(str(base))  # the host's own are listed
    fill(page, "data-path", str(data / "fish"))
    fill(page, "data-trigger", "sks")
    fill(page, "data-resolution", "64")
    fill(page, "training-steps", str(steps))
    fill(page, "optimizer-learning-rate", "1e-3")
    fill(page, "output-name", name)
    expect(page.locator("#aprendiz-live figure")).to_have_count(3, timeout=PATIENCE)


def read_from_txt2img(page: Page) -> None:
    """Samples as pictures are drawn in txt2img: its prompt, size, steps and guidance."""
    page.locator("#tabs button").first.click()
    page.locator("#txt2img_prompt textarea").fill("a red fish")
    for name, value in (("steps", "3"), ("cfg_scale", "5"), ("width", "64"), ("height", "128")):
        page.locator(f"#txt2img_{name} input[type=number]").first.fill(value)
    tab(page)
    page.get_by_role("button", name="Read from txt2img").click()
    expect(page.locator("#aprendiz-samples-sample-prompts textarea")).to_have_value("a red fish", timeout=PATIENCE)


def press(page: Page, button: str) -> None:
    page.locator("aprendiz-run").get_by_role("button", name=button, exact=True).click()


def shows(page: Page, text: str) -> None:
    page.locator("aprendiz-run").get_by_text(text).first.wait_for()


def run_of(data: Path, name: str) -> Run:
    return Run.open(data / "outputs" / "aprendiz" / name)


def run_of_soon(data: Path, name: str) -> Run:
    """A run that is about to be made."""
    until(lambda: (data / "outputs" / "aprendiz" / name / "job.json").is_file(), "the run is there")
    return run_of(data, name)


def polling_cost(host: webui_host.Host, name: str) -> float:
    """Milliseconds of the host's processor time for a second of following a run: its events once, every third time the list."""
    newest = host.get(f"/aprendiz/runs/{name}/events", **{"from": "0"})["next"]
    before = host.get("/aprendiz-probe/spent")
    for number in range(90):
        newest = host.get(f"/aprendiz/runs/{name}/events", **{"from": str(newest)})["next"]
        if number % 3 == 0:
            host.get("/aprendiz/runs")
    return 1000 * (host.get("/aprendiz-probe/spent") - before) / 90


def until(true: Any, what: str) -> None:
    """Wait for something that has no page to show it."""
    end = time.monotonic() + PATIENCE / 1000
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, of 255."""
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def note(host: webui_host.Host, values: dict[str, Any]) -> None:
    """Write part of the host's row; what another version of it did is forgotten."""
    file = ROWS / f"{host.name.lower()}-page.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    here = {"host": host.name, "version": host.version, "commit": host.commit}
    rows = rows if here.items() <= rows.items() else {}
    file.write_text(json.dumps({**rows, **here, **values}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def test_from_click_to_a_lora_that_changes_a_picture_while_the_host_draws_and_reloads(
        page: Page, host: webui_host.Host, data: Path) -> None:
    without = host.draw("true", "a cat", **TRUE)
    assert np.asarray(without).std() > 1  # random weights draw nothing at all of some prompts
    read_from_txt2img(page)
    fill_in(page, data, "swimmer", STEPS, data / "models" / "Stable-diffusion" / "true.safetensors")
    page.locator("#aprendiz-start").click()
    press(page, "Pause")  # it is there before the first step
    shows(page, "Paused; the memory is free.")
    press(page, "Resume")
    run = run_of(data, "swimmer")
    drawn = run.values()["samples"]
    assert (drawn["sampler_steps"], drawn["guidance"], drawn["sample_width"], drawn["sample_height"]) == (3, 5, 64, 128)
    polled = polling_cost(host, "swimmer")
    steps = [event["step"] for event in run.events() if event["event"] == "step"]
    assert difference(host.draw("true", "a cat", **TRUE), without) == 0  # it draws, and the same, while a run trains
    during = run.state
    starts = host.starts()
    page.locator("#footer, footer").get_by_text("Reload UI").first.click()
    page.wait_for_timeout(1500)
    leave(page)
    until(lambda: host.starts() > starts and answers(host), "the host is back")
    opened(page, host)
    page.locator("aprendiz-run").wait_for()  # the run is found again by itself
    assert page.locator(".ap-run").count() == 1
    keep(page, host, "reloaded")
    shows(page, f"Done after {STEPS} steps. The result is swimmer.safetensors.")
    assert len(steps) < STEPS and during == "running"
    until(lambda: (data / "models" / "Lora" / "swimmer.safetensors").is_file(), "the LoRA is where the host looks")
    page.locator('[data-run="swimmer"]').get_by_role("button", name="Send to txt2img").click()
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("<lora:swimmer:1> sks", timeout=PATIENCE)
    listed = {lora["name"]: lora for lora in host.get("/sdapi/v1/loras")}
    assert listed["swimmer"]["alias"] == "swimmer"
    card = host.get("/aprendiz-probe/card", name="swimmer")
    assert card["user_metadata"]["activation text"] == "sks" and card["user_metadata"]["sd version"] == "SD1"
    assert "swimmer.png" in urllib.parse.unquote(card["preview"])
    changed = difference(without, host.draw("true", "a cat <lora:swimmer:1>", **TRUE))
    assert changed > 0.2
    note(host, {"trained_steps": STEPS, "picture_difference": round(changed, 3), "draws_while_training": True,
                "run_after_reload": "shown", "polling_ms_a_second": round(polled, 2), "prompt": "<lora:swimmer:1> sks"})
    page.locator("#txt2img_extra_tabs button").filter(has_text="Lora").first.click()
    expect(page.locator('#txt2img_lora_cards [data-name="swimmer"]')).to_be_visible(timeout=PATIENCE)


def leave(page: Page) -> None:
    """Away from the host's page: its own script would open it anew while we do, and may be about to."""
    try:
        page.goto("about:blank")
    except Error as error:
        if "interrupted by another navigation" not in str(error):
            raise
        page.wait_for_load_state()
        page.goto("about:blank")


def answers(host: webui_host.Host) -> bool:
    try:
        return bool(host.get("/aprendiz-probe/versions"))
    except (urllib.error.URLError, ConnectionError, webui_host.HostError, ValueError):
        return False


def test_the_page_takes_both_halves_of_the_train_tab_while_it_is_shown(page: Page, host: webui_host.Host) -> None:
    if host.name == "Forge":
        pytest.skip("Forge has no Train tab: the page is a tab of its own")
    others = page.locator("#train_tabs button")
    gallery = page.locator("#ti_gallery_container")
    expect(gallery).to_be_hidden()
    wide = page.locator("#aprendiz").bounding_box()
    assert wide is not None and wide["width"] > 1200
    others.first.click()
    expect(gallery).to_be_visible(timeout=PATIENCE)


def test_our_section_is_in_the_settings(page: Page) -> None:
    page.locator("#tabs button").filter(has_text="Settings").first.click()
    page.locator("#settings button").filter(has_text="Aprendiz").first.click()
    expect(page.locator("#setting_aprendiz_output")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#setting_aprendiz_folders")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#setting_aprendiz_model")).to_be_visible(timeout=PATIENCE)


def test_the_hosts_model_leaves_for_a_run_and_comes_back_by_itself(page: Page, host: webui_host.Host, data: Path) -> None:
    """Settings, Aprendiz: always. The model really goes; a picture drawn meanwhile pauses the run and is the same as before."""
    without = host.draw("true", "a cat", **TRUE)
    before = host.get("/aprendiz-probe/model")
    assert before["open"]
    host.post("/sdapi/v1/options", {"aprendiz_model": "always"})
    try:
        fill_in(page, data, "alone", ENDLESS)
        page.locator("#aprendiz-start").click()
        run = run_of_soon(data, "alone")
        until(lambda: any(event["event"] == "step" for event in run.events()), "a step was made")
        away = host.get("/aprendiz-probe/model")
        beside = host.name == "reForge"  # puts it into the memory beside the card, which on a processor is the same
        assert not away["open"] and (beside or before["mb"] - away["mb"] > 2000)
        page.goto("about:blank")
        opened(page, host)  # looking at the page opens no model
        assert not host.get("/aprendiz-probe/model")["open"] and run.state == "running"
        drawn = host.draw("true", "a cat", **TRUE)
        assert difference(drawn, without) == 0
        meanwhile = host.get("/aprendiz-probe/model")
        assert meanwhile["open"] and [event["event"] for event in run.events()].count("paused") == 1
        until(lambda: run.state == "running", "the run goes on once the host is quiet")
        again = host.get("/aprendiz-probe/model")
        assert not again["open"]
        press(page, "Stop")
        until(lambda: run.state == "stopped", "the run stopped")
        assert difference(host.draw("true", "a cat", **TRUE), without) == 0  # nothing is trained, and it comes back all the same
        assert host.get("/aprendiz-probe/model")["open"]
        if not beside:
            note(host, {"model_leaves_mb": before["mb"] - away["mb"], "model_comes_back_mb": meanwhile["mb"] - away["mb"]})
    finally:
        host.post("/sdapi/v1/options", {"aprendiz_model": "auto"})


def test_a_host_that_closes_leaves_a_run_that_can_be_gone_on_with(page: Page, host: webui_host.Host, data: Path) -> None:
    fill_in(page, data, "broken-off", ENDLESS)
    page.locator("#aprendiz-start").click()
    shows(page, "step")
    run = run_of(data, "broken-off")
    until(lambda: any(event["event"] == "step" for event in run.events()), "a step was made")
    host.stop()
    until(lambda: run.state == "stopped", "the worker saved and stopped")
    assert not run.is_locked and any(run.checkpoints.iterdir())


def test_the_hosts_login_guards_our_routes(host: webui_host.Host, data: Path) -> None:
    host.stop()
    guarded = webui_host.start(Path(os.environ["WEBUI_DIR"]), os.environ["WEBUI_PYTHON"], data, "true", page=True,
                               arguments=["--gradio-auth", "me:secret", "--api-auth", "robot:key"])
    try:
        runs = f"http://127.0.0.1:{guarded.port}/aprendiz/runs"
        assert asked(runs) == 401
        assert asked(runs.replace("/runs", "/page.js")) == 401
        assert asked(runs, authorization="robot:wrong") == 401
        assert asked(runs, authorization="robot:key") == 200
        elsewhere = json.dumps({"form": {"method": "lora", "controls": {"aprendiz-data-path": os.path.abspath(os.sep)}}}).encode()
        assert asked(runs.replace("/runs", "/pictures"), "robot:key", elsewhere) == 400
        person = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        login = urllib.parse.urlencode({"username": "me", "password": "secret"}).encode()
        with person.open(f"http://127.0.0.1:{guarded.port}/login", login) as answer:
            assert answer.status == 200
        with person.open(runs) as answer:
            names = {run["name"] for run in json.loads(answer.read())["runs"]}
            assert names == {job.parent.name for job in (data / "outputs" / "aprendiz").glob("*/job.json")} and "swimmer" in names
    finally:
        guarded.stop()


def test_install_leaves_the_hosts_packages_as_they_are_and_is_done_once(host: webui_host.Host, tmp_path: Path) -> None:
    """With a connection to the package index."""
    folder, python = Path(os.environ["WEBUI_DIR"]), os.environ["WEBUI_PYTHON"]
    shutil.copyfile(HERE.parents[1] / "install.py", tmp_path / "install.py")
    outside = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}

    def ran(*command: str) -> str:
        done = subprocess.run([python, *command], capture_output=True, text=True, encoding="utf-8", check=True,
                              env={**outside, "PYTHONPATH": str(folder)})
        return done.stdout

    before = ran("-m", "pip", "freeze")
    assert "ready" in ran(str(tmp_path / "install.py"))
    assert ran("-m", "pip", "freeze") == before
    started = time.perf_counter()
    assert ran(str(tmp_path / "install.py")) == ""
    note(host, {"install_again_seconds": round(time.perf_counter() - started, 2), "install_moves_packages": False})


def asked(address: str, authorization: str = "", body: bytes | None = None) -> int:
    """The status of an answer."""
    request = urllib.request.Request(address, body)
    if authorization:
        request.add_header("Authorization", "Basic " + base64.b64encode(authorization.encode()).decode())
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
