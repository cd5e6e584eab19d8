"""The texts of the run panel (`panel.js`) and of ComfyUI's page parts, and what else a page is told. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..texts import say, translations
from .comfy import word

SCRIPT = Path(__file__).with_name("panel.js")

# Beside the nodes: what is wrong with what a node was given.
NO_FOLDER = word("No folder was named. Write the full path of a folder of pictures into 'folder'.")
CAPTION_COUNT = word("There are {pictures} pictures and {captions} captions. Write one caption a line for each, or a single "
                     "one for all.")
NO_LORA = word("There is no LoRA '{name}'. Choose one from the list, or connect 'file' of a training node.")
NO_EMBEDDING = word("There is no embedding '{name}'. Its file belongs into ComfyUI's folder for embeddings, under that name.")
NO_CONTROL = word("A ControlNet and its condition picture belong together. Connect 'control image' and choose 'control net'.")
NO_PROMPT = word("No prompt was given. Write one a line into 'prompts'.")
UNEVEN = word("Pictures before: {before}, after: {after}. Connect as many of each.")
NO_RUNS_FOLDER = word("The folder for runs, {folder}, is not there. Make it, or write another full path into ComfyUI's settings "
                      "under Aprendiz; empty is the output folder.")
NO_FILE_MANAGER = word("No file manager could be started to show {folder}. Open that folder by yourself.")
NO_DIFFUSERS = word("diffusers is missing or broken ({reason}), and the built-in model needs it. `python -m aprendiz doctor` "
                    "says how to install it.")

# What the routes answer where they do not do what was asked.
NO_SUCH_RUN = word("There is no such run.")
NO_PICTURE = word("There is no such picture.")
NO_NODE = word("There is no node for this method.")
NO_INPUT_FOLDER = word("There is no such folder below ComfyUI's input folder.")
NOT_TO_GO_ON = word("This run is not one to go on with.")
NO_COMMAND = word("There is no such command.")
NO_OFFSET = word("offset is no number.")
OTHER_PAGE = word("This was asked by another page.")
ONLY_JSON = word("Only JSON is taken.")
NO_JSON = word("This is no JSON.")
ONLY_THERE = word("The folder is opened on the machine that ComfyUI runs on, and only from there.")

# Keys are what the scripts ask for. {fields} are filled in there.
TEXTS: dict[str, str] = {
    "queued": word("queued"), "running": word("running"), "paused": word("paused"), "stopped": word("stopped"),
    "finished": word("finished"), "failed": word("failed"), "dead": word("dead"),
    "pause": word("Pause"), "resume": word("Resume"), "sample": word("Sample now"), "save": word("Save now"),
    "stop": word("Stop"),
    "stop_hint": word("Finishes the step and saves; it can go on later."), "start": word("Go on"), "open": word("Open folder"),
    "node": word("Make a node from these settings"), "settings": word("Settings"), "more": word("Messages"),
    "step": word("step {step} of {steps}"), "speed": word("{speed} steps/s"), "left": word("{time} left"),
    "memory": word("{memory} GB, peak {peak}"), "loss": word("Loss"), "learned": word("What it learned"),
    "mark": word("The upright mark is the base model, same prompts and seeds."), "was": word("was {value}"),
    "subject": word("The subject"), "prompt": word("Follows the prompt"), "kept": word("Other pictures kept"),
    "before": word("before"), "at_step": word("step {step}"), "best": word("best"), "shown_step": word("Step shown"),
    "validation": word("validation {loss}"), "chart": word("Loss from {first} to {last} at step {step}"),
    "say_queued": word("Waiting for its turn: {ahead} before this one."), "say_starting": word("Starting"),
    "say_checking": word("Checking the pictures"), "say_pictures": word("Encoding pictures {done} of {total}"),
    "say_captions": word("Encoding captions {done} of {total}"),
    "say_prior": word("Drawing the base's own pictures {done} of {total}"),
    "say_conditions": word("Making condition pictures {done} of {total}"),
    "say_speed": word("Measuring how long a step takes"),
    "say_first": word("Opening the model; then comes the first step."),
    "say_early": word("It learns. After a few more steps this tells how the loss moves."),
    "say_falling": word("The loss is still falling: {before} to {after} over the last steps."),
    "say_flat": word("The loss has hardly moved over the last steps. You can stop here or let it finish; look at the pictures."),
    "say_validation": word("Step {step} has the lowest loss on the pictures kept apart so far, {loss}."),
    "say_worse": word("The loss on the pictures kept apart has not fallen since step {step}: that state may be the best one."),
    "say_paused": word("Paused; the memory is free. Resume goes on from step {step}."),
    "say_lent": word("Paused after step {step} while pictures are drawn on the same card; it goes on by itself."),
    "say_told": word("Passed on. The run hears it after the step that it is at."),
    "say_unbegun": word("Stopped before the first step. Go on begins it."),
    "say_stopped": word("Stopped after step {step}, and saved. Go on takes it up from there."),
    "say_dead": word("Its worker ended without a word. Go on takes it up from the last saved state."),
    "say_finished": word("Done after {step} steps. The result is {file}."),
    "runs": word("Runs"), "no_runs": word("There are no runs yet. A training node makes one."),
    "back": word("All runs"), "toast_finished": word("{name} has finished."), "toast_failed": word("{name} failed."),
    "drop_none": word("There are no pictures in {folder}."), "drop_upload": word("Copying {count} files of {folder}."),
    "newer": word("This graph was saved by a newer Aprendiz; what this one does not know is left out."),
    "toast_stopped": word("{name} was stopped and saved."), "lost": word("The host does not answer."),
    "gone": word("This run is not here any more."),
    "fold": word("Fewer settings"), "unfold": word("All settings"), "show_runs": word("Show the runs"),
    "stop_all": word("Stop the run that is training"), "compare": word("Compare"),
}
SETTINGS: dict[str, str] = {
    "aprendiz.outputFolder": word("Folder in which runs are kept, by its full path (empty: ComfyUI's output folder)"),
    "aprendiz.sampleEverySteps": word("Draw sample pictures every so many steps in new training nodes (0: never)"),
    "aprendiz.keepRunning": word("New training nodes go on when ComfyUI closes"),
    "aprendiz.toasts": word("Tell when a run ends"),
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
