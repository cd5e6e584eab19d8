"""The schema as ComfyUI's nodes: every setting has a widget, nothing is lost on the way there and back, no page is stale."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from comfy_door import ROOT, door

from aprendiz import registry
from aprendiz.knobs import kinds, knobs
from aprendiz.settings import SECTIONS, DataSettings, Job, OptimizerSettings, TrainingSettings
from aprendiz.texts import LANGUAGES, label, translations
from aprendiz.views import comfy, comfy_nodes, comfy_pages, panel

SETTINGS = [*SECTIONS.values(), *(method.Settings for method in registry.methods().values())]
KNOBS = [(settings, name) for settings in SETTINGS for name in knobs(settings)]


def example(settings: type, name: str) -> Any:
    """A value that is not the default."""
    one, (types, _) = knobs(settings)[name], kinds(settings)[name]
    default = next(field.default for field in fields(settings) if field.name == name)
    if isinstance(one.choices, tuple):
        return next(choice for choice in one.choices if choice != default)
    if types == (bool,):
        return default is not True
    if tuple in types:
        return [7, 9] if comfy.element(settings, name) is int else ["first", "second"]
    if int in types or float in types:
        number = {True: 8, False: 0.5}[int in types]
        return max(one.min or 0, min(number, one.max if one.max is not None else number))
    return "some words"


@pytest.mark.parametrize(("settings", "name"), KNOBS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_setting_comes_back_from_its_widget_as_it_went_in(settings: type, name: str) -> None:
    default = next(field.default for field in fields(settings) if field.name == name)
    plain = list(default) if isinstance(default, tuple) else default
    assert comfy.taken(settings, name, comfy.shown(settings, name, default)) == plain
    value = example(settings, name)
    assert comfy.taken(settings, name, comfy.shown(settings, name, value)) == value


def test_off_has_a_place_in_every_kind_of_widget() -> None:
    assert comfy.taken(TrainingSettings, "steps", 0) is None
    assert comfy.taken(TrainingSettings, "ema_decay", 0.0) is None
    assert comfy.taken(DataSettings, "trigger", " ") is None
    assert comfy.taken(OptimizerSettings, "max_grad_norm", 0) is None
    assert comfy.taken(OptimizerSettings, "learning_rate", "0.005:100, 1e-5") == "0.005:100, 1e-5"
    assert comfy.taken(OptimizerSettings, "learning_rate", "1e-5") == 1e-5


@pytest.mark.parametrize("method", list(registry.methods()))
def test_a_training_node_has_a_widget_for_every_setting_of_its_method_and_of_the_job(method: str) -> None:
    node = comfy_nodes.nodes()[comfy_nodes.node_id(method)]
    shown = {(one.section, one.setting) for one in node.inputs if one.settings}
    wanted = {("method", name) for name in knobs(registry.methods()[method].Settings)}
    wanted |= {(section, name) for section in SECTIONS if section not in ("base", "data") for name in knobs(SECTIONS[section])}
    assert shown == wanted


def test_the_base_and_dataset_nodes_have_the_rest_of_the_job() -> None:
    nodes = comfy_nodes.nodes()
    base = {one.setting for one in nodes["AprendizBase"].inputs if one.settings}
    data = {one.setting for id in ("AprendizDatasetFolder", "AprendizDatasetOptions") for one in nodes[id].inputs if one.settings}
    assert base == set(knobs(SECTIONS["base"]))
    assert data == set(knobs(SECTIONS["data"]))


@pytest.mark.parametrize("id", list(comfy_nodes.nodes()))
def test_ids_are_ours_and_each_its_own(id: str) -> None:
    node = comfy_nodes.nodes()[id]
    ids = [one.id for one in (*node.inputs, *node.outputs)]
    assert id.startswith("Aprendiz") and node.id == id
    assert len(set(ids)) == len(ids)


def test_ids_of_nodes_never_change() -> None:
    assert {"AprendizBase", "AprendizLoadMicro", "AprendizDatasetFolder", "AprendizDatasetImages", "AprendizDatasetOptions",
            "AprendizTrainLora", "AprendizLoraStack", "AprendizGenerate", "AprendizWalk", "AprendizGrid",
            "AprendizInspect"} <= set(comfy_nodes.nodes())


def test_widgets_that_were_not_touched_ask_for_the_default_job() -> None:
    node = comfy_nodes.nodes()["AprendizTrainLora"]
    values = comfy.job_values(node.inputs, {one.id: one.default for one in node.widgets})
    job = Job.read({**values, "method": {"name": "lora", **values["method"]}, "data": {"path": "pictures"}})
    assert job == Job.read({"data": {"path": "pictures"}})


def test_a_graph_that_lacks_a_widget_keeps_its_default() -> None:
    node = comfy_nodes.nodes()["AprendizTrainLora"]
    values = comfy.job_values(node.inputs, {"rank": 4})
    assert values == {"method": {"rank": 4}}


def test_a_job_becomes_the_widgets_that_ask_for_it_again() -> None:
    node = comfy_nodes.nodes()["AprendizTrainLora"]
    job = Job.read({"data": "pictures", "steps": 77, "learning_rate": "0.005:100, 1e-5", "sample_prompts": ["a", "b"], "rank": 3,
                    "clip_skip": 2})
    widgets = comfy.widget_values(node.inputs, job.values())
    again = comfy.job_values(node.inputs, widgets)
    values = json.loads(json.dumps(job.values()))
    for section, inner in again.items():
        for name, value in inner.items():
            assert value == values[section][name], name


def test_what_belongs_to_a_choice_is_read_however_a_host_names_it() -> None:
    node = comfy_nodes.nodes()["AprendizTrainLora"]
    wanted = {"objective": {"loss": "huber", "huber_delta": 0.25}}
    assert comfy.job_values(node.inputs, {"loss": "huber", "huber_delta": 0.25}) == wanted
    assert comfy.job_values(node.inputs, {"loss": {"loss": "huber", "huber_delta": 0.25}}) == wanted
    for asked in ({"loss.huber_delta": 0.25}, {"huber_delta": 0.25}):
        told = comfy.asked_flat(node.inputs, {**asked, "base": ["1", 0], "strange": 5})
        assert comfy.job_values(node.inputs, {**told, **comfy.flat({"loss": {"loss": "huber", "huber_delta": None}})}) == wanted


def test_every_list_that_others_depend_on_begins_with_its_default() -> None:
    for node in comfy_nodes.nodes().values():
        lists = {one.when[0] for one in node.inputs if one.when} & {one.id for one in node.inputs if one.kind == "COMBO"}
        assert lists == set(node.branches), node.id


@pytest.mark.parametrize("file", [file for file, _ in comfy_pages.files()], ids=lambda file: file.relative_to(ROOT).as_posix())
def test_locales_and_help_pages_are_not_stale(file: Path) -> None:
    written = file.read_text(encoding="utf-8") if file.is_file() else ""
    assert written == dict(comfy_pages.files())[file], "write them anew: python -m aprendiz.views.comfy_pages"


def keys(value: Any) -> Any:
    """The shape of a locale file, without its texts."""
    return {name: keys(inner) for name, inner in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("name", ["nodeDefs", "commands", "settings", "main"])
def test_the_languages_have_equal_keys_and_differing_texts(name: str) -> None:
    read = {language: json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))
            for language in LANGUAGES}
    assert all(keys(one) == keys(read["en"]) for one in read.values())
    assert len({json.dumps(one, sort_keys=True) for one in read.values()}) == len(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_label_is_in_the_language_and_none_is_idle(language: str) -> None:
    named = {one.label for node in comfy_nodes.nodes().values() for one in node.inputs}
    named |= {one.id.replace("_", " ") for node in comfy_nodes.nodes().values() for one in node.outputs}
    known = json.loads((ROOT / "aprendiz" / "texts" / "labels.json").read_text(encoding="utf-8"))
    assert sorted(name for name in named if language not in known.get(name, {})) == []
    assert sorted(set(known) - named) == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_labels_of_one_node_differ_from_each_other(language: str) -> None:
    for node in comfy_nodes.nodes().values():
        shown = [label(one.label, language) for one in node.inputs]
        assert len(set(shown)) == len(shown), node.id


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_the_panel_speaks_every_language(language: str) -> None:
    english, told = panel.texts("en"), panel.texts(language)
    assert english.keys() == told.keys() and english["step"] == "step {step} of {steps}"
    assert [key for key in told if panel.TEXTS[key] not in translations(language)] == []


def test_the_panels_own_english_is_that_of_its_texts() -> None:
    script = panel.SCRIPT.read_text(encoding="utf-8")
    own = script[script.index("const ENGLISH = {"):script.index("\n}\n")]
    lacking = [text for key, text in panel.TEXTS.items()
               if f" {key}: " in own and f"'{text}'" not in own and f'"{text}"' not in own]
    assert lacking == []


def test_the_page_parts_are_small_and_each_checks_as_a_script() -> None:
    files = [ROOT / "web" / "aprendiz.js", panel.SCRIPT]
    assert sum(file.stat().st_size for file in files) < 100_000


def test_the_package_that_comfyui_imports_does_nothing_at_import() -> None:
    assert door().WEB_DIRECTORY == "./web"
    assert not hasattr(door(), "NODE_CLASS_MAPPINGS"), "it would hide the nodes of the third version"
    code = ("import importlib.util, sys; spec = importlib.util.spec_from_file_location('p', sys.argv[1] + '/__init__.py', "
            "submodule_search_locations=[sys.argv[1]]); m = importlib.util.module_from_spec(spec); sys.modules['p'] = m; "
            "spec.loader.exec_module(m); import p.aprendiz.views.comfy_nodes as n, p.nodes.runs, p.nodes.host; n.nodes(); "
            "print(sorted({'torch', 'numpy', 'PIL', 'diffusers'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-S", "-c", code, str(ROOT)], capture_output=True, text=True, encoding="utf-8",
                          check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_registry_gets_what_the_door_needs_and_no_more() -> None:
    import fnmatch
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = [line for line in lines if line and not line.startswith("#")]
    for kept in ("__init__.py", "nodes", "aprendiz", "web", "locales", "example_workflows", "requirements.txt", "pyproject.toml",
                 "README.md", "LICENSE"):
        assert (ROOT / kept).exists() and not any(fnmatch.fnmatch(kept, one.rstrip("/")) for one in ignored), kept
    assert all(any((ROOT).glob(one.rstrip("/"))) for one in ignored), "these are not there"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    comfy_table = project.split("[tool.comfy]", 1)[1].split("\n[", 1)[0]
    for name in ("PublisherId", "DisplayName", "requires-comfyui"):
        assert f"\n{name} = " in comfy_table
    assert "\nweb = " not in comfy_table, "the page part would be loaded twice beside WEB_DIRECTORY"
    assert "publish-node-action" in (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")


def test_the_readme_tells_reviewers_of_every_route() -> None:
    script = (ROOT / "nodes" / "routes.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    named = [line.split('"')[1] for line in script.splitlines() if ".get(\"/aprendiz" in line or ".post(\"/aprendiz" in line]
    assert len(named) == 9
    for route in named:
        words = route.removeprefix("/aprendiz/").replace("{path:.+}", "{picture}")
        assert f"`{words}`" in page, route
