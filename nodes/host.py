"""What this door asks of ComfyUI, in one place: folders, progress, messages, memory, interruption.

ComfyUI's modules are imported when they are needed, so that the files beside this one can be tested without it. Works from
ComfyUI 0.3.64 on.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..aprendiz.errors import Problem, ProblemsError
from ..aprendiz.texts import nearest
from ..aprendiz.views.panel import NO_RUNS_FOLDER

LANGUAGE_GIVEN = os.environ.get("APRENDIZ_LANGUAGE", "")  # before `follow_language` changed it
DRAWN_WITH = ("checkpoints", "diffusion_models", "text_encoders", "vae")  # kinds of models that fill a card
PREVIEW = 512  # pixels, the longer side of a picture shown on a node while it runs


def output_folder() -> Path:
    """Where ComfyUI writes pictures."""
    import folder_paths
    return Path(folder_paths.get_output_directory())


def setting(name: str) -> Any:
    """What the person chose in ComfyUI's settings panel; None where nothing was."""
    import folder_paths
    file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError, AttributeError):
        return None


def follow_language() -> None:
    """Speak the language of ComfyUI's page, where none was asked for by name: the settings panel's, else the system's."""
    if LANGUAGE_GIVEN:
        return
    chosen = setting("Comfy.Locale")
    if chosen:
        os.environ["APRENDIZ_LANGUAGE"] = nearest(str(chosen))
    else:
        os.environ.pop("APRENDIZ_LANGUAGE", None)


def runs_folder() -> Path:
    """Where runs are kept: the folder that the settings panel names, else ComfyUI's output folder. Raises ProblemsError."""
    chosen = str(setting("aprendiz.outputFolder") or "").strip()
    folder = Path(chosen).expanduser()
    if chosen and not (folder.is_absolute() and folder.is_dir()):
        raise ProblemsError([Problem(NO_RUNS_FOLDER, {"folder": chosen})])
    return folder if chosen else output_folder()


def input_folder() -> Path:
    """Where pictures are uploaded to."""
    import folder_paths
    return Path(folder_paths.get_input_directory())


def temporary_folder() -> Path:
    """Where ComfyUI keeps what may go when it ends."""
    import folder_paths
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def names(kind: str) -> list[str]:
    """The files of a kind of model (`checkpoints`, `loras`) by the names that lists show."""
    import folder_paths
    return list(folder_paths.get_filename_list(kind))


def find(kind: str, name: str) -> Path | None:
    """The file behind a listed name."""
    import folder_paths
    found = folder_paths.get_full_path(kind, name)
    return Path(found) if found else None


def diffusers_folders() -> list[str]:
    """Models in several parts, by the names of their folders."""
    import folder_paths
    return [folder.name for root in folder_paths.get_folder_paths("diffusers") if os.path.isdir(root)
            for folder in sorted(Path(root).iterdir()) if (folder / "model_index.json").is_file()]


def diffusers_folder(name: str) -> Path | None:
    """The folder behind such a name."""
    import folder_paths
    folders = [Path(root) / name for root in folder_paths.get_folder_paths("diffusers")]
    return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)


def place_for(kind: str) -> Path:
    """The folder for new files of a kind: below the output folder where ComfyUI looks there, else its first folder."""
    import folder_paths
    own = output_folder() / kind
    roots = [Path(root) for root in folder_paths.get_folder_paths(kind)]
    return own if any(os.path.normcase(own) == os.path.normcase(root) for root in roots) else roots[0]


def card_gb() -> float:
    """Memory of the card that ComfyUI draws with, in GB; 0 where it draws on the processor."""
    import comfy.model_management as memory
    device = memory.get_torch_device()
    return 0.0 if device.type == "cpu" else float(memory.get_total_memory(device)) / 2**30


def place() -> str:
    """What ComfyUI draws with: cuda, mps, xpu or cpu."""
    import comfy.model_management as memory
    return str(memory.get_torch_device().type)


def free_models() -> None:
    """Unload what ComfyUI holds on the card; it loads again by itself when it is next asked for. For the queue's own thread."""
    import comfy.model_management as memory
    memory.unload_all_models()
    gc.collect()
    memory.soft_empty_cache()


def free_models_soon() -> None:
    """The same for other threads: the queue does it itself, at once or after the prompt that it draws."""
    from server import PromptServer
    PromptServer.instance.prompt_queue.set_flag("unload_models", True)


_own = 0  # nodes of ours that the queue is at


@contextmanager
def own_work() -> Iterator[None]:
    """While a node of ours is at work the queue draws nothing."""
    global _own
    _own += 1
    try:
        yield
    finally:
        _own -= 1


def prompt_in_hand() -> str | None:
    """The id of the prompt that the queue is at; None where it is idle, or at a node of ours."""
    prompt = _in_hand()
    return None if prompt is None or _own else str(prompt[1])


def _in_hand() -> Any:
    from server import PromptServer
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return running[0] if running else None


def lacks_room() -> bool:
    """Whether the models that the prompt in hand names find too little room on the card, were ComfyUI's others to leave."""
    import comfy.model_management as memory
    prompt = _in_hand()
    if prompt is None:
        return False
    named = {value for node in prompt[2].values() for value in node.get("inputs", {}).values() if isinstance(value, str)}
    files = [find(kind, name) for kind in DRAWN_WITH for name in named.intersection(names(kind))]
    wanted = sum(file.stat().st_size for file in files if file is not None)
    held = sum(one.model_loaded_memory() for one in list(memory.current_loaded_models) if one.model is not None)
    return bool(wanted) and memory.get_free_memory() + held < wanted + memory.minimum_inference_memory()


def interrupted() -> bool:
    """Whether the person asked ComfyUI to stop; the wish stays until `stop_here`."""
    import comfy.model_management as memory
    return bool(memory.processing_interrupted())


def stop_here() -> None:
    """Raise ComfyUI's own exception for an interrupted queue, if it is one."""
    import comfy.model_management as memory
    memory.throw_exception_if_processing_interrupted()


class Display:
    """What a node shows while it runs: a bar, a picture, a line of text."""

    def __init__(self, node: str | None) -> None:
        import comfy.utils
        self.node = node
        takes = inspect.signature(comfy.utils.ProgressBar.__init__).parameters
        self._bar = comfy.utils.ProgressBar(1, **({"node_id": node} if "node_id" in takes else {}))
        self._said = ""

    def progress(self, done: int, total: int, picture: Any = None) -> None:
        """Move the bar; picture: a PIL image that is shown. Raises ComfyUI's exception where the queue was interrupted."""
        self._bar.update_absolute(done, max(total, 1), ("JPEG", picture, PREVIEW) if picture is not None else None)

    @property
    def said(self) -> str:
        """The line that is shown."""
        return self._said

    def say(self, text: str) -> None:
        """A line on the node."""
        from server import PromptServer
        if self.node is None or text == self._said:
            return
        self._said = text
        PromptServer.instance.send_progress_text(text, self.node)


def send(name: str, values: dict[str, Any]) -> None:
    """Tell every open page something; `client` is the page whose graph the queue is at, None where no page queued it."""
    from server import PromptServer
    PromptServer.instance.send_sync(f"aprendiz.{name}", {**values, "client": PromptServer.instance.client_id})


def blocked() -> Any:
    """A value that keeps the nodes behind an output from running, without an error."""
    from comfy_execution.graph_utils import ExecutionBlocker
    return ExecutionBlocker(None)


def load_tensors(file: Path) -> dict[str, Any]:
    """A file's weights."""
    import comfy.utils
    return dict(comfy.utils.load_torch_file(str(file), safe_load=True))


def apply_lora(model: Any, clip: Any, weights: dict[str, Any]) -> tuple[Any, Any]:
    """A model and a text encoder with a LoRA on them; the ones given stay as they are."""
    import comfy.sd
    if model is None and clip is None:
        return None, None
    tuned: tuple[Any, Any] = comfy.sd.load_lora_for_models(model, clip, weights, 1.0, 1.0)
    return tuned
