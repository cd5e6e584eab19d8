"""The page: one definition for every host, made of whatever Gradio the host has (3.41 to 6), which is handed in as `gr`.

Left the settings, from the schema: the basic ones open, the rest folded under their subject. Right what lives: pictures, runs
and the run panel, which `page.js` draws and keeps up to date from the routes. Only components and arguments that every version
has are used.
"""

from __future__ import annotations

import html
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..errors import AprendizError, Problem
from ..settings import SECTIONS
from ..texts import say
from .controls import Control, controls, filled, job_values
from .desk import Desk
from .presets import cards, presets, subjects
from .questions import plain

TITLES = {
    "base": Problem("The model"),
    "data": Problem("Pictures and captions"),
    "prior": Problem("What must not be forgotten"),
    "objective": Problem("Loss"),
    "optimizer": Problem("Strength of learning"),
    "training": Problem("Duration, size and device"),
    "samples": Problem("Pictures while training"),
    "output": Problem("Name and file"),
}


@dataclass(frozen=True)
class PageHost:
    """What the page needs of its host. checkpoints: what can be chosen as base, beside 'micro'; any path may be typed."""

    desk: Desk
    checkpoints: Callable[[], Sequence[str]] = lambda: ()


class Page:
    """Builds the components, inside a `gr.Blocks` that the host has opened."""

    def __init__(self, gr: Any, host: PageHost) -> None:
        self.gr, self.host = gr, host
        self.version = int(gr.__version__.split(".")[0])
        self.order: list[Control] = []
        self.parts: list[Any] = []
        self.method: Any = None
        self.start: Any = None
        self.check: Any = None

    def build(self) -> None:
        """The whole page."""
        gr = self.gr
        with gr.Column(elem_id="aprendiz"):
            gr.HTML("<style>.aprendiz-hidden { display: none !important }</style>", elem_classes=["aprendiz-hidden"])
            with gr.Row():
                with gr.Column(scale=2, min_width=340, elem_id="aprendiz-settings"):
                    wire = self._settings()
                with gr.Column(scale=3, min_width=380):
                    gr.HTML('<div id="aprendiz-estimate" aria-live="polite"></div>'
                            '<div id="aprendiz-summary" role="status" aria-live="polite"></div>')
                    with gr.Row(elem_id="aprendiz-buttons"):
                        self.check = gr.Button(say("Check"), elem_id="aprendiz-check")
                        self.start = gr.Button(say("Start"), variant="primary", elem_id="aprendiz-start")
                    gr.HTML(f'<div id="aprendiz-live" role="region" aria-label="{html.escape(say("Runs"))}"></div>')
            wire()

    def _settings(self) -> Callable[[], None]:
        """The settings; what binds the buttons to them, once all are there."""
        gr = self.gr
        found = controls()
        names = list(registry.methods())
        titles = {say(method.title): name for name, method in registry.methods().items()}
        first = names[0]
        basic = [control for control in found if control.knob.level == "basic"]
        self._add([control for control in basic if control.section == "base"])
        self.method = gr.Dropdown(label=say("Method"), choices=list(titles), value=say(registry.methods()[first].title),
                                  elem_id="aprendiz-method-name", info=say("The way of teaching."))
        with gr.Row():
            preset = gr.Dropdown(label=say("Preset"), choices=preset_titles(first), value=preset_titles(first)[0],
                                 elem_id="aprendiz-preset", min_width=200,
                                 info=say("Fills in settings that go well together; change them as you like."))
            card = gr.Dropdown(label=say("Card"), choices=[say("As it is"), *(one.title for one in cards())],
                               value=say("As it is"),
                               elem_id="aprendiz-card", min_width=200, info=say("Batch and memory, by the size of your card."))
        self._add([control for control in basic if control.section not in ("base", "method")])
        own: dict[str, Any] = {}
        for name in names:
            with gr.Column(visible=name == first) as own[name]:
                self._add([control for control in basic if control.method == name])
        folded: dict[str, Any] = {}
        for name in names:
            accordion = {"open": False, "elem_id": f"aprendiz-section-{name.replace('_', '-')}"}
            with gr.Column(visible=name == first) as folded[name], gr.Accordion(say(registry.methods()[name].title), **accordion):
                self._add([control for control in found if control.method == name and control not in basic])
        for section in SECTIONS:
            rest = [control for control in found if control.section == section and control not in basic]
            with gr.Accordion(title(section), open=False, elem_id=f"aprendiz-section-{section}"):
                self._add(rest)
        return lambda: self._wire(titles, (preset, card), [*own.values()], [*folded.values()], names)

    def _add(self, these: Sequence[Control]) -> None:
        for control in these:
            self.order.append(control)
            self.parts.append(self._component(control))

    def _component(self, control: Control) -> Any:
        """One setting as a component."""
        gr, value = self.gr, control.shown(control.default)
        common = {"label": control.label, "info": control.help, "elem_id": control.id, "value": value}
        if control.kind == "checkbox":
            return gr.Checkbox(**common)
        if control.kind == "choice":
            if isinstance(control.choices, str):
                listed = list(dict.fromkeys([value, *self.host.checkpoints()]))
                return gr.Dropdown(choices=listed, allow_custom_value=True, **common)
            return gr.Dropdown(choices=list(control.choices), **common)
        if control.kind == "number":
            return gr.Number(precision=0, **common)
        return gr.Textbox(lines=3 if control.kind == "lines" else 1, placeholder=control.empty, **common)

    # Events

    def _wire(self, titles: dict[str, str], choosers: tuple[Any, Any], own: list[Any], folded: list[Any],
              names: list[str]) -> None:
        gr = self.gr
        hidden = {"elem_classes": ["aprendiz-hidden"]}
        answer = gr.Textbox(elem_id="aprendiz-answer", **hidden)
        wanted = gr.Textbox(elem_id="aprendiz-wanted", **hidden)
        fill = gr.Button("fill", elem_id="aprendiz-fill", **hidden)
        look = gr.Button("look", elem_id="aprendiz-look", **hidden)
        inputs = [self.method, *self.parts]

        def values(chosen: str, *given: Any) -> dict[str, Any]:
            return job_values(titles[chosen], zip(self.order, given))

        def begin(chosen: str, *given: Any) -> str:
            return told(lambda: {"started": self.host.desk.begin(values(chosen, *given)).name})

        def reading(what: str) -> Callable[..., str]:
            return lambda chosen, *given: json.dumps({what: values(chosen, *given)})

        def of_run(name: str) -> list[Any]:
            if name.startswith("{"):
                known = json.loads(name)
                chosen = next((title for title, method in titles.items() if method == known.get("method")), None)
                method = gr.update() if chosen is None else gr.update(value=chosen)
                return [json.dumps({"put": True}), method, *some(known), gr.update(), gr.update()]
            try:
                job = self.host.desk.run(name).values()
            except AprendizError as error:
                return [told_problems(error), gr.update(), *(gr.update() for _ in self.parts), gr.update(), gr.update()]
            job["output"] = {**job.get("output", {}), "again": False}
            chosen = next((title for title, one in titles.items() if one == job["method"]["name"]), next(iter(titles)))
            as_it_is = gr.update(value=say("As it is"))  # what a preset filled in before is gone
            return [json.dumps({"filled": name}), gr.update(value=chosen), *(gr.update(value=v) for v in filled(self.order, job)),
                    as_it_is, as_it_is]

        def some(known: dict[str, Any]) -> list[Any]:
            """Settings by name, as the host has them, or by their control's id, as the page puts them back."""
            given = {c.id: known[c.where] for c in self.order if c.where in known and not c.method} | known
            return [gr.update(value=c.shown(given[c.id])) if c.id in given else gr.update() for c in self.order]

        def of_preset(name: str, chosen: str) -> list[Any]:
            values = preset_values(name, titles[chosen])
            mine = ("", titles[chosen])
            return [gr.update(value=c.shown(values[c.where])) if c.where in values and c.method in mine else gr.update()
                    for c in self.order]

        def of_method(chosen: str) -> list[Any]:
            shown = [gr.update(visible=titles[chosen] == name) for name in names]
            listed = preset_titles(titles[chosen])
            return [*shown, *shown, gr.update(choices=listed, value=listed[0])]

        show = "(told) => { window.aprendizPage && window.aprendizPage.answer(told) }"
        for button, work in ((self.start, begin), (self.check, reading("check")), (look, reading("look"))):
            self._then(self._on(button.click, work, inputs, [answer]), show, [answer])
        self._then(self._on(fill.click, of_run, [wanted], [answer, *inputs, *choosers]), show, [answer])
        for chooser in choosers:
            self._on(chooser.change, of_preset, [chooser, self.method], self.parts)
        self._on(self.method.change, of_method, [self.method], [*own, *folded, choosers[0]])

    def _on(self, event: Any, work: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
        """Bind a function, which no host's public API lists."""
        modern = "api_visibility" in inspect.signature(event).parameters
        private = {"api_visibility": "private"} if modern else {"api_name": False}
        return event(work, inputs=inputs, outputs=outputs, show_progress="hidden", **private)

    def _then(self, event: Any, script: str, inputs: list[Any]) -> None:
        """Hand what a function answered to the page's script."""
        event.then(None, inputs, None, **{"_js" if self.version == 3 else "js": script})


def preset_titles(method: str) -> list[str]:
    """What can be chosen for a method; the first changes nothing."""
    return [say("As it is"), *(one.title for one in subjects() if one.method in ("", method))]


def preset_values(title: str, method: str) -> dict[str, Any]:
    """A preset's values by setting; none for the choice that changes nothing. Steps take the place of epochs and minutes."""
    one = next((one for one in presets() if one.title == title and one.method in ("", method)), None)
    values = dict(one.values) if one is not None else {}
    others = {"training.epochs": None, "training.minutes": None} if "training.steps" in values else {}
    return {**others, **values}


def told(work: Callable[[], dict[str, Any]]) -> str:
    """What a piece of work answers as JSON; what a person can mend as problems."""
    try:
        return json.dumps(work())
    except AprendizError as error:
        return told_problems(error)


def told_problems(error: AprendizError) -> str:
    """An error as JSON."""
    return json.dumps({"problems": [plain(problem) for problem in error.problems]})


def title(section: str) -> str:
    """The heading that a section's settings are folded under."""
    return str(TITLES[section])
