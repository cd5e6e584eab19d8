"""The command line: `python -m aprendiz COMMAND ...`. This process itself trains, with the same folders and events as any door.

Exit codes: 0 done, 1 something that the user can mend (one clear message), 2 unknown commands or flags and missing arguments,
3 our bug (its traceback is in the file that is named), 130 stopped. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__, registry
from .commands import drawing, following, looking, maps, page, studio, training
from .errors import AprendizError
from .files import home
from .knobs import knobs
from .run import Stopped
from .settings import BaseSettings
from .texts import say
from .views import flags, usage
from .views.terminal import utf8
from .worker.attempt import Bug, missing_package, too_long
from .worker.messages import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    utf8(sys.stdout)
    utf8(sys.stderr)
    asked = read_arguments(list(sys.argv[1:] if arguments is None else arguments))
    command: Callable[[argparse.Namespace], int] = asked.command
    try:
        return command(asked)
    except AprendizError as error:
        complain("\n".join(str(problem) for problem in error.problems))
        return 1
    except (Stopped, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Bug as bug:
        complain(say("Something went wrong inside Aprendiz ({error}). That is a bug of ours; {file} tells where.",
                     error=str(bug), file=str(bug.log)))
        return 3
    except Exception as error:  # noqa: BLE001 - a traceback belongs in a file, not before a user's eyes
        known = missing_package(error) or too_long(error)
        if known is not None:
            write_traceback(error)
            complain(str(known))
            return 1
        complain(say("Something went wrong inside Aprendiz ({error}). That is a bug of ours; {file} tells where.",
                     error=f"{type(error).__name__}: {error}", file=str(write_traceback(error))))
        return 3


def complain(text: str) -> None:
    """Tell a person what is wrong; the helping processes of a launch leave that to the main one."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, file=sys.stderr, flush=True)


def write_traceback(error: BaseException) -> Path:
    """Put a traceback into the log in the user's data folder, for errors outside a run."""
    file = home() / "log.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n")
        traceback.print_exception(type(error), error, error.__traceback__, file=log)
    return file


# The arguments


class Parser(argparse.ArgumentParser):
    """Whole flags only, and for a flag that is none the nearest there is."""

    def error(self, message: str) -> NoReturn:
        complain(f"{self.prog}: {message}\n" + say("`{command} --help` tells what there is.", command=self.prog))
        raise SystemExit(2)


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command and its arguments. Exits with 2 where they are unknown or missing, or no text."""
    parser, parts = make_parser(next((word for word in arguments[1:2] if word.replace("-", "_") in registry.methods()), None))
    for argument in arguments:
        legible = argument.encode("utf-8", "backslashreplace").decode("utf-8")
        if legible != argument:
            parser.error(say("'{argument}' holds bytes that are no UTF-8. Type it anew, in a terminal that is set to UTF-8.",
                             argument=legible))
    word = next(iter(arguments), "-")
    close = flags.nearest(word, list(parts))
    if close and word not in parts and not word.startswith("-"):
        parser.error(say("There is no command {command}. Did you mean {close}?", command=word, close=close))
    asked, unknown = parser.parse_known_args(arguments)
    if unknown:
        of = parts[asked.name_of_command]
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        close = flags.nearest(wrong.partition("=")[0], [flag for action in of._actions for flag in action.option_strings])
        if close and wrong.startswith("-"):
            of.error(say("There is no flag {flag}. Did you mean {close}?", flag=wrong.partition("=")[0], close=close))
        if wrong.startswith("-"):
            of.error(say("There is no flag {flag}.", flag=wrong))
        of.error(say("{word} is one argument too many.", word=wrong))
    return asked


def a_path(text: str) -> Path:
    """A path; an empty one would be the current folder, which nobody means who types nothing."""
    if not text:
        raise argparse.ArgumentTypeError(say("it is empty. Name a file or a folder, or leave it out."))
    return Path(text)


def make_parser(method: str | None = None) -> tuple[Parser, dict[str, Parser]]:
    """The whole command line, and its parts by command. method: whose settings the help of train and check tells."""
    usage.speak()
    parser = Parser(prog="python -m aprendiz", allow_abbrev=False,
                    description=say("Teach a diffusion model something new from your own pictures."))
    parser.add_argument("--version", action="version", version=f"aprendiz {__version__}",
                        help=say("show program's version number and exit"))
    adder = parser.add_subparsers(title=say("commands"), dest="name_of_command", required=True, metavar="COMMAND")
    parts: dict[str, Parser] = {}

    def add(name: str, command: Callable[[argparse.Namespace], int], help: str, *positional: tuple[str, str, str],
            machine: bool = True) -> Parser:
        part = parts[name] = adder.add_parser(name, help=help, description=help, allow_abbrev=False)
        part.set_defaults(command=command, part=part)
        for argument, metavar, text in positional:
            part.add_argument(argument, metavar=metavar, help=text)
        if machine:
            part.add_argument("--json", action="store_true", help=say("Print for machines: JSON, a line each."))
        return part

    add("quickstart", training.quickstart, say("Teach the embedded base a subject that it has never seen; no network."))
    what = ("what", "METHOD|JOB", say("A method (`methods` lists them), or a job file (.toml, .json)."))
    for name, command, help in (("train", training.train, say("Teach a base from a folder of pictures.")),
                                ("check", training.check, say("Check a job and its pictures, and train nothing."))):
        flags.add_flags(add(name, command, help, what), method and method.replace("-", "_"))
    for name in ("quickstart", "train", "check"):
        parts[name].add_argument("--out", type=a_path, default=Path("output"), metavar="FOLDER",
                                 help=say("Where runs are written. [output]"))
    run = ("run", "RUN", say("The folder of a run, or its name."))
    add("resume", training.resume, say("Go on with a run that was stopped or died."), run)
    _add_generate(add("generate", drawing.generate, say("Draw pictures with a base and with what was learned.")))
    add("studio", studio.studio, say("Draw what is asked for on standard input, the base kept open; for pages."),
        machine=False).set_defaults(generate=parts["generate"])
    parts["studio"].epilog = say(
        'A line of JSON asks: {{"id": ..., "arguments": [...]}}, the arguments being those of `generate`. Lines of JSON answer '
        "with that id: done and total while it draws, then files or problems.")
    _add_walk(add("walk", drawing.walk, say("A moving picture that goes from prompt to prompt.")))
    _add_maps(add("control-maps", maps.control_maps, say("Make condition pictures for a ControlNet from a folder of pictures."),
                  ("folder", "DIR", say("The folder with the pictures."))))
    add("inspect", looking.inspect, say("What a file is, and what of it each host loads."),
        ("file", "FILE", say("A file of weights.")))
    add("runs", following.runs, say("The runs there are, and their state.")).add_argument(
        "folder", nargs="?", type=a_path, metavar="DIR", help=say("An output folder. None: all that were ever used."))
    add("watch", following.watch,
        say("Follow a run that was started elsewhere: on the page, in a host, in another terminal."), run)
    add("tell", following.tell, say("Steer a run."), run, machine=False).add_argument(
        "what", choices=list(COMMANDS), metavar="|".join(COMMANDS))
    share = add("share", looking.share, say("Make a folder to publish: file, card, preview, grid; nothing private."),
                ("run", "RUN", say("A run's folder or name, or a file of weights.")))
    share.add_argument("--out", type=a_path, metavar="FOLDER", help=say("The folder to make. [share, in the run's folder]"))
    share.add_argument("--level", default="public", metavar="public|full|none", help=say("How much is told. [public]"))
    add("methods", looking.methods, say("The ways of teaching, with their settings."))
    add("families", looking.families, say("The model families, and what each offers."))
    add("doctor", looking.doctor, say("What this machine can do, what is missing, and the remedy.")).add_argument(
        "--out", type=a_path, default=Path("output"), metavar="FOLDER", help=say("Where runs would be written."))
    app = add("app", page.app, say("The page, in a browser on this machine."), machine=False)
    app.add_argument("--port", metavar="N", help=say("Where it is served. [the first free one from 7860 on]"))
    app.add_argument("--out", type=a_path, default=Path("output"), metavar="FOLDER", help=say("Where runs are written. [output]"))
    app.add_argument("--folder", type=a_path, action="append", default=[], metavar="FOLDER",
                     help=say("A folder that the page may open, beside your home and the current one; may be given "
                              "several times."))
    return parser, parts


def _add_generate(parser: Parser) -> None:
    _add_drawing(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help=say("What to draw."))
    parser.add_argument("--image", type=a_path, metavar="FILE", help=say("A picture to start from."))
    parser.add_argument("--mask", type=a_path, metavar="FILE", help=say("White where that picture may change."))
    parser.add_argument("--strength", metavar="X", help=say("How much of the picture is redone, from 0 to 1. [0.75]"))
    parser.add_argument("--controlnet", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help=say("A ControlNet file and its strength; may be given several times, each with its --control."))
    parser.add_argument("--control", action="append", default=[], metavar="FILE",
                        help=say("The condition picture that it is shown."))
    for name, help in (("start", say("From which share of the steps on it is heard. [0]")),
                       ("end", say("Up to which share of the steps. [1]"))):
        parser.add_argument(f"--control-{name}", action="append", default=[], metavar="X", help=help)
    parser.add_argument("--seed", metavar="N", help=say("The picture's noise follows from it; several pictures count up. [0]"))
    parser.add_argument("--count", metavar="N", default="1", help=say("How many pictures. [1]"))


def _add_maps(parser: Parser) -> None:
    parser.add_argument("--kind", default="canny", metavar="KIND",
                        help=say("canny, scribble, blur, tile, inpaint, color; with models: softedge, pidi, depth, normal, mlsd, "
                                 "seg, openpose. [canny]"))
    parser.add_argument("--out", type=a_path, metavar="FOLDER",
                        help=say("Where they are written. [beside the pictures, as name.cond.png]"))
    parser.add_argument("--annotators", type=a_path, metavar="FOLDER", help=say("The folder of the models."))
    for name, start, help in (("canny-low", "100", say("Canny: weaker edges are left out. [100]")),
                              ("canny-high", "200", say("Canny: edges begin where they are stronger than this. [200]")),
                              ("thickness", "0", say("Pixels by which lines are widened on each side. [0]"))):
        parser.add_argument(f"--{name}", default=start, metavar="X", help=help)


def _add_walk(parser: Parser) -> None:
    _add_drawing(parser)
    parser.add_argument("--prompt", required=True, action="append", metavar="TEXT",
                        help=say("What to draw; give several to go from one to the next."))
    parser.add_argument("--seeds", metavar="N,N", default="0", help=say("The noise of each stop. [0]"))
    parser.add_argument("--frames", metavar="N", help=say("How many frames there are in all. [24]"))
    parser.add_argument("--frames-per-second", metavar="X", help=say("How fast it plays. [12]"))


def _add_drawing(parser: Parser) -> None:
    parser.add_argument("--base", required=True, metavar="BASE",
                        help=say("The model to draw with: 'micro', a diffusers folder, or a .safetensors checkpoint."))
    for name, metavar in (("vae", "FILE"), ("text-encoder", "FILE"), ("prediction", "auto|epsilon|v"), ("clip-skip", "N")):
        parser.add_argument(f"--{name}", metavar=metavar, help=say(knobs(BaseSettings)[name.replace("-", "_")].help))
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]",
                        help=say("A LoRA file and its weight; may be given several times."))
    parser.add_argument("--embedding", action="append", type=a_path, default=[], metavar="FILE",
                        help=say("An embedding file, called in prompts by its name; may be given several times."))
    for name, metavar, help in (("negative", "TEXT", say("What the picture must not show.")),
                                ("width", "N", say("Pixels. [the base's own]")),
                                ("height", "N", say("Pixels. [the base's own]")), ("steps", "N", say("Sampler steps. [20]")),
                                ("guidance", "X", say("How strictly the picture follows its prompt; 1 is without. [5]")),
                                ("sampler", "NAME", say("The sampler. [ddim]"))):
        parser.add_argument(f"--{name}", metavar=metavar, help=help)
    parser.add_argument("--device", default="auto", help=say("cpu, cuda, cuda:1, mps or xpu. [the fastest there is]"))
    parser.add_argument("--precision", default="auto", help=say("bf16, fp16 or fp32. [the device's own]"))
    parser.add_argument("--out", required=True, type=a_path, metavar="FILE|FOLDER",
                        help=say("What to write; nothing is ever overwritten."))


if __name__ == "__main__":
    code = main()
    # Otherwise Python goes once more through all that the libraries made, a second of the processor, before it lets go of it.
    gc.freeze()
    raise SystemExit(code)
