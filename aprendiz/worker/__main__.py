"""The worker process: `python aprendiz/worker/__main__.py RUN_FOLDER [--lifeline]`, started by path.

`--check OUTPUT` in place of a folder checks the job on stdin, `--estimate PICTURES` tells what it comes to (`checking`);
`--command WORDS` is the command line. A finished overlay folder of packages, which `install.py` makes where a host pins older
ones, comes first on `sys.path`; `APRENDIZ_OVERLAY` names another, or none where it is empty.

Exit codes: 0 finished, 1 failed in a way that a person can mend, 3 our bug, 130 stopped. Events say the rest.
"""

import os
import sys
from contextlib import suppress

if not __package__:
    def _numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.strip().split("+")[0].split(".")[:2] if part.isdigit())

    def _chosen(marks: list[str]) -> str:
        """Of the sets that are finished for this Python the one for its PyTorch, of these the one last used; marked as used."""
        if len(marks) > 1:
            from importlib.metadata import PackageNotFoundError, version
            made = {}
            for mark in marks:
                with open(mark, encoding="utf-8") as opened:
                    made[mark] = _numbers(opened.readline().partition("# torch ")[2])
            with suppress(PackageNotFoundError):
                ours = _numbers(version("torch"))
                marks = sorted((mark for mark in marks if made[mark] <= ours), key=made.__getitem__) or marks
        for mark in marks[-1:]:
            with suppress(OSError):  # where only somebody else may write
                os.utime(mark)
        return os.path.dirname(marks[-1]) if marks else ""

    # Started by path: this folder (which holds `messages` and `client`) makes way for the one that holds the package. A Python
    # with a ._pth file, or with -I, has neither.
    _here = os.path.dirname(os.path.abspath(__file__))
    _root = os.path.dirname(os.path.dirname(_here))
    sys.path[:] = [_root, *(path for path in sys.path if os.path.abspath(path or ".") != _here)]
    _overlay = os.environ.get("APRENDIZ_OVERLAY", os.path.join(_root, "overlay"))
    if "APRENDIZ_OVERLAY" not in os.environ:
        _folders = [os.path.join(_overlay, name) for name in os.listdir(_overlay)] if os.path.isdir(_overlay) else []
        _marks = [os.path.join(folder, "complete-{}.{}".format(*sys.version_info[:2])) for folder in _folders]
        _overlay = _chosen(sorted(filter(os.path.isfile, _marks), key=os.path.getmtime))
    sys.path[:0] = [_overlay] if _overlay else []
    import runpy
    _command = sys.argv[1:2] == ["--command"]
    del sys.argv[1:1 + _command]
    runpy.run_module("aprendiz" if _command else "aprendiz.worker", run_name="__main__", alter_sys=True)
    raise SystemExit(0)

import gc
import io
import logging
import threading
from pathlib import Path

from ..errors import AprendizError
from ..run import Run, Stopped
from .attempt import attempt, libraries_to_log

SAVING = 600.0  # seconds that a worker whose host is gone may take to save before it is ended: a card is not to be held for ever


def main(arguments: list[str]) -> int:
    """Train the run in the folder given."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aprendiz").setLevel(logging.INFO)
    if arguments[0] in ("--check", "--estimate"):
        from .checking import main as check
        return check(arguments)
    try:
        run = Run.open(Path(arguments[0]))
        if "--lifeline" in arguments:
            hold_lifeline(run)
        with libraries_to_log(run.log, begin=False):
            attempt(run)
    except AprendizError as error:
        logging.getLogger(__name__).error("%s", "\n".join(problem.english for problem in error.problems))
        return 1
    except (Stopped, KeyboardInterrupt):
        return 130
    except Exception:
        logging.getLogger(__name__).exception("the worker failed")
        return 3
    return 0


def hold_lifeline(run: Run) -> None:
    """Stop the run when stdin ends: the host that held its other end is gone."""
    # The pipe moves to a number of its own, and 0 becomes the null device: on Windows libraries that look at stdin while a
    # thread reads it would hang.
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def wait_for_the_end() -> None:
        while os.read(pipe, 4096):
            pass
        run.tell("stop")
        timer = threading.Timer(SAVING, os._exit, (1,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Otherwise Python goes once more through all that the libraries made, a second of the processor, before it lets go of it.
    gc.freeze()
    raise SystemExit(code)
