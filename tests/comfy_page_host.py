"""A small stand-in for ComfyUI's server: its real front end, our nodes' definitions, and a recorded run that is played as events.

    with PageHost(folder) as host:
        page.goto(host.address)
        host.play(node="3")          # what ComfyUI and the worker would tell while a training node runs

The front end is the package `comfyui-frontend-package`. What it asks for is answered as ComfyUI does, as far as our part of the
page can see it; `/aprendiz/...` is answered by the very functions that answer in ComfyUI. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
import struct
import threading
import time
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from comfy_door import ROOT, door

from aprendiz.run import Run
from aprendiz.views.comfy_nodes import nodes

RECORDED = Path(__file__).with_name("recorded_run")
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".md": "text/markdown",
         ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp",
         ".woff2": "font/woff2", ".wasm": "application/wasm"}
routes, runs, schema, sources = (door(f"nodes.{name}") for name in ("routes", "runs", "schema", "sources"))
ASKING = (routes, schema, sources)  # modules that ask the host


def static() -> Path:
    """The front end's files: those of the package, or of the folder that COMFYUI_FRONTEND names (an older version's `static`)."""
    if os.environ.get("COMFYUI_FRONTEND"):
        return Path(os.environ["COMFYUI_FRONTEND"])
    found = importlib.util.find_spec("comfyui_frontend_package")
    assert found is not None and found.submodule_search_locations, "install the extra 'dev'"
    return Path(next(iter(found.submodule_search_locations))) / "static"


def knows_dynamic(front: Path) -> bool:
    """Whether these files of a front end know dynamic inputs: a ComfyUI of its time describes its nodes with them."""
    return any(Choices.name in file.read_text(encoding="utf-8", errors="replace") for file in (front / "assets").glob("*.js"))


# Our nodes as ComfyUI describes them


class Kind:
    """One of ComfyUI's types: what its `Input` and `Output` come to in a description of a node."""

    def __init__(self, name: str) -> None:
        self.name = str(name)

    def Input(self, id: str, optional: bool = False, **values: Any) -> tuple[str, str, bool, dict[str, Any]]:
        """An input as (id, type, optional, what else is told of it)."""
        return id, self.name, optional, {name: value for name, value in values.items() if value is not None}

    def Output(self, **values: Any) -> dict[str, Any]:
        """An output."""
        return {**values, "type": self.name}


class Choices:
    """A dynamic input, as newer versions have it."""

    name = "COMFY_DYNAMICCOMBO_V3"
    Option = staticmethod(lambda key, inputs: {"key": key, "inputs": described(inputs)})
    Input = Kind(name).Input


def described(inputs: list[tuple[str, str, bool, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Inputs as ComfyUI tells of them."""
    found: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for name, kind, optional, told in inputs:
        found["optional" if optional else "required"][name] = [kind, told]
    return found


class OldIo:
    """`comfy_api.latest.io`, as far as `nodes/schema.py` asks for it, without dynamic inputs."""

    Boolean, Combo, String, Int, Float = (Kind(name) for name in ("BOOLEAN", "COMBO", "STRING", "INT", "FLOAT"))
    Custom = Kind

    class Hidden:
        """What a node is told besides its inputs."""

        unique_id, prompt, extra_pnginfo = "UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO"

    @staticmethod
    def Schema(**values: Any) -> dict[str, Any]:
        """The schema as it was given."""
        return values


class Io(OldIo):
    """The same with them."""

    DynamicCombo = Choices


class Lists:
    """The host's folders and lists of files, and its card."""

    checkpoints = ["sd15.safetensors"]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def input_folder(self) -> Path:
        """Where the page uploads to."""
        return self.folder / "input"

    def names(self, kind: str) -> list[str]:
        """The files of this kind."""
        return list(self.checkpoints) if kind == "checkpoints" else []

    def find(self, kind: str, name: str) -> Path | None:
        """The file behind a name."""
        return self.folder / "models" / name if name in self.names(kind) else None

    def diffusers_folders(self) -> list[str]:
        """None."""
        return []

    def diffusers_folder(self, name: str) -> Path | None:
        """None."""
        return None

    def card_gb(self) -> float:
        """Of memory."""
        return 12.0


def definition(id: str, io: type = Io) -> dict[str, Any]:
    """A node as `/object_info` describes it."""
    given = schema.build(io, id)
    found = described(given["inputs"])
    found["hidden"] = {one.lower(): [one] for one in given["hidden"]}
    outputs = given["outputs"]
    return {"input": found, "input_order": {part: list(inner) for part, inner in found.items()},
            "output": [one["type"] for one in outputs], "output_is_list": [False] * len(outputs),
            "output_name": [one["display_name"] for one in outputs], "output_tooltips": [one["tooltip"] for one in outputs],
            "name": id, "display_name": given["display_name"], "description": given["description"],
            "category": given["category"], "output_node": given["is_output_node"], "python_module": "custom_nodes.aprendiz",
            "deprecated": False, "experimental": False, "api_node": False, "search_aliases": given["search_aliases"]}


# The server


class PageHost:
    """Serves the page. settings: of ComfyUI's own, by their names. folder: its input and output folders are made there."""

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False,
                                         **(settings or {})}
        self.prompts: list[dict[str, Any]] = []
        self.told: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.front = static()
        self.io = Io if knows_dynamic(self.front) else OldIo
        self.client = ""
        self._sockets: list[Any] = []
        self._hosts = [module.host for module in ASKING]
        handler = type("Handler", (Handler,), {"host": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> PageHost:
        (self.folder / "input").mkdir(parents=True, exist_ok=True)
        for module in ASKING:
            module.host = Lists(self.folder)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for module, host in zip(ASKING, self._hosts):
            module.host = host

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    # Events

    def send(self, kind: str, data: dict[str, Any], only: list[Any] | None = None) -> None:
        """Tell every page something, or those at these sockets."""
        text = json.dumps({"type": kind, "data": data}).encode()
        head = bytes([0x81, len(text)]) if len(text) < 126 else b"\x81\x7e" + struct.pack(">H", len(text))
        for socket in list(self._sockets if only is None else only):
            try:
                socket.sendall(head + text)
            except OSError:
                self._sockets.remove(socket)

    def begin(self, name: str = "fish") -> Run:
        """A run's folder with its job and its first event."""
        folder = self.folder / "output" / "aprendiz" / name
        (folder / "samples").mkdir(parents=True)
        shutil.copyfile(RECORDED / "job.json", folder / "job.json")
        self._tell(folder, [{**recorded()[0], "time": time.time()}])
        routes._known[runs.run_id(folder)] = folder
        return Run(folder)

    def go_on(self, run: Run, until: str = "finished") -> None:
        """Play the recording on, up to and with the first event of this kind (or `step N`)."""
        done = len((run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
        events = recorded()
        for place, event in enumerate(events[done:], done):
            if event["event"] == "sample":
                shutil.copyfile(RECORDED / event["file"], run.folder / event["file"])
            if until in (event["event"], f"{event['event']} {event.get('step')}"):
                self._tell(run.folder, events[done:place + 1])
                return

    def start(self, run: Run, node: str | None = None, client: str | None = None, graph: str | None = None) -> None:
        """As when a training node begins: the page is told of the run. client: who queued it; None: the page in `client`."""
        told = {"id": runs.run_id(run.folder), "name": run.name, "node": node, "graph": graph}
        self.send("aprendiz.run", {**told, "client": client or self.client})

    def end(self, run: Run, node: str | None = None, state: str = "finished") -> None:
        """As when the worker has ended."""
        self.send("aprendiz.end", {"id": runs.run_id(run.folder), "name": run.name, "node": node, "state": state})

    @staticmethod
    def _tell(folder: Path, events: list[dict[str, Any]]) -> None:
        with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    # Answers

    def runs(self) -> list[dict[str, Any]]:
        """The list of the sidebar."""
        folders = sorted((self.folder / "output" / "aprendiz").glob("*/job.json"))
        return [self._as_shown(routes.summary(Run(file.parent))) for file in folders]

    def _as_shown(self, told: dict[str, Any]) -> dict[str, Any]:
        """No worker holds a lock here: what the recording began and did not end is running."""
        return {**told, "state": "running"} if told["state"] == "dead" else told

    def ours(self, path: str, query: dict[str, list[str]]) -> Any:
        """What `/aprendiz/...` answers: an object for JSON, or a file. Raises what the routes raise."""
        language = routes.nearest(query.get("language", ["en"])[0])
        if path == "panel.js":
            return routes.SCRIPT
        if path == "texts":
            return routes.texts(language)
        if path == "nodes":
            return routes.widgets()
        if path == "runs":
            return self.runs()
        _, id, what, *rest = path.split("/", 3)
        run = routes.find(id)
        if what == "events":
            return self._as_shown(routes.events_since(run, int(query.get("offset", ["0"])[0]), language))
        return routes.as_node(run, language) if what == "job" else routes.inside(run.folder, unquote(rest[0]))

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        """What a GET answers: a file, or an object for JSON; None: there is no such thing."""
        if path.startswith("/aprendiz/"):
            return self.ours(path.removeprefix("/aprendiz/"), query)
        if path == "/object_info":
            return {id: definition(id, self.io) for id in nodes()}
        if path == "/i18n":
            return {folder.name: {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")}
                    for folder in sorted((ROOT / "locales").iterdir())}
        known = {"/settings": self.settings, "/users": {"storage": "server", "migrated": True}, "/userdata": [],
                 "/extensions": ["/extensions/aprendiz/aprendiz.js"], "/system_stats": SYSTEM, "/features": {},
                 "/queue": {"queue_running": [], "queue_pending": []}, "/history": {}, "/workflow_templates": {},
                 "/embeddings": [], "/models": [], "/experiment/models": [], "/global_subgraphs": {},
                 "/prompt": {"exec_info": {"queue_remaining": 0}}, "/jobs": {"jobs": [], "pagination": {"total": 0}}}
        if path in known:
            return known[path]
        root = ROOT / "web" if path.startswith("/extensions/aprendiz/") else self.front
        file = root / (unquote(path).removeprefix("/extensions/aprendiz/").lstrip("/") or "index.html")
        return file if file.is_file() and file.resolve().is_relative_to(root.resolve()) else None

    def post(self, path: str, body: bytes, kind: str) -> Any:
        """What a POST answers."""
        if path == "/prompt":
            self.prompts.append(json.loads(body))
            return {"prompt_id": f"prompt-{len(self.prompts)}", "number": len(self.prompts), "node_errors": {}}
        if path == "/upload/image":
            return self._upload(body, kind)
        if path.startswith("/settings/"):
            self.settings[path.removeprefix("/settings/")] = json.loads(body)
            return {}
        if path == "/settings":
            self.settings |= json.loads(body)
            return {}
        found = re.fullmatch(r"/aprendiz/runs/(\w+)/tell", path)
        if found:
            self.told.append((routes.find(found.group(1)).name, json.loads(body)["command"]))
            return {"state": "running"}
        if path == "/aprendiz/ready":
            return routes.ready_for(json.loads(body))
        return {}

    def _upload(self, body: bytes, kind: str) -> dict[str, Any]:
        """A file of a form, as ComfyUI keeps it: below its input folder."""
        form = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
        fields = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}  # type: ignore[union-attr]
        image, place = fields["image"], fields["subfolder"].get_payload(decode=True).decode()  # type: ignore[union-attr]
        target = self.folder / "input" / place / Path(str(image.get_filename())).name  # type: ignore[union-attr]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.get_payload(decode=True))  # type: ignore[union-attr, arg-type]
        return {"name": target.name, "subfolder": place, "type": "input"}


SYSTEM = {"system": {"os": "posix", "ram_total": 16e9, "ram_free": 8e9, "comfyui_version": "0.3.64", "python_version": "3.12",
                     "pytorch_version": "2.9", "embedded_python": False, "argv": ["main.py"]},
          "devices": [{"name": "cuda:0", "type": "cuda", "index": 0, "vram_total": 12e9, "vram_free": 11e9,
                       "torch_vram_total": 12e9, "torch_vram_free": 11e9}]}


def recorded() -> list[dict[str, Any]]:
    """The events of the recorded run, in order."""
    lines = (RECORDED / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class Handler(BaseHTTPRequestHandler):
    """One connection of the browser."""

    host: PageHost
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """Files and JSON; the web socket."""
        address = urlsplit(self.path)
        path = address.path.removeprefix("/api") or "/"
        if path == "/ws":
            self._socket(parse_qs(address.query).get("clientId", [f"{time.monotonic_ns():x}"])[0])
            return
        self.host.asked.append(path)
        try:
            found = self.host.answer(path, parse_qs(address.query))
        except routes.Refused as refused:
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), "application/json")
            return
        if found is None:
            self._send(404, b"{}", "application/json")
        elif isinstance(found, Path):
            self._send(200, found.read_bytes(), TYPES.get(found.suffix, "application/octet-stream"))
        else:
            self._send(200, json.dumps(found).encode(), "application/json")

    def do_POST(self) -> None:
        """What the page sends."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path.removeprefix("/api")
        told = self.host.post(path, body, self.headers.get("Content-Type", ""))
        self._send(200, json.dumps(told).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _socket(self, client: str) -> None:
        """Keep a web socket open; what the page says is read and dropped."""
        key = self.headers["Sec-WebSocket-Key"] + WEBSOCKET
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        self.host._sockets.append(self.connection)
        self.host.client = client
        self.host.send("status", {"status": {"exec_info": {"queue_remaining": 0}}, "sid": client}, [self.connection])
        try:
            while self.connection.recv(4096):
                pass
        except OSError:
            pass
