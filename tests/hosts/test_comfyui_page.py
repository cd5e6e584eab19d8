"""ComfyUI's real page in a real browser: nodes are made and set, a run shows on its node, in the sidebar, and after a reload."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BROWSERS
from test_comfyui import Comfy, comfy

__all__ = ["comfy"]
pytestmark = [pytest.mark.comfyui, pytest.mark.page]
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), "")
VUE = "Comfy.VueNodes.Enabled"

MAKE = """async ([folder, name]) => {
    app.graph.clear()
    const add = (type, x, y) => { const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); return node }
    const base = add('AprendizBase', 40, 80), data = add('AprendizDatasetFolder', 40, 300)
    const train = add('AprendizTrainLora', 480, 80)
    base.connect(0, train, 0)
    data.connect(0, train, 1)
    const set = (node, values) => {
        for (const [key, value] of Object.entries(values)) node.widgets.find(one => one.name === key).value = value }
    set(data, { folder })
    set(train, { steps: 3, rank: 2, learning_rate: '0.004', sampler_steps: 2, sample_prompts: 'a red fish', device: 'cpu', name })
    window.train = train
    await new Promise(done => setTimeout(done, 300))
    return train.widgets.filter(one => !one.hidden).map(one => one.name) }"""
SIDE = "document.querySelector('.aprendiz-side aprendiz-run')"
PANEL = "window.train.aprendiz_place?.querySelector('aprendiz-run')?.shadowRoot?.querySelector('.state')?.textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def open_page(browser: Any, comfy: Comfy, vue: bool) -> Any:
    """ComfyUI's page, its own dialogs closed, with the classic canvas or with Nodes 2.0."""
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(120_000)
    page.route(lambda url: "127.0.0.1" not in url, lambda route: route.abort())
    comfy.ask("/settings", {"Comfy.TutorialCompleted": True, VUE: vue, "Comfy.Workflow.WarnBlueprintOverwrite": False})
    goto(page, comfy)
    return page


def goto(page: Any, comfy: Comfy) -> None:
    """Load the page and wait until our part of it is there."""
    page.goto(f"http://127.0.0.1:{comfy.port}/", wait_until="domcontentloaded")
    page.wait_for_function("window.app?.extensionManager && window.app?.graph && !!customElements.get('aprendiz-run')")
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_a_run_shows_on_its_node_and_in_the_sidebar_and_after_a_reload(vue: bool, browser: Any, comfy: Comfy) -> None:
    page = open_page(browser, comfy, vue)
    name = "page-vue" if vue else "page-classic"
    ARTIFACTS.mkdir(exist_ok=True)
    shown = page.evaluate(MAKE, ["fish", name])
    assert {"when", "rank", "learning_rate", "steps", "sample_prompts", "name"} <= set(shown)
    assert "beta1" not in shown and "sampler_steps" in shown  # folded, but for what was changed
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function("window.train.aprendiz_shown")
    page.wait_for_timeout(1000)
    page.wait_for_function(f"window.train.aprendiz_place.isConnected && {PANEL} === 'finished'")
    if vue:
        page.locator("[data-node-id] .lg-node-widgets").get_by_role("button", name="All settings", exact=True).first.wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=str(ARTIFACTS / f"comfyui-{name}.png"))
    page.evaluate("app.extensionManager.command.execute('aprendiz.showRuns')")
    row = page.locator("[data-run]", has_text=name)
    row.wait_for()
    page.keyboard.press("Escape")
    row.click()
    page.wait_for_function(f"{SIDE}?.shadowRoot?.querySelectorAll('.pics img').length === 2")
    page.screenshot(path=str(ARTIFACTS / f"comfyui-{name}-sidebar.png"))
    graph = page.evaluate("JSON.stringify(app.graph.serialize())")
    goto(page, comfy)
    page.evaluate("""async graph => {
        await app.loadGraphData(JSON.parse(graph))
        window.train = app.graph._nodes.find(one => one.type === 'AprendizTrainLora') }""", graph)
    page.wait_for_function(f"window.train.aprendiz_place.isConnected && {PANEL} === 'finished'")
    assert page.evaluate("train.widgets.find(one => one.name === 'learning_rate').value") == "0.004"
    page.close()


def test_a_node_is_made_from_the_settings_of_a_run(browser: Any, comfy: Comfy) -> None:
    page = open_page(browser, comfy, False)
    page.evaluate("app.graph.clear()")
    page.evaluate("app.extensionManager.command.execute('aprendiz.showRuns')")
    page.locator("[data-run]", has_text="page-classic").click()
    page.locator(".aprendiz-side aprendiz-run button[data-command=node]").click()
    page.wait_for_function("app.graph._nodes.length === 3")
    asked = page.evaluate("app.graphToPrompt().then(told => told.output)")
    made = next(node["inputs"] for node in asked.values() if node["class_type"] == "AprendizTrainLora")
    assert (made["steps"], made["rank"], made["learning_rate"], made["name"]) == (3, 2, "0.004", "page-classic")
    assert isinstance(made["base"], list) and isinstance(made["dataset"], list)
    page.close()
