"""The door of AUTOMATIC1111, Forge and reForge: the page as a sub-tab of Train, or as a tab of its own where there is none.

Here stands only what the page asks of its host: where files are, what is listed, who has logged in. The page itself, its routes
and the runs are `aprendiz.views`. Runs live in processes of their own; their desk outlives *Reload UI*, which executes this file
again.
"""

import base64
import binascii
import hmac
import logging
import shutil
import sys
from pathlib import Path

import gradio as gr
import modules
from modules import paths_internal, script_callbacks, shared

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from aprendiz.views.desk import DESKS, Desk  # noqa: E402
from aprendiz.views.gradio import Page, PageHost  # noqa: E402
from aprendiz.views.routes import Routes, mount  # noqa: E402
from aprendiz.views.words import FOLDERS, OUTPUT  # noqa: E402

logger = logging.getLogger("aprendiz")
SECTION = ("aprendiz", "Aprendiz")


def output():
    """Where runs are written: the settings' folder, else the host's output folder."""
    return Path(shared.opts.data.get("aprendiz_output") or Path(paths_internal.data_path) / "outputs")


def roots():
    """The folders that the page may open: the host's, those of the settings, and the home where only this machine looks on."""
    named = [line.strip() for line in (shared.opts.data.get("aprendiz_folders") or "").splitlines()]
    found = [Path(paths_internal.data_path), Path(paths_internal.models_path), *(Path(line) for line in named if line)]
    for name in ("ckpt_dir", "lora_dir", "vae_dir", "embeddings_dir"):
        if getattr(shared.cmd_opts, name, None):
            found.append(Path(getattr(shared.cmd_opts, name)))
    return found if remote() else [*found, Path.home()]


def remote():
    """Whether others than this machine may see the page."""
    asked = shared.cmd_opts
    return bool(asked.listen or asked.share or getattr(asked, "ngrok", None) or asked.server_name)


def checkpoints():
    """The host's checkpoints, as the page lists them: their files."""
    from modules import sd_models
    if not sd_models.checkpoints_list:
        sd_models.list_models()
    return [info.filename for info in sd_models.checkpoints_list.values() if info.filename.endswith(".safetensors")]


def lora_folder():
    """Where the host looks for LoRA files."""
    return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths_internal.models_path) / "Lora")


def finished(run):
    """Put a finished LoRA where the host finds it, under a name that is free, and have its lists read anew."""
    from modules import ui_extra_networks
    folder = lora_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if run.values().get("method", {}).get("name") != "lora" or not run.file.is_file():
        return
    number, name = 1, run.name
    while (folder / f"{name}.safetensors").exists():
        number += 1
        name = f"{run.name}-{number}"
    for ending in (".safetensors", ".json", ".png"):
        if run.file.with_suffix(ending).is_file():
            shutil.copyfile(run.file.with_suffix(ending), folder / f"{name}{ending}")
    try:
        import networks  # the host's own Lora extension
        networks.list_available_networks()
    except ImportError:
        logger.info("this host has no Lora extension; the file is in %s", folder)
    for page in ui_extra_networks.extra_pages:
        if page.name == "lora":
            page.refresh()


def allowed(app):
    """Whether a request's sender may use the page: as the host's --gradio-auth and --api-auth have it."""
    api = [pair.strip() for pair in (shared.cmd_opts.api_auth or "").split(",") if pair.strip()]

    def check(request):
        with_login = bool(getattr(app, "auth", None))
        tokens = getattr(app, "tokens", {})
        if with_login and any(name.startswith("access-token") and value in tokens for name, value in request.cookies.items()):
            return True
        if api and knows(request.headers.get("authorization", ""), api):
            return True
        return not with_login and not api

    return check


def knows(header, pairs):
    """Whether a Basic authorisation header holds one of these 'user:password' pairs."""
    kind, _, text = header.partition(" ")
    try:
        given = base64.b64decode(text, validate=True) if kind.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return False
    return any(hmac.compare_digest(given, pair.encode()) for pair in pairs)


def desk():
    """The desk of this process, the same after *Reload UI*."""
    kept = DESKS.setdefault("webui", Desk(output, roots, finished))
    kept.output, kept.roots, kept.finished = output, roots, finished
    return kept


def page():
    """The page's components."""
    Page(gr, PageHost(desk(), checkpoints)).build()


def has_train_tab():
    """Whether the host calls back for its Train tab. Forge has removed it."""
    source = Path(next(iter(modules.__path__))) / "ui.py"
    return "ui_train_tabs_callback" in source.read_text(encoding="utf-8")


def in_train_tab(params):
    """A sub-tab of the host's Train tab."""
    with gr.Tab("Aprendiz", elem_id="aprendiz-tab"):
        page()


def own_tab():
    """A tab of its own."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        page()
    return [(blocks, "Train", "aprendiz_train")]


def settings():
    """The section in the host's settings."""
    add = shared.opts.add_option
    add("aprendiz_output", shared.OptionInfo("", str(OUTPUT), section=SECTION))
    add("aprendiz_folders", shared.OptionInfo("", str(FOLDERS),
                                              gr.Textbox, {"lines": 3}, section=SECTION))


def routes(blocks, app):
    """The page's routes, beside the host's."""
    mount(app, Routes(desk()), allowed=allowed(app))


script_callbacks.on_ui_settings(settings)
script_callbacks.on_app_started(routes)
if has_train_tab():
    script_callbacks.on_ui_train_tabs(in_train_tab)
else:
    script_callbacks.on_ui_tabs(own_tab)
