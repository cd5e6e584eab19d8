"""The texts of the page's own script, in the language of the process. Standard library only: hosts import this."""

from __future__ import annotations

from ..errors import Problem
from ..texts import language, translations

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
    "fine": Problem("This can be trained."),
    "resume": Problem("Go on"),
    "again": Problem("Use its settings"),
    "delete": Problem("Delete"),
    "really": Problem("Delete {name} and all its files?"),
    "delete_yes": Problem("Yes, delete it"),
    "delete_no": Problem("Keep it"),
    "compare": Problem("Compare"),
    "download": Problem("Download the file"),
    "steps_done": Problem("step {step} of {steps}"),
    "lost": Problem("The server does not answer. Trying again."),
    "filled": Problem("The settings of {name} are filled in. Change what you want and start."),
    "replace_find": Problem("Find in all captions"),
    "replace_by": Problem("Replace by"),
    "replace": Problem("Replace in all"),
    "add_front": Problem("Put in front of all"),
    "replaced": Problem("{count} captions were changed."),
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


def words() -> dict[str, str]:
    """Every text by its key; fields in braces are filled in by the page."""
    known = translations(language())
    return {key: known.get(problem.template, problem.template) for key, problem in WORDS.items()}
