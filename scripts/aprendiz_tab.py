"""The door of AUTOMATIC1111, Forge and reForge: the page as a sub-tab of Train, or as a tab of its own where there is none.

Here stands only what the page asks of its host: where files are, what is listed, who has logged in, what its model does. The
page itself, its routes and the runs are `aprendiz.views`. Runs live in processes of their own; their desk outlives *Reload UI*,
which executes this file again.
"""

import base64
import binascii
import gc
import hmac
import logging
import os
import sys
from pathlib import Path

import gradio as gr
import modules
from modules import devices, paths_internal, script_callbacks, scripts, shared

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from aprendiz.texts import nearest  # noqa: E402
from aprendiz.views import results  # noqa: E402
from aprendiz.views.card import CARDS, SPARE, WISHES, Card  # noqa: E402
from aprendiz.views.desk import DESKS, Desk  # noqa: E402
from aprendiz.views.gradio import build  # noqa: E402
from aprendiz.views.routes import Routes, mount  # noqa: E402
from aprendiz.views.words import FOLDERS, MODEL, OUTPUT  # noqa: E402

logger = logging.getLogger("aprendiz")
SECTION = ("aprendiz", "Aprendiz")
GIVEN = os.environ.setdefault("APRENDIZ_LANGUAGE_GIVEN", os.environ.get("APRENDIZ_LANGUAGE", ""))  # before this file changed it
PAGES = {"lora": "lora", "embedding": "textual inversion", "hypernetwork": "hypernetworks"}  # of the host's extra networks


# Folders and lists


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
    named = asked.server_name if asked.server_name not in ("127.0.0.1", "localhost", "::1") else None
    return bool(asked.listen or asked.share or getattr(asked, "ngrok", None) or named)


def checkpoints():
    """The host's checkpoints, as the page lists them: their files."""
    from modules import sd_models
    if not sd_models.checkpoints_list:
        sd_models.list_models()
    return [info.filename for info in sd_models.checkpoints_list.values() if info.filename.endswith(".safetensors")]


def folder_of(kind):
    """Where the host looks for files of a kind."""
    models = Path(paths_internal.models_path)
    asked, usual = {"lora": ("lora_dir", models / "Lora"), "controlnet": ("controlnet_dir", models / "ControlNet"),
                    "embedding": ("embeddings_dir", Path(paths_internal.data_path) / "embeddings"),
                    "hypernetwork": ("hypernetwork_dir", models / "hypernetworks"),
                    "checkpoint": ("ckpt_dir", models / "Stable-diffusion")}[kind]
    return Path(getattr(shared.cmd_opts, asked, None) or usual)


def finished(run):
    """Put a finished run's files where the host finds them, have its lists read anew; what calls the result in a prompt."""
    placed = results.place(run, folder_of)
    read_anew(placed)
    return results.prompt(placed, run.values().get("data", {}).get("trigger"))


def read_anew(kinds):
    """Have the host's lists show new files of these kinds."""
    from modules import sd_models, ui_extra_networks
    shown = {PAGES[kind] for kind in kinds if kind in PAGES}
    if keeper() is None and loaded() is None:
        shown.discard(PAGES["embedding"])  # AUTOMATIC1111 would open a model for it, and reads them anyway once it has one
    for page in ui_extra_networks.extra_pages:
        if page.name in shown:
            page.refresh()
    if "checkpoint" in kinds:
        sd_models.list_models()
    if "hypernetwork" in kinds and hasattr(shared, "reload_hypernetworks"):
        shared.reload_hypernetworks()
    if "controlnet" in kinds:
        for name, module in list(sys.modules.items()):  # built into Forge; an extension elsewhere
            if name.endswith("global_state") and hasattr(module, "update_controlnet_filenames"):
                module.update_controlnet_filenames()
            elif name.endswith("global_state") and hasattr(module, "update_cn_models"):
                module.update_cn_models()


# Who may


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


# The card


class Model:
    """The model that this host draws with."""

    def place(self):
        """What it is drawn with."""
        return devices.device.type

    def wish(self):
        """When it is to leave, as the settings have it."""
        return shared.opts.data.get("aprendiz_model") or "auto"

    def there(self):
        """Whether it is in memory at all, which on a card is the card's."""
        from modules import sd_models
        if keeper() is None:
            return loaded() is not None
        opened = devices.device.type == "cpu" and bool(getattr(sd_models.model_data, "forge_hash", ""))
        return opened or bool(keeper().current_loaded_models)

    def free(self):
        """Bytes free on the card, or in the computer's memory where the host draws on the processor."""
        import torch
        if devices.device.type == "cuda":
            return torch.cuda.mem_get_info(devices.device)[0]
        from aprendiz.devices import free_ram
        return free_ram() if devices.device.type == "cpu" else None

    def leave(self):
        """Out of memory. The host opens it anew when it is next asked for."""
        from modules import sd_models
        data = sd_models.model_data
        if keeper() is not None:  # Forge and reForge keep books of what is on the card, and put it into memory beside
            keeper().unload_all_models()
            keeper().soft_empty_cache()
            if devices.device.type == "cpu" and hasattr(data, "forge_hash"):  # there is no beside: as before the first picture
                data.set_sd_model(sd_models.FakeInitialModel())
                data.forge_hash = ""
        elif loaded() is not None:
            model = loaded()
            sd_models.send_model_to_trash(model)
            data.loaded_sd_models[:] = [other for other in data.loaded_sd_models if other is not model]
            # As after a start that opens no model: whoever asks for one has it opened.
            data.sd_model, data.was_loaded_at_least_once = None, False
        gc.collect()

    def come_back(self):
        """Into memory again; Forge and reForge see to that themselves when they draw."""
        if keeper() is None:
            from modules import sd_models
            sd_models.model_data.get_sd_model()

    def drawing(self):
        """Whether a picture is being made."""
        return bool(shared.state.job)

    def lacks(self):
        """Whether the checkpoint that it is about to open finds too little room: nothing was open when a run began."""
        from modules import sd_models
        free = self.free()
        if self.there() or free is None:
            return False
        try:
            return free < os.path.getsize(sd_models.select_checkpoint().filename) + SPARE
        except (AttributeError, OSError):  # no checkpoint at all, or one that is made of several files
            return False


def keeper():
    """The module of Forge or reForge that keeps books of the card; None in AUTOMATIC1111."""
    return sys.modules.get("backend.memory_management") or sys.modules.get("ldm_patched.modules.model_management")


def loaded():
    """AUTOMATIC1111's open model, without opening one."""
    from modules import sd_models
    return sd_models.model_data.sd_model


class Neighbour(scripts.Script):
    """Called before the host draws, so that what was taken off the card comes back."""

    def title(self):
        return "Aprendiz"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def before_process(self, p, *args):
        card.before_drawing()


# The page


def desk():
    """The desk of this process, the same after *Reload UI*."""
    kept = DESKS.setdefault("webui", Desk(output, roots))
    kept.output, kept.roots, kept.finished, kept.before = output, roots, finished, card.before_run
    return kept


def has_train_tab():
    """Whether the host calls back for its Train tab. Forge has removed it."""
    source = Path(next(iter(modules.__path__))) / "ui.py"
    return "ui_train_tabs_callback" in source.read_text(encoding="utf-8")


def in_train_tab(params):
    """A sub-tab of the host's Train tab."""
    with gr.Tab("Aprendiz", elem_id="aprendiz-tab"):
        build(gr)


def own_tab():
    """A tab of its own."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        build(gr)
    return [(blocks, "Train", "aprendiz_train")]


def settings():
    """The section in the host's settings."""
    add = shared.opts.add_option
    add("aprendiz_output", shared.OptionInfo("", str(OUTPUT), section=SECTION))
    add("aprendiz_folders", shared.OptionInfo("", str(FOLDERS), gr.Textbox, {"lines": 3}, section=SECTION))
    add("aprendiz_model", shared.OptionInfo("auto", str(MODEL), gr.Radio, {"choices": list(WISHES)}, section=SECTION))


def follow_language():
    """Speak the language of the host's localisation, where none was asked for by name."""
    chosen = shared.opts.data.get("localization")
    if not GIVEN:
        os.environ.pop("APRENDIZ_LANGUAGE", None)
        if chosen and chosen != "None":
            os.environ["APRENDIZ_LANGUAGE"] = nearest(chosen)


def routes(blocks, app):
    """The page's routes, beside the host's."""
    mount(app, Routes(desk(), checkpoints), allowed=allowed(app))


follow_language()
card = CARDS.setdefault("webui", Card(Model(), list))  # the same after *Reload UI*: it knows what has left
card.model, card.busy = Model(), lambda: [run for run in desk().runs() if run.state == "running"]
script_callbacks.on_ui_settings(settings)
script_callbacks.on_app_started(routes)
if has_train_tab():
    script_callbacks.on_ui_train_tabs(in_train_tab)
else:
    script_callbacks.on_ui_tabs(own_tab)
