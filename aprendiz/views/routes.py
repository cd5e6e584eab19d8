"""What the page asks its host for, over HTTP, the same in every host. Paths are relative to the prefix that the host mounts.

    GET  page*.js, panel.js, page.css     the page's own files          words                the page's texts, in one language
    GET  again-N/page*.js                 the same under other names: a browser never asks again for a module that failed
    GET  runs                             the runs there are            runs/NAME/job        the values of a run
    GET  runs/NAME/form                   the same as a form, to change them
    GET  runs/NAME/events?from=BYTES      events since an offset        runs/NAME/files/F    a picture, the log or the result
    GET  runs/NAME/loss.csv               its losses as a table
    POST runs/NAME/tell {command}         pause resume stop save sample
    POST runs/NAME/resume, delete         go on with it, remove it    runs/NAME/place       put where the host looks
    POST pictures {form, from, count}     the pictures of a folder with their captions
    GET  thumbnail?folder=F&name=N        a small picture               GET picture?...      the same whole
    POST captions {folder, captions, known}   captions written back. known: of each what its file may hold by now, as far as the
                                          page knows; where it holds another text it is left so, and told as `now`
    POST edit {form, kind, find, by}      all captions changed          unedit {id}             as they were
    POST check {form}                     problems and forecast         estimate {form}      steps, time and memory
    POST start {form}                     the run of what is filled in: {method, controls}, as views/form.py has it
    POST try {run, file, prompt, ...}     pictures asked for            GET  tried?key=K     how far they are
    GET  drawn?key=K&n=N                  one of them                   POST untry {}        no more of them
    POST condition BYTES                  a condition picture to draw after, kept by a key   GET condition?key=K   the same
    POST missed {}                        results placed that finished while nobody was there

Every answer is bounded. A name is checked before it becomes a path, a path is opened only within the folders of the desk and, in
a run, within its folder; nothing here is HTML, so nothing is interpreted. Requests must come from the page's own origin. Standard
library only at module level; `mount` is handed the host's Starlette or FastAPI application.
"""

from __future__ import annotations

import json
import logging
import mimetypes
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ..errors import AprendizError, DatasetError, Problem, RunError
from ..events import read_events
from ..run import Run
from ..settings import SAMPLERS, DataSettings
from ..texts import language
from . import form, panel, studio, uploads
from .desk import BUSY, Desk
from .questions import plain
from .words import words

if TYPE_CHECKING:
    from ..data.album import Leaf

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "page-parts.js", "page-form.js", "page-problems.js", "page-captions.js", "page-pictures.js",
           "page-runs.js", "page-compare.js", "page-try.js", "panel.js")
PAGE_FILES = {**dict.fromkeys(SCRIPTS, "text/javascript"), "page.css": "text/css"}
SHOWN = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif",
         ".txt": "text/plain; charset=utf-8",
         ".json": "application/json", ".jsonl": "application/json",
         ".safetensors": "application/octet-stream",
         ".csv": "text/csv; charset=utf-8"}
LARGEST_BODY = 4 << 20  # bytes of a request
LARGEST = {"condition": uploads.LARGEST}  # of those that bring a picture
EVENTS_AT_ONCE = 1 << 20  # bytes of events in an answer; the page asks again for the rest
PICTURES_AT_ONCE = 200
MOST_RUNS = 500
MOST_EDITS = 10  # of all captions of a folder that can be taken back
MOST_PROMPTS = 8  # of a run's samples, for trying it out


@dataclass(frozen=True)
class Answer:
    """What a request is answered with. file: sent in place of the body."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request as far as the page needs one. path: below the prefix, without a slash in front."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """The body as an object. Raises ValueError."""
        value = json.loads(self.body.decode("utf-8") or "{}")
        if not isinstance(value, dict):
            raise ValueError("the body is no object")
        return value

    def number(self, name: str) -> int:
        """A number of the query, 0 where it is none."""
        text = self.query.get(name, "0")
        return int(text) if text.isdigit() and len(text) < 16 else 0


def json_answer(value: Any, status: int = 200) -> Answer:
    """A value as JSON."""
    return Answer(status, json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))


@dataclass
class Routes:
    """Answers the page's requests. checkpoints: what can be chosen as base, beside 'micro' and any path that is typed."""

    desk: Desk
    checkpoints: Callable[[], Sequence[str]] = tuple
    _about: dict[Path, About] = field(default_factory=dict)
    _edits: dict[str, tuple[DataSettings, Mapping[str, str | None]]] = field(default_factory=dict)
    _listing: tuple[DataSettings, list[Leaf], list[Problem]] | None = None
    _writing: Lock = field(default_factory=Lock)

    def handle(self, request: Request) -> Answer:
        """Answer a request; what a person can mend is told with status 400, what is not there with 404."""
        try:
            return self._route(request)
        except AprendizError as error:
            return json_answer({"problems": [plain(problem) for problem in error.problems]}, 400)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.info("a request that makes no sense: %s %s (%r)", request.method, request.path, error)
            return json_answer({"problems": []}, 400)

    def _route(self, request: Request) -> Answer:
        parts = request.path.strip("/").split("/")
        if request.method == "GET" and len(parts) == 2 and parts[1] in PAGE_FILES and parts[0].startswith("again-"):
            del parts[0]
        if request.method == "GET" and len(parts) == 1:
            return self._get(parts[0], request)
        if request.method == "POST" and len(parts) == 1:
            return self._post(parts[0], request)
        if parts[0] == "runs" and len(parts) >= 3:
            return self._of_run(self.desk.run(parts[1]), parts[2], "/".join(parts[3:]), request)
        return json_answer({"problems": []}, 404)

    def _get(self, name: str, request: Request) -> Answer:
        if name in PAGE_FILES:
            return Answer(200, (HERE / name).read_bytes(), PAGE_FILES[name], headers={"Cache-Control": "no-cache"})
        if name == "words":
            return json_answer({"words": words(), "panel": panel.texts(language()), **form.drawn(self.checkpoints()),
                                "methods": studio.takes(), "samplers": SAMPLERS, "largest_picture": uploads.LARGEST})
        if name == "runs":
            return json_answer({"runs": [self._listed(run) for run in self.desk.runs()[:MOST_RUNS]]})
        if name in ("thumbnail", "picture"):
            return self._picture(name, request)
        if name == "tried":
            return json_answer(self.desk.studio.told(request.query["key"]))
        if name == "drawn":
            file = self.desk.studio.picture(request.query["key"], request.number("n"))
            return Answer(kind="image/png", file=file, headers={"Cache-Control": "private, max-age=86400"})
        if name == "condition":
            file = self.desk.condition(request.query["key"])
            return Answer(kind="image/png", file=file, headers={"Cache-Control": "private, max-age=86400"})
        return json_answer({"problems": []}, 404)

    def _post(self, name: str, request: Request) -> Answer:
        if name == "condition":
            key, (width, height) = self.desk.keep_condition(request.body)
            return json_answer({"key": key, "width": width, "height": height})
        given = request.json()
        if name == "pictures":
            return json_answer(self._pictures(given))
        if name == "captions":
            return json_answer(self._captions(given))
        if name in ("edit", "unedit"):
            return json_answer(self._edit(name, given))
        if name == "start":
            return json_answer({"started": self.desk.begin(form.values(given["form"])).name})
        if name == "check":
            return json_answer(self.desk.check(form.values(given["form"])))
        if name == "estimate":
            return json_answer(self.desk.estimate(form.values(given["form"])))
        if name == "try":
            return json_answer(self.desk.try_out(given))
        if name == "missed":
            return json_answer({"placed": self.desk.place_missed()})
        if name == "untry":
            self.desk.studio.end()
            return json_answer({"ok": True})
        return json_answer({"problems": []}, 404)

    # Runs

    def _of_run(self, run: Run, what: str, rest: str, request: Request) -> Answer:
        if request.method == "GET" and what == "events":
            return json_answer(self._events(run, request.number("from")))
        if request.method == "GET" and what == "files":
            return self._file(run, rest)
        if request.method == "GET" and what == "job":
            return json_answer(run.values())
        if request.method == "GET" and what == "form":
            return json_answer(form.of_job(run.values()))
        if request.method == "GET" and what == "loss.csv" and not rest:
            return Answer(200, loss_table(run).encode(), SHOWN[".csv"],
                          headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(run.name)}-loss.csv"})
        if request.method != "POST" or rest:
            return json_answer({"problems": []}, 404)
        if what == "tell":
            self.desk.tell(run.name, str(request.json()["command"]))
        elif what == "resume":
            self.desk.go_on(run.name)
        elif what == "delete":
            self.desk.remove(run.name)
        elif what == "place":
            return json_answer({"prompt": self.desk.place(run.name)})
        else:
            return json_answer({"problems": []}, 404)
        return json_answer({"ok": True})

    def _events(self, run: Run, start: int) -> dict[str, Any]:
        """Events from an offset in bytes on; where to ask next; what state the run is in."""
        lines, offset = read_some(run.events_file, start)
        state = self.desk.state(run)
        events = [panel.event_in(line, language()) for line in lines]
        told: dict[str, Any] = {"name": run.name, "state": state, "events": events, "next": offset}
        if state == "dead":
            told["problems"] = [plain(self.desk.last_words(run))]
        return told

    def _listed(self, run: Run) -> dict[str, Any]:
        """A run as the list has it; of its events only the new ones are read; an ended run is left alone until it has some."""
        known = self._about.get(run.folder) or About()
        try:
            size = run.events_file.stat().st_size
        except OSError:
            size = 0
        if size < known.offset:
            known = About()
        if size != known.offset or known.told.get("busy", True):
            known.take(run, self.desk.state(run))
        if len(self._about) > 4 * MOST_RUNS:
            self._about.clear()
        self._about[run.folder] = known
        return known.told

    def _file(self, run: Run, name: str) -> Answer:
        """A file in the run's folder, of the kinds that the page shows."""
        from ..data import album
        parts = PurePosixPath(name).parts
        file = run.folder.joinpath(*parts)
        wrong = not parts or "\\" in name or ":" in name or "\0" in name or any(part.startswith((".", "/")) for part in parts)
        if wrong or file.suffix.lower() not in SHOWN or not file.is_file() or not album.within(file, run.folder):
            raise RunError("The run {name} has no file {file}.", name=run.name, file=name)
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'"}
        if file.suffix.lower() in (".safetensors", ".csv"):
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(file.name)}"
        return Answer(kind=SHOWN[file.suffix.lower()], file=file, headers=headers)

    # Pictures

    def _pictures(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A part of the pictures of the form's folder, those with problems first, and how many there are."""
        from ..data import album, bench
        settings = self.desk.data(form.values(given["form"]))
        if not given.get("from") or self._listing is None or self._listing[0] != settings:
            self._listing = settings, *album.leaves(settings)
        _, found, problems = self._listing  # what comes after the first part is of the same list
        troubled: dict[str, list[dict[str, Any]]] = {}
        for problem in problems:
            troubled.setdefault(problem.where, []).append(plain(problem))
        names = {leaf.name for leaf in found}
        start = max(0, int(given.get("from", 0)))
        count = min(PICTURES_AT_ONCE, max(0, int(given.get("count", PICTURES_AT_ONCE))))
        first = {str(name) for name in given.get("first", ())} | set(troubled)
        ordered = sorted(found, key=lambda leaf: leaf.name not in first)
        root = Path(settings.path or "").expanduser()
        shown = [{"name": leaf.name, "caption": leaf.own, "taught": list(leaf.taught), "editable": leaf.editable,
                  "stamp": album.stamp(root / leaf.name), "problems": troubled.get(leaf.name, [])}
                 for leaf in ordered[start:start + count]]
        others = [one for where, ones in troubled.items() if where not in names for one in ones]
        return {"folder": str(settings.path), "total": len(found), "captioned": sum(captioned(leaf) for leaf in found),
                "troubled": len(names & set(troubled)), "pictures": shown, "problems": others[:50],
                "tags": bench.tags(found) if start == 0 else None}

    def _folder(self, text: str) -> Path:
        from ..data import folder
        return self.desk.allowed(folder.existing(text))

    def _picture(self, what: str, request: Request) -> Answer:
        from ..data import album
        root = self._folder(request.query.get("folder", ""))
        name = request.query.get("name", "")
        keep = {"Cache-Control": "private, max-age=86400"}
        if what == "thumbnail":
            return Answer(200, album.thumbnail(root, name), "image/jpeg", headers=keep)
        file = album.inside(root, name)
        return Answer(kind=mimetypes.guess_type(file.name)[0] or "application/octet-stream", file=file,
                      headers={**keep, "Content-Security-Policy": "sandbox; default-src 'none'"})

    def _captions(self, given: Mapping[str, Any]) -> dict[str, Any]:
        from ..data import album, captions
        root = self._folder(str(given["folder"]))
        wanted, known = given["captions"], given.get("known", {})
        if not isinstance(wanted, dict) or not all(isinstance(text, str) for text in wanted.values()):
            raise ValueError("captions are texts by name")
        told: dict[str, Any] = {"captions": {}, "problems": [], "now": {}}
        for name, text in wanted.items():
            try:
                with self._writing:
                    now = album.caption(root, name) if name in known else None
                    if now is None or now in {captions.clean(one) for one in (text, *known[name])}:
                        told["captions"][name] = album.write_caption(root, name, text)
                        continue
                told["now"][name] = now
                raise DatasetError("The caption of {file} was changed elsewhere meanwhile, to '{text}', and was left so. Write "
                                   "on here, and yours takes its place.", file=captions.shown(name), text=now)
            except (DatasetError, RunError) as error:
                told["problems"] += [{**plain(problem), "where": name} for problem in error.problems]
        return told

    def _edit(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Change all captions of the form's folder, or take the change of this name back where it was made."""
        from ..data import bench
        self._listing = None
        if name == "unedit":
            settings, before = self._edits.pop(str(given["id"]))
            done = bench.put_back(settings, before)
        else:
            settings = self.desk.data(form.values(given["form"]))
            done = bench.change(settings, bench.Change(str(given["kind"]), str(given["find"]), str(given.get("by", ""))))
        told: dict[str, Any] = {"count": len(done.before), "problems": [plain(problem) for problem in done.problems[:50]]}
        if name == "edit" and done.before:
            told["id"] = secrets.token_hex(8)
            self._edits[told["id"]] = settings, done.before
            for old in list(self._edits)[:-MOST_EDITS]:
                del self._edits[old]
        return told


def captioned(leaf: Leaf) -> bool:
    """Whether a picture has a caption of its own, in a file or in a table: what is put before or said of all does not count."""
    return bool(leaf.own) or not leaf.editable and any(leaf.taught)


def loss_table(run: Run) -> str:
    """A run's losses as a table: a line each step, with the loss on the pictures kept apart where it was measured."""
    events = run.events()
    validated = {event["step"]: event["loss"] for event in events if event["event"] == "validation"}
    lines = ["step,epoch,loss,learning_rate,validation_loss"]
    for event in events:
        if event["event"] == "step":
            cells = [event["step"], event.get("epoch"), event["loss"], event.get("learning_rate"), validated.get(event["step"])]
            lines.append(",".join("" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines) + "\n"


def read_some(file: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of events from an offset on, about a megabyte of them at most."""
    try:
        size = file.stat().st_size
    except OSError:
        return [], 0
    if start > size:  # another file has taken its place
        start = 0
    if size - start <= EVENTS_AT_ONCE:
        return read_events(file, start)
    with open(file, "rb") as handle:
        handle.seek(start)
        data = handle.read(EVENTS_AT_ONCE)
    whole = data[:data.rfind(b"\n") + 1]
    lines = []
    for raw in whole.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines, start + len(whole)


@dataclass
class About:
    """A run in a few words: its state, its steps, what it teaches, with what, and its newest picture."""

    offset: int = 0
    told: dict[str, Any] = field(default_factory=dict)

    def take(self, run: Run, state: str) -> None:
        """Read what is new of a run."""
        if not self.told:
            self.told = {"name": run.name, "folder": str(run.folder), "step": 0, "steps": None, "loss": None, "picture": None,
                         "time": None, "file": None, "method": None, "base": None, "trigger": None, "files": [], "prompts": []}
            try:
                values = run.values()
                self.told.update(method=values["method"]["name"], base=Path(values["base"]["path"]).name,
                                 trigger=values["data"]["trigger"])
            except (AprendizError, KeyError, TypeError):
                logger.info("%s has a job that cannot be read", run.name)
        self.told.update(state=state, busy=state in BUSY, log=run.log.name if run.log.is_file() else None)
        lines, self.offset = read_some(run.events_file, self.offset)
        for event in lines:
            kind = event.get("event")
            self.told["time"] = event.get("time")
            if kind == "step":
                self.told.update(step=event.get("step"), steps=event.get("steps"), loss=event.get("loss"))
            elif kind == "sample":
                self.told["picture"] = event.get("file")
                if event.get("prompt") not in (*self.told["prompts"], None) and len(self.told["prompts"]) < MOST_PROMPTS:
                    self.told["prompts"].append(event["prompt"])
            elif kind in ("checkpoint", "finished") and event.get("file"):
                self._note(event["step"], event["file"])
                if kind == "finished":
                    self.told["file"] = event["file"]

    def _note(self, step: Any, file: Any) -> None:
        """A usable file of a step, the later ones last; a resumed run writes some anew."""
        known = {one["file"]: one for one in self.told["files"]} | {file: {"step": step, "file": file}}
        self.told["files"] = sorted(known.values(), key=lambda one: (str(one["file"]) == self.told["file"], one["step"] or 0))


# Mounting


def same_origin(headers: Mapping[str, str], public: Sequence[str] | None) -> bool:
    """Whether a request comes from the page itself: no other site's page may send one.

    public: the host names that the server goes by, None for any; a foreign name means that somebody points a name of theirs here.
    """
    name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if public is not None and name not in public:
        return False
    origin = headers.get("origin")
    if origin and origin != "null":
        here = headers.get("x-forwarded-host") or headers.get("host", "")
        return urlsplit(origin).netloc.lower() in (here.lower(), headers.get("host", "").lower())
    return origin is None and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def mount(app: Any, routes: Routes, *, prefix: str = "/aprendiz", allowed: Callable[[Any], bool] = lambda request: True,
          public: Sequence[str] | None = None) -> None:
    """Add the routes to a host's Starlette or FastAPI application, before all others.

    allowed: whether a request's sender has logged in, as the host sees it. public: the names the server goes by, None for any.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route

    async def answer(request: Any) -> Any:
        if not allowed(request):
            return Response(status_code=401, headers={"WWW-Authenticate": "Basic"})
        if not same_origin(request.headers, public):
            return Response(status_code=403)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST.get(request.path_params["rest"], LARGEST_BODY):
                return Response(status_code=413)
        asked = Request(request.method, request.path_params["rest"], dict(request.query_params), bytes(body))
        told = await run_in_threadpool(routes.handle, asked)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Aprendiz": "1", **told.headers}
        if told.file is not None:
            return FileResponse(told.file, media_type=told.kind, headers=headers)
        return Response(told.body, told.status, headers=headers, media_type=told.kind)

    route = Route(f"{prefix}/{{rest:path}}", answer, methods=["GET", "POST"])
    app.router.routes[:] = [route, *(other for other in app.router.routes if getattr(other, "path", None) != route.path)]
