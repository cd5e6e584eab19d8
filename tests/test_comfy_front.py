"""ComfyUI's real front end in a real browser, against a small stand-in for its server (`comfy_page_host.py`).

Nodes are made by hand and set, a recorded run is played, the sidebar is clicked, files and folders are dropped; on the classic
canvas and with Nodes 2.0. Pictures of it are kept in tests/artifacts.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_page_host import RECORDED, PageHost, runs
from conftest import BROWSERS

from aprendiz.formats import graph, png
from aprendiz.settings import Job

playwright = pytest.importorskip("playwright.sync_api", reason="the page lane has playwright installed")
pytestmark = pytest.mark.page
ARTIFACTS = Path(__file__).parent / "artifacts"
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), "")
VUE = "Comfy.VueNodes.Enabled"
SIDE = "document.querySelector('.aprendiz-side aprendiz-run')?.shadowRoot"
MODES = pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageHost]:
    with PageHost(tmp_path_factory.mktemp("host")) as started:
        yield started


@pytest.fixture(scope="module")
def opened(browser: Any, host: PageHost) -> Iterator[dict[bool, Any]]:
    """Pages that are open already, one for each kind of canvas: loading the front end takes most of a test's time."""
    pages: dict[bool, Any] = {}
    yield pages
    for page in pages.values():
        page.close()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Any, host: PageHost, opened: dict[bool, Any]) -> Any:
    """A page with an empty graph; on the classic canvas, or as `vue` says."""
    vue = bool(request.node.callspec.params.get("vue")) if hasattr(request.node, "callspec") else False
    if vue not in opened:
        opened[vue] = open_page(browser, host, vue)
    shown = opened[vue]
    shown.evaluate("app.graph.clear()")
    shown.errors.clear()
    host.client = shown.evaluate("app.api.clientId")
    host.told.clear()
    return shown


def open_page(browser: Any, host: PageHost, vue: bool = False, language: str = "en") -> Any:
    """The page, with our part of it there. Errors that scripts throw are kept."""
    host.settings |= {VUE: vue, "Comfy.Locale": language}
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.set_default_timeout(60_000)
    page.route(lambda url: "127.0.0.1" not in url, lambda route: route.abort())
    page.goto(host.address, wait_until="domcontentloaded")
    page.wait_for_function("window.app?.extensionManager && window.app?.graph && !!customElements.get('aprendiz-run')")
    page.wait_for_timeout(1000)
    page.keyboard.press("Escape")
    page.evaluate("app.graph.clear()")
    return page


def keep(page: Any, name: str) -> None:
    """A picture for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=str(ARTIFACTS / f"comfyui-front-{name}.png"))


def widgets(page: Any, type: str) -> dict[str, Any]:
    """The widgets of the first node of a type that are in sight, with their values."""
    told: dict[str, Any] = page.evaluate(
        "type => Object.fromEntries(app.graph._nodes.find(one => one.type === type).widgets"
        ".filter(one => !one.hidden).map(one => [one.name, one.value ?? null]))", type)
    return told


def queued(page: Any, type: str) -> dict[str, Any]:
    """What a node of the graph asks for when the graph is queued; `loss.huber_delta` by its last part."""
    asked = page.evaluate("app.graphToPrompt().then(told => told.output)")
    found: dict[str, Any] = next(node["inputs"] for node in asked.values() if node["class_type"] == type)
    return {name.rpartition(".")[2]: value for name, value in found.items()}


PANEL = ("(() => { const node = app.graph._nodes.find(one => one.type === 'AprendizTrainLora'); "
         "return node?.aprendiz_place?.querySelector('aprendiz-run')?.shadowRoot })()")


def run_on_its_node(page: Any, host: PageHost, name: str) -> Any:
    """A run of a new node, whose panel shows its twentieth step."""
    run = host.begin(name)
    host.start(run, training_node(page))
    host.go_on(run, "step 20")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
    return run


def turn(page: Any, vue: bool, words: str) -> None:
    """Press the button of these words on the first node; on the classic canvas, where it is drawn, by its function."""
    if vue:
        page.locator("[data-node-id] .lg-node-widgets").get_by_role("button", name=words, exact=True).dispatch_event("click")
    else:
        page.evaluate("words => app.graph._nodes[0].widgets.find(one => one.label === words).callback()", words)


def seen(page: Any, vue: bool, label: str) -> bool | None:
    """Whether Nodes 2.0 draw this widget; None on the classic canvas."""
    return page.locator("[data-node-id] .lg-node-widgets").get_by_text(label, exact=True).first.is_visible() if vue else None


def drag_in(page: Any, title: str, x: int, y: int) -> None:
    """A node from the node library onto the canvas, by the mouse."""
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    page.get_by_placeholder("Search Nodes").fill(title)
    leaf = page.locator(".sidebar-content-container, .side-tool-bar-container, body").get_by_text(title, exact=True).last
    leaf.wait_for()
    leaf.drag_to(page.locator("#graph-canvas"), target_position={"x": x, "y": y})
    page.wait_for_function("app.graph._nodes.length > 0")
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")


@MODES
def test_a_node_is_dragged_in_set_and_follows_its_run(vue: bool, page: Any, host: PageHost) -> None:
    name = "nodes-2" if vue else "classic"
    drag_in(page, "Train LoRA", 700, 120)
    shown = widgets(page, "AprendizTrainLora")
    assert {"when", "rank", "learning_rate", "steps", "name"} <= set(shown) and "beta1" not in shown
    page.wait_for_timeout(500)
    keep(page, f"{name}-folded")
    assert seen(page, vue, "beta1") is (None if not vue else False)
    turn(page, vue, "All settings")
    page.wait_for_timeout(500)
    assert "beta1" in widgets(page, "AprendizTrainLora")
    keep(page, f"{name}-unfolded")
    assert seen(page, vue, "beta1") is (None if not vue else True)
    page.evaluate("{ const set = (name, value) => { const one = app.graph._nodes[0].widgets.find(one => one.name === name);"
                  " one.value = value; one.callback?.(value) }; set('beta1', 0.5); set('rank', 8) }")
    turn(page, vue, "Fewer settings")
    page.wait_for_timeout(300)
    assert seen(page, vue, "beta2") is (None if not vue else False)
    shown = widgets(page, "AprendizTrainLora")
    assert shown["beta1"] == 0.5 and "beta2" not in shown, "what was changed stays in sight"
    assert queued(page, "AprendizTrainLora")["rank"] == 8
    run = host.begin(f"followed-{name}")
    host.start(run, str(page.evaluate("app.graph._nodes[0].id")))
    host.go_on(run, "step 30")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 30 of 60')")
    page.wait_for_timeout(500)
    keep(page, f"{name}-running")
    host.go_on(run)
    host.end(run)
    page.wait_for_function(f"{PANEL}?.querySelector('.state')?.textContent === 'finished'")
    page.get_by_text(f"followed-{name} has finished.").first.wait_for()
    page.wait_for_timeout(700)
    keep(page, f"{name}-finished")
    assert page.evaluate(f"{PANEL}.querySelectorAll('.pics img').length") == 2
    assert page.errors == []


@MODES
def test_what_belongs_to_a_choice_comes_and_goes_with_it(vue: bool, page: Any) -> None:
    page.evaluate(MAKE)
    page.wait_for_timeout(500)
    keep(page, f"{'nodes-2' if vue else 'classic'}-choice")
    shown = [name.rpartition(".")[2] for name in widgets(page, "AprendizTrainLora")]
    assert shown.index("huber_delta") == shown.index("loss") + 1
    page.evaluate("{ const one = app.graph._nodes.find(one => one.type === 'AprendizTrainLora').widgets"
                  ".find(one => one.name === 'loss'); one.value = 'mse'; one.callback?.('mse') }")
    page.wait_for_timeout(300)
    assert not [name for name in widgets(page, "AprendizTrainLora") if name.endswith("huber_delta")]


@MODES
def test_the_sidebar_shows_runs_steers_them_and_makes_nodes_of_their_settings(vue: bool, page: Any, host: PageHost) -> None:
    name = "nodes-2" if vue else "classic"
    run = host.begin(f"steered-{name}")
    host.go_on(run, "step 45")
    page.keyboard.press("Alt+Shift+A")
    row = page.locator(".aprendiz-side [data-run]", has_text=f"steered-{name}")
    row.wait_for()
    assert "step 45 of 60" in row.inner_text() and "running" in row.inner_text()
    keep(page, f"{name}-runs")
    row.click()
    page.wait_for_function(f"{SIDE}?.querySelectorAll('.pics img').length === 2")
    for command in ("sample", "pause", "save", "stop"):
        page.locator(f".aprendiz-side aprendiz-run button[data-command={command}]").click()
    page.evaluate(f"{{ const slider = {SIDE}.querySelector('input'); slider.value = '1';"
                  " slider.dispatchEvent(new Event('input')) }")
    page.wait_for_timeout(400)
    assert page.evaluate(f"{SIDE}.querySelectorAll('.pics img')[1].src").endswith("samples/step-000020-0.png")
    shown = page.locator(".aprendiz-set")
    shown.locator("summary").click()
    assert "learning rate\n0.004" in shown.inner_text()
    keep(page, f"{name}-sidebar")
    page.locator(".aprendiz-side aprendiz-run button[data-command=node]").click()
    page.wait_for_function("app.graph._nodes.length === 4")
    made = queued(page, "AprendizTrainLora")
    assert (made["steps"], made["rank"], made["learning_rate"], made["name"]) == (60, 8, "0.004", "fish")
    assert isinstance(made["base"], list) and isinstance(made["dataset"], list)
    assert isinstance(queued(page, "AprendizDatasetFolder")["options"], list)
    assert queued(page, "AprendizDatasetOptions")["validation_share"] == 0.2
    if vue:
        page.locator("[data-node-id] .lg-node-widgets input").first.wait_for()
        shown = page.evaluate("[...document.querySelectorAll('[data-node-id] .lg-node-widgets input')].map(one => one.value)")
        assert {"fish", "0.004"} <= set(shown), "what they draw is what is set"
    assert [command for _, command in host.told] == ["sample", "pause", "save", "stop"]
    page.locator(".aprendiz-back").click()
    row.wait_for()
    page.keyboard.press("Alt+Shift+A")
    assert page.errors == []


def test_a_reloaded_page_shows_the_run_as_it_is(page: Any, browser: Any, host: PageHost) -> None:
    page.evaluate("() => { app.graph.add(LiteGraph.createNode('AprendizTrainLora')) }")
    run = host.begin("reloaded")
    host.start(run, str(page.evaluate("app.graph._nodes[0].id")))
    host.go_on(run, "step 20")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
    graph = page.evaluate("JSON.stringify(app.graph.serialize())")
    page.evaluate("app.graph.clear()")
    host.go_on(run, "step 40")
    again = open_page(browser, host)
    again.evaluate("async graph => { await app.loadGraphData(JSON.parse(graph)) }", graph)
    again.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 40 of 60')")
    again.close()


# What the front end does whenever a key or the mouse is let go: it looks whether the graph has changed.
CHECK = ("{ const one = app.extensionManager.workflow.activeWorkflow.changeTracker; "
         "(one.captureCanvasState ?? one.checkState).call(one) }")


def training_node(page: Any) -> str:
    """A training node on the canvas: its id."""
    return str(page.evaluate("() => { const node = LiteGraph.createNode('AprendizTrainLora'); app.graph.add(node); "
                             "return node.id }"))


def test_only_the_training_node_of_the_page_that_queued_it_gets_a_panel(page: Any, host: PageHost) -> None:
    train = training_node(page)
    other = str(page.evaluate("() => { const node = LiteGraph.createNode('AprendizGrid'); app.graph.add(node); return node.id }"))
    run = host.begin("elsewhere")
    host.start(run, train, client="another page")
    host.start(run, other)
    host.start(run, f"{other}:{train}")
    host.start(run, train, graph="a graph in another tab")
    result = {"aprendiz": [{"id": runs.run_id(run.folder), "name": run.name, "graph": "a graph in another tab"}]}
    page.evaluate("result => app.graph._nodes[0].onExecuted(result)", result)
    after = host.begin("here")
    host.start(after, training_node(page), graph=page.evaluate("app.graphToPrompt().then(told => told.workflow.id)"))
    page.wait_for_function("app.graph._nodes[2].properties.aprendiz_run")
    shown = page.evaluate("app.graph._nodes.map(one => one.properties.aprendiz_run ?? null)")
    assert shown == [None, None, runs.run_id(after.folder)]
    assert page.errors == []


def test_a_run_of_another_tab_shows_when_its_tab_comes_to_the_front(page: Any, host: PageHost) -> None:
    new_tab(page)
    train, graph = training_node(page), page.evaluate("app.graphToPrompt().then(told => told.workflow.id)")
    new_tab(page)
    assert training_node(page) == train, "a node of the same id"
    run, ended = host.begin("other-tab"), host.begin("other-tab-ended")
    host.start(run, train, graph=graph)
    host.go_on(run, "step 20")
    page.wait_for_timeout(300)
    assert page.evaluate("app.graph._nodes[0].properties.aprendiz_run ?? null") is None
    tab(page, "Previous")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
    saved = page.evaluate("app.graph.serialize().nodes[0].properties.aprendiz_run")
    assert saved == runs.run_id(run.folder)
    tab(page, "Next")
    page.wait_for_function(f"app.graph._nodes.length && !{PANEL}")
    host.start(ended, train, graph=graph)
    host.go_on(ended)
    host.end(ended, train)
    page.get_by_text("other-tab-ended has finished.").first.wait_for()
    tab(page, "Previous")
    page.wait_for_function(f"{PANEL}?.querySelector('.state')?.textContent === 'finished'")
    assert page.evaluate("app.graph._nodes[0].properties.aprendiz_run") == runs.run_id(ended.folder)
    assert page.errors == []


def test_a_result_that_was_told_while_another_tab_was_in_front_shows_too(page: Any, host: PageHost) -> None:
    new_tab(page)
    train, graph = training_node(page), page.evaluate("app.graphToPrompt().then(told => told.workflow.id)")
    saved = page.evaluate("app.graph.serialize()")
    new_tab(page)
    run = host.begin("told-by-result")
    host.go_on(run)
    host.send("executed", {"node": train, "display_node": train, "prompt_id": "1", "output": {"aprendiz": [
        {"id": runs.run_id(run.folder), "name": run.name, "graph": graph}]}})
    page.wait_for_function("graph => sessionStorage.getItem('aprendiz.runs')?.includes(graph)", arg=graph)
    page.evaluate("async graph => { await app.loadGraphData(graph) }", saved)
    page.wait_for_function(f"{PANEL}?.querySelector('.state')?.textContent === 'finished'")
    assert page.errors == []


def test_a_run_keeps_its_panel_when_changes_before_it_are_undone_and_done_again(page: Any, host: PageHost) -> None:
    new_tab(page)
    train = training_node(page)
    page.wait_for_timeout(300)
    for value in (4, 5, 6):
        page.evaluate(f"app.graph._nodes[0].widgets.find(one => one.name === 'rank').value = {value}")
        page.evaluate(CHECK)
    run = host.begin("undone")
    host.start(run, train, graph=page.evaluate("app.graphToPrompt().then(told => told.workflow.id)"))
    host.go_on(run, "step 20")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
    page.evaluate(CHECK)
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    rank = "app.graph._nodes[0].widgets.find(one => one.name === 'rank').value"
    for way, aim in (("undo", 5), ("redo", 6)):
        for _ in range(2):  # that a node shows a run may be a change of its own
            page.evaluate(f"{tracker}.{way}()")
            page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
            page.wait_for_timeout(500)
            page.evaluate(CHECK)
        assert page.evaluate(rank) <= aim if way == "undo" else page.evaluate(rank) == aim
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
    assert page.evaluate("app.graph._nodes[0].properties.aprendiz_run") == runs.run_id(run.folder) and page.errors == []


@MODES
def test_a_copy_of_a_node_does_not_show_the_run_of_the_first(vue: bool, page: Any, host: PageHost) -> None:
    run = run_on_its_node(page, host, f"copied-{vue}")
    page.evaluate("{ const node = app.graph._nodes[0]; app.canvas.selectNode(node); app.canvas.copyToClipboard([node]); "
                  "app.canvas.pasteFromClipboard() }")
    page.wait_for_function("app.graph._nodes.length === 2")
    page.wait_for_timeout(300)
    shown = page.evaluate("app.graph._nodes.map(one => [one.properties.aprendiz_run ?? null, "
                          "one.aprendiz_place.children.length])")
    assert shown == [[runs.run_id(run.folder), 1], [None, 0]] and page.errors == []


def test_a_node_that_is_taken_out_and_put_back_follows_its_run_again(page: Any, host: PageHost) -> None:
    run = run_on_its_node(page, host, "put-back")
    page.evaluate("() => { window.node = app.graph._nodes[0]; app.graph.remove(node) }")
    asked = len(host.asked)
    page.wait_for_timeout(2500)
    assert f"/aprendiz/runs/{runs.run_id(run.folder)}/events" not in host.asked[asked:], "nobody asks for what is not shown"
    page.evaluate("() => { app.graph.add(window.node) }")
    host.go_on(run, "step 40")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 40 of 60')")
    assert page.errors == []


def test_a_page_that_could_not_ask_us_opens_graphs_and_saves_them_whole(page: Any, browser: Any, host: PageHost) -> None:
    page.evaluate(MAKE)
    run = host.begin("unasked")
    train = page.evaluate("app.graph._nodes.find(one => one.type === 'AprendizTrainLora').id")
    host.start(run, str(train))
    page.wait_for_function(PANEL)
    saved = page.evaluate("app.graph.serialize()")
    deaf = browser.new_page()
    deaf.route(re.compile("/aprendiz/(texts|nodes)"), lambda route: route.abort())
    deaf.goto(host.address, wait_until="domcontentloaded")
    deaf.wait_for_function("window.app?.extensionManager && window.app?.graph"
                           " && !!LiteGraph.registered_node_types.AprendizTrainLora")
    deaf.wait_for_timeout(1000)
    again = deaf.evaluate("async graph => { await app.loadGraphData(graph); return app.graph.serialize() }", saved)
    deaf.close()
    page.evaluate("async graph => { await app.loadGraphData(graph) }", again)
    asked = queued(page, "AprendizTrainLora")
    assert (asked["rank"], asked["huber_delta"], asked["loss"], asked["name"]) == (3, 0.25, "huber", "zwx")
    page.wait_for_function(PANEL)


def new_tab(page: Any) -> None:
    """An empty workflow in a tab of its own, in front."""
    page.evaluate(CHECK)
    before = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("before => app.extensionManager.workflow.activeWorkflow.path !== before && !app.graph._nodes.length",
                           arg=before)


def tab(page: Any, which: str) -> None:
    """Bring the Next or Previous tab to the front."""
    page.evaluate(CHECK)
    before = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    page.evaluate("which => app.extensionManager.command.execute(`Workspace.${which}OpenedWorkflow`)", which)
    page.wait_for_function("before => app.extensionManager.workflow.activeWorkflow.path !== before", arg=before)


@MODES
def test_a_training_node_in_a_subgraph_gets_its_panel(vue: bool, page: Any, host: PageHost) -> None:
    training_node(page)
    inner = page.evaluate("() => { const made = app.graph.convertToSubgraph(new Set(app.graph._nodes)).node; window.inner = "
                          "made.subgraph._nodes[0]; return `${made.id}:${inner.id}` }")
    run = host.begin(f"inner-{vue}")
    host.start(run, inner)
    page.wait_for_function("inner.aprendiz_place.querySelector('aprendiz-run')")
    assert page.evaluate("inner.properties.aprendiz_run") == runs.run_id(run.folder) and page.errors == []


def test_nodes_are_made_in_the_subgraph_that_is_open(page: Any, host: PageHost) -> None:
    training_node(page)
    run = host.begin("in-subgraph")
    host.go_on(run, "step 20")
    page.evaluate("() => { window.inner = app.graph.convertToSubgraph(new Set(app.graph._nodes)).node.subgraph; "
                  "app.canvas.setGraph(inner) }")
    page.keyboard.press("Alt+Shift+A")
    page.locator(".aprendiz-side [data-run]", has_text=run.name).click()
    page.locator(".aprendiz-side aprendiz-run button[data-command=node]").click()
    page.wait_for_function("inner._nodes.length === 5")
    page.keyboard.press("Alt+Shift+A")
    page.evaluate("app.canvas.setGraph(app.rootGraph ?? app.graph)")
    assert page.errors == []


def test_the_list_of_runs_is_kept_up_and_works_with_the_keyboard(page: Any, host: PageHost) -> None:
    run = host.begin("by-keyboard")
    host.go_on(run, "step 20")
    page.keyboard.press("Alt+Shift+A")
    row = page.locator(".aprendiz-side [data-run]", has_text=run.name)
    row.wait_for()
    row.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.className === 'aprendiz-back'")
    page.keyboard.press("Enter")
    focused = "run => document.activeElement.dataset.run === run"
    page.wait_for_function(focused, arg=runs.run_id(run.folder))
    host.end(run)  # as when any run ends: the list is made anew
    host.go_on(run, "step 45")
    row.filter(has_text="step 45 of 60").wait_for()
    assert page.evaluate(focused, runs.run_id(run.folder))
    host.go_on(run, "step 50")  # nobody tells of a step
    row.filter(has_text="step 50 of 60").wait_for()
    assert page.evaluate(focused, runs.run_id(run.folder))
    page.keyboard.press("Alt+Shift+A")
    asked = len(host.asked)
    page.wait_for_timeout(5500)
    assert "/aprendiz/runs" not in host.asked[asked:], "a list that is closed is not asked for"
    assert page.errors == []


def test_a_panel_says_that_the_server_is_away_and_comes_back_with_it(page: Any, host: PageHost) -> None:
    run = run_on_its_node(page, host, "away")
    page.route("**/aprendiz/runs/*/events**", lambda route: route.abort())
    away = page.get_by_text("The host does not answer.")
    away.wait_for()
    keep(page, "away")
    page.unroute("**/aprendiz/runs/*/events**")
    host.go_on(run)
    page.wait_for_function(f"{PANEL}?.querySelector('.state')?.textContent === 'finished'")
    away.wait_for(state="hidden")
    with page.expect_request("**/aprendiz/runs/*/events**"):
        page.evaluate("app.api.dispatchEvent(new CustomEvent('reconnected'))")
    assert page.errors == []


@MODES
def test_a_run_that_is_gone_leaves_its_node_and_the_sidebar(vue: bool, page: Any, host: PageHost) -> None:
    run = run_on_its_node(page, host, f"gone-{vue}")
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    page.keyboard.press("Alt+Shift+A")
    page.locator(".aprendiz-side [data-run]", has_text=run.name).click()
    page.wait_for_function(f"{SIDE}?.querySelector('.figures')?.textContent.startsWith('step 20 of 60')")
    shutil.rmtree(run.folder)
    page.get_by_text("This run is not here any more.").first.wait_for()
    page.wait_for_function(f"!{PANEL} && !{SIDE}")
    assert page.evaluate("app.graph._nodes[0].properties.aprendiz_run ?? null") is None
    page.wait_for_function("document.querySelector('.aprendiz-side') && !document.querySelector('.aprendiz-back')")
    page.keyboard.press("Alt+Shift+A")
    page.evaluate("async graph => { await app.loadGraphData(JSON.parse(graph)) }", saved)
    page.wait_for_function(f"!app.graph._nodes[0].properties.aprendiz_run && !{PANEL}")
    keep(page, f"gone-{vue}")
    assert page.errors == []


def test_a_run_trained_anew_under_the_same_name_begins_its_panel_anew(page: Any, host: PageHost) -> None:
    run = host.begin("anew")
    host.start(run, training_node(page))
    host.go_on(run, "step 40")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 40 of 60')")
    page.route("**/aprendiz/runs/*/events**", lambda route: route.abort())  # so that the page does not see it gone
    shutil.rmtree(run.folder)
    job = json.loads((RECORDED / "job.json").read_text(encoding="utf-8"))
    host.begin("anew")
    (run.folder / "job.json").write_text(json.dumps({**job, "method": {**job["method"], "rank": 3}}), encoding="utf-8")
    page.unroute("**/aprendiz/runs/*/events**")
    host.go_on(run, "step 2")
    page.wait_for_function(f"{PANEL}?.querySelector('.figures')?.textContent.startsWith('step 2 of 60')")
    page.wait_for_function(f"{PANEL}.querySelector('svg').getAttribute('aria-label').endsWith('at step 2')")
    page.wait_for_function(f"{PANEL}.textContent.includes('rank 3')")
    assert page.errors == []


def test_a_nodes_own_height_stays_when_its_graph_is_opened_or_a_change_undone(page: Any) -> None:
    training_node(page)
    page.wait_for_timeout(300)
    high = page.evaluate("() => { const node = app.graph._nodes[0]; node.setSize([500, node.size[1] + 300]); "
                         "return node.size[1] }")
    saved = page.evaluate("app.graph.serialize()")
    for _ in range(2):
        page.evaluate("async graph => { await app.loadGraphData(graph) }", saved)
        page.wait_for_timeout(300)
        assert page.evaluate("[...app.graph._nodes[0].size]") == [500, high]
    turn(page, False, "All settings")
    assert page.evaluate("app.graph._nodes[0].size[1]") > high, "what is unfolded has its room"


def drop(page: Any, *paths: Path) -> None:
    """Files or folders of the disk, dropped on the canvas as by a person's mouse."""
    client = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        client.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 300, "data": data})
        page.wait_for_timeout(200)  # whether a place takes what hangs over it is asked of the page


@pytest.mark.parametrize("captions", [True, False], ids=["captioned", "bare"])
def test_a_dropped_folder_of_pictures_becomes_a_graph_that_is_ready(captions: bool, page: Any, host: PageHost,
                                                                    tmp_path: Path) -> None:
    from PIL import Image
    folder = tmp_path / "Mi jarrón"
    for number in range(24):
        (folder / "more").mkdir(parents=True, exist_ok=True)
        place = folder / "more" if number >= 20 else folder
        Image.new("RGB", (640, 512), (10 * number, 90, 10)).save(place / f"{number:02}.jpg")
        if captions:
            (place / f"{number:02}.txt").write_text("a vase on a table", encoding="utf-8")
    (folder / "letter.docx").write_bytes(b"nothing of ours")
    (folder / "more" / "concept.json").write_text('{"trigger": "zwx"}', encoding="utf-8")
    sd15_checkpoint(host.folder / "models" / "sd15.safetensors")
    before = set((host.folder / "input").iterdir())
    drop(page, folder)
    page.wait_for_function("app.graph._nodes.length === 3")
    page.wait_for_timeout(500)
    keep(page, f"dropped-{'captioned' if captions else 'bare'}")
    (uploaded,) = set((host.folder / "input").iterdir()) - before
    assert uploaded.name.startswith("Mi-jarron-") and len(list(uploaded.rglob("*.jpg"))) == 24
    assert len(list((uploaded / "more").glob("*.jpg"))) == 4 and not list(uploaded.rglob("*.docx"))
    assert (uploaded / "more" / "concept.json").read_text(encoding="utf-8") == '{"trigger": "zwx"}'
    assert queued(page, "AprendizDatasetFolder")["folder"] == uploaded.name
    assert queued(page, "AprendizBase")["base"] == "sd15.safetensors"
    asked = queued(page, "AprendizTrainLora")
    assert (asked["batch_size"], asked["steps"], asked["sample_every_steps"]) == (2, 1200, 300), "12 GB, 24 pictures"
    assert queued(page, "AprendizDatasetFolder")["trigger"] == ("" if captions else "mi-jarron")
    assert isinstance(asked["base"], list) and isinstance(asked["dataset"], list)
    assert page.errors == []


def test_a_dropped_folder_without_pictures_is_told_of(page: Any, host: PageHost, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("no picture", encoding="utf-8")
    drop(page, tmp_path / "letters")
    page.get_by_text("There are no pictures in letters.").first.wait_for()
    assert page.evaluate("app.graph._nodes.length") == 0 and not list((host.folder / "input").glob("letters*"))


@pytest.mark.parametrize("kind", ["lora", "sample"])
def test_what_a_run_writes_opens_the_graph_that_trained_it(kind: str, page: Any, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image
    from safetensors.numpy import save_file
    page.evaluate(MAKE)
    told = page.evaluate("app.graphToPrompt().then(({ workflow, output }) => ({ workflow, prompt: output }))")
    graph.keep(tmp_path, told)
    texts = graph.texts(tmp_path, Job.read({"data": "pictures"}))
    file = tmp_path / {"lora": "zwx.safetensors", "sample": "step-000200-0.png"}[kind]
    if kind == "lora":
        save_file({"lora_unet_x.alpha": np.ones(1, np.float32)}, file, texts)
    else:
        png.save_over(Image.new("RGB", (64, 64)), file, png.Parameters("a fish", settings={"Steps": "20"}), texts)
    page.evaluate("app.graph.clear()")
    drop(page, file)
    page.wait_for_function("app.graph._nodes.length === 3")
    page.wait_for_timeout(500)
    keep(page, f"opened-{kind}")
    asked = queued(page, "AprendizTrainLora")
    assert (asked["rank"], asked["huber_delta"], asked["loss"], asked["name"]) == (3, 0.25, "huber", "zwx")
    assert queued(page, "AprendizDatasetFolder")["folder"] == "fish" and isinstance(asked["dataset"], list)
    assert page.errors == []


MAKE = """() => {
    const add = (type, x, y) => { const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); return node }
    const set = (node, values) => {
        for (const [name, value] of Object.entries(values))
            node.widgets.find(one => one.name.split('.').pop() === name).value = value }
    const base = add('AprendizBase', 40, 80), data = add('AprendizDatasetFolder', 40, 300)
    const train = add('AprendizTrainLora', 480, 80)
    base.connect(0, train, 0)
    data.connect(0, train, 1)
    set(data, { folder: '/home/jane/My pictures/fish' })
    set(train, { rank: 3, loss: 'huber', huber_delta: 0.25, name: 'zwx' }) }"""


@pytest.mark.parametrize(("language", "words", "setting"), [
    ("es", ["Entrenar LoRA", "tasa de aprendizaje", "Todos los ajustes"], "Carpeta donde se guardan"),
    ("pt-BR", ["Treinar LoRA", "taxa de aprendizado", "Todos os ajustes"], "Pasta onde ficam")])
def test_the_page_and_its_settings_speak_the_persons_language(language: str, words: list[str], setting: str, browser: Any,
                                                              host: PageHost) -> None:
    page = open_page(browser, host, True, language)
    page.evaluate(MAKE)
    page.wait_for_timeout(1000)
    keep(page, f"language-{language}")
    shown = page.locator("body").inner_text()
    assert [word for word in words if word not in shown] == []
    page.evaluate("app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.get_by_text("Aprendiz", exact=True).first.click()
    page.get_by_text(setting, exact=False).first.wait_for()
    page.wait_for_timeout(300)
    keep(page, f"settings-{language}")
    commands = page.evaluate("app.extensionManager.command.commands.map(one => one.id).filter(id => id.startsWith('aprendiz.'))")
    assert sorted(commands) == ["aprendiz.showRuns", "aprendiz.stop"] and page.errors == []
    page.close()


def test_a_graph_of_another_version_keeps_its_values_by_name(page: Any) -> None:
    page.evaluate(MAKE)
    saved = page.evaluate("app.graph.serialize()")
    train = next(node for node in saved["nodes"] if node["type"] == "AprendizTrainLora")
    values = train["properties"]["aprendiz_values"]
    # As an older version would have saved it: some settings were not there yet, one has gone since, and places were others.
    for name in ("minutes", "loss", "huber_delta", "targets"):
        del values[name]
    values["gone"] = 5
    train["widgets_values"] = list(reversed(train["widgets_values"][:20]))
    page.evaluate("async graph => { await app.loadGraphData(graph) }", saved)
    asked = queued(page, "AprendizTrainLora")
    assert (asked["rank"], asked["name"], asked["loss"], asked["targets"]) == (3, "zwx", "mse", "attention+ff")
    assert "gone" not in asked and page.errors == []
    train["properties"]["aprendiz_schema"] = 99
    page.evaluate("async graph => { await app.loadGraphData(graph) }", saved)
    page.get_by_text("saved by a newer Aprendiz").first.wait_for()


def sd15_checkpoint(file: Path) -> None:
    """A Stable Diffusion 1.5 by its shape, a very small one."""
    from aprendiz import registry
    from aprendiz.formats import checkpoint
    checkpoint.write_single_file(registry.families()["sd1"].tiny(), file)
