"""The texts of the page's own script, in the language of the process. Standard library only: hosts import this."""

from __future__ import annotations

from ..errors import Problem
from ..texts import language, translations
from . import uploads

WORDS = {
    "pictures": Problem("Pictures"),
    "runs": Problem("Runs"),
    "no_runs": Problem("There are no runs yet."),
    "no_folder": Problem("Name a folder of pictures on the left, and they are shown here."),
    "counted": Problem("{total} pictures, {captioned} with a caption, {troubled} need you"),
    "counted_well": Problem("{total} pictures, {captioned} with a caption"),
    "caption_of": Problem("Caption of {name}"),
    "elsewhere": Problem("From a table; change it there."),
    "saved": Problem("Saved"),
    "more": Problem("Show more"),
    "checking": Problem("Checking the pictures"),
    "starting": Problem("Looking at the pictures, then it starts."),
    "fine": Problem("This can be trained."),
    "resume": Problem("Go on"),
    "again": Problem("Use its settings"),
    "delete": Problem("Delete"),
    "really": Problem("Delete {name} and all its files?"),
    "delete_yes": Problem("Yes, delete it"),
    "delete_no": Problem("Keep it"),
    "compare": Problem("Compare"),
    "download": Problem("Download the file"),
    "send": Problem("Send to txt2img"),
    "read": Problem("Read from txt2img"),
    "steps_done": Problem("step {step} of {steps}"),
    "lost": Problem("The server does not answer. Trying again."),
    "filled": Problem("The settings of {name} are filled in. Change what you want and start."),
    "bench": Problem("Change all captions"),
    "put_back": Problem("Put back"),
    "default_is": Problem("Its default: {value}"),
    "nothing": Problem("nothing"),
    "replace_find": Problem("Find in all captions"),
    "replace_by": Problem("Replace by"),
    "replace": Problem("Replace in all"),
    "rename_tag": Problem("Rename tag"),
    "remove_tag": Problem("Remove tag"),
    "add_front": Problem("Put in front of all"),
    "add_end": Problem("Put at the end of all"),
    "write_trigger": Problem("Write '{trigger}' into all"),
    "tags": Problem("Tags of these captions"),
    "tag_hint": Problem("Takes it into the field above."),
    "changing": Problem("Changing the captions"),
    "replaced": Problem("{count} captions were changed."),
    "undo": Problem("Undo"),
    "csv": Problem("Losses as CSV"),
    "log": Problem("Log"),
    "estimating": Problem("Estimating time and memory"),
    "try_it": Problem("Try it"),
    "try_result": Problem("What was learned"),
    "try_file": Problem("A file by its path"),
    "try_none": Problem("The base alone"),
    "try_path": Problem("Path of a LoRA, embedding or ControlNet"),
    "try_step": Problem("After step"),
    "try_weight": Problem("Weight"),
    "try_control": Problem("Condition picture"),
    "try_control_path": Problem("Condition picture, by its path"),
    "too_large": uploads.too_large().problem,
    "sending": Problem("Sending the picture"),
    "try_prompt": Problem("Prompt"),
    "try_trigger": Problem("The word that was taught is {trigger}"),
    "try_more": Problem("Base, size and sampler"),
    "try_base": Problem("Base (empty: the run's own)"),
    "try_negative": Problem("What the picture must not show"),
    "try_seed": Problem("Seed"),
    "try_count": Problem("Pictures on each side"),
    "try_steps": Problem("Sampler steps"),
    "try_guidance": Problem("Guidance"),
    "try_sampler": Problem("Sampler"),
    "try_device": Problem("Device (cpu spares the card)"),
    "try_width": Problem("Width (empty: the base's)"),
    "try_height": Problem("Height (empty: the base's)"),
    "try_bare": Problem("The base alone"),
    "at_step": Problem("step {step}"),
    "at_weight": Problem("weight {weight}"),
    "draw": Problem("Draw"),
    "draw_every": Problem("Draw every saved step"),
    "draw_every_hint": Problem("One row each, to see when it learned enough."),
    "draw_end": Problem("Stop drawing"),
    "draw_waits": Problem("Opening the base"),
    "drawing": Problem("Drawing {done} of {total}"),
    "waits": Problem("Waiting for {device}, where {by} is being trained. It is drawn once that run is paused or has ended."),
    "waits_bare": Problem("Waiting for {device}, which something else is using."),
    "draw_cpu": Problem("Draw on the CPU instead"),
    "pause_it": Problem("Pause {name}"),
    "placed": Problem("Finished while this program was closed, and now where it looks: {names}."),
    "compared": Problem("Compared runs"),
    "until_step": Problem("Samples after step"),
    "no_samples": Problem("no samples yet"),
    "to_start": Problem("Skip the settings, to Start"),
    "loss": Problem("Loss"),
    "queued": Problem("queued"),
    "running": Problem("running"),
    "paused": Problem("paused"),
    "stopped": Problem("stopped"),
    "finished": Problem("finished"),
    "failed": Problem("failed"),
    "dead": Problem("dead"),
}

# In the settings of AUTOMATIC1111 and Forge.
OUTPUT = Problem("Folder for runs; empty: the host's output folder.")
FOLDERS = Problem("Folders that the page may open beside the host's own, one a line.")

MODEL = Problem("When the host's own model leaves memory for a run: auto (where memory does not hold both), always or never. It "
                "comes back by itself.")


def words() -> dict[str, str]:
    """Every text by its key; fields in braces are filled in by the page."""
    known = translations(language())
    return {key: known.get(problem.template, problem.template) for key, problem in WORDS.items()}
