"""The texts of the run panel (`panel.js`) and of ComfyUI's page parts, and what else a page is told. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..texts import say, translations
from .comfy import text

SCRIPT = Path(__file__).with_name("panel.js")

# Beside the nodes: what is wrong with what a node was given.
NO_FOLDER = text("No folder was named. Write the full path of a folder of pictures into 'folder'.")
CAPTION_COUNT = text("There are {pictures} pictures and {captions} captions. Write one caption a line for each, or a single "
                     "one for all.")
NO_LORA = text("There is no LoRA '{name}'. Choose one from the list, or connect 'file' of a training node.")
NO_PROMPT = text("No prompt was given. Write one a line into 'prompts'.")
UNEVEN = text("There are {before} pictures before and {after} after. Connect as many of each.")
NO_DIFFUSERS = text("diffusers is missing or broken ({reason}), and the built-in model needs it. `python -m aprendiz doctor` "
                    "says how to install it.")

# Keys are what the scripts ask for. {fields} are filled in there.
TEXTS: dict[str, str] = {
    "queued": text("queued"), "running": text("running"), "paused": text("paused"), "stopped": text("stopped"),
    "finished": text("finished"), "failed": text("failed"), "dead": text("dead"),
    "pause": text("Pause"), "resume": text("Resume"), "sample": text("Sample now"), "save": text("Save now"),
    "stop": text("Stop"),
    "stop_hint": text("Finishes the step and saves; it can go on later."), "start": text("Go on"), "open": text("Open folder"),
    "node": text("Make a node from these settings"), "settings": text("Settings"), "more": text("Messages"),
    "step": text("step {step} of {steps}"), "speed": text("{speed} steps/s"), "left": text("{time} left"),
    "memory": text("{memory} GB, peak {peak}"), "loss": text("Loss"), "learned": text("What it learned"),
    "mark": text("The upright mark is the base model, same prompts and seeds."), "was": text("was {value}"),
    "subject": text("The subject"), "prompt": text("Follows the prompt"), "kept": text("Other pictures kept"),
    "before": text("before"), "at_step": text("step {step}"), "best": text("best"), "shown_step": text("Step shown"),
    "validation": text("validation {loss}"), "chart": text("Loss from {first} to {last} at step {step}"),
    "say_queued": text("Waiting for its turn: {ahead} before this one."), "say_starting": text("Starting"),
    "say_checking": text("Checking the pictures"), "say_pictures": text("Encoding pictures {done} of {total}"),
    "say_captions": text("Encoding captions {done} of {total}"),
    "say_prior": text("Drawing the base's own pictures {done} of {total}"),
    "say_first": text("Everything is ready; the first step is being taken."),
    "say_falling": text("The loss is still falling: {before} to {after} over the last steps."),
    "say_flat": text("The loss has hardly moved over the last steps. You can stop here or let it finish; look at the pictures."),
    "say_validation": text("Step {step} has the lowest loss on the pictures kept apart so far, {loss}."),
    "say_worse": text("The loss on the pictures kept apart has not fallen since step {step}: that state may be the best one."),
    "say_paused": text("Paused; the memory is free. Resume goes on from step {step}."),
    "say_stopped": text("Stopped after step {step}, and saved. Go on takes it up from there."),
    "say_dead": text("Its worker ended without a word. Go on takes it up from the last saved state."),
    "say_finished": text("Done after {step} steps. The result is {file}."),
    "runs": text("Runs"), "no_runs": text("There are no runs yet. A training node makes one."),
    "back": text("All runs"), "toast_finished": text("{name} has finished."), "toast_failed": text("{name} failed."),
    "toast_stopped": text("{name} was stopped and saved."), "lost": text("The host does not answer."),
    "fold": text("Fewer settings"), "unfold": text("All settings"), "show_runs": text("Show the runs"),
    "stop_all": text("Stop the run that is training"), "compare": text("Compare"),
}
SETTINGS: dict[str, str] = {
    "aprendiz.sampleEverySteps": text("Draw sample pictures every so many steps in new training nodes (0: never)"),
    "aprendiz.keepRunning": text("New training nodes go on when ComfyUI closes"),
    "aprendiz.toasts": text("Tell when a run ends"),
}


def texts(language: str) -> dict[str, str]:
    """The panel's texts in a language."""
    known = translations(language)
    return {key: known.get(template, template) for key, template in TEXTS.items()}


def event_in(event: Mapping[str, Any], language: str) -> dict[str, Any]:
    """An event with its texts in a language."""
    told = dict(event)
    if told.get("template"):
        told["text"] = say(told["template"], to=language, **told.get("fields", {}))
    if told.get("problems"):
        told["problems"] = [{**one, "text": say(one["template"], to=language, **one.get("fields", {}))}
                            for one in told["problems"]]
    return told
