"""Makes `.venv/` in this checkout with all that the quick start and the tests need; does nothing where that is done.

    python3 environment.py [--folder .venv] [--constraints FILE] [--torch-index URL]

It installs the exact versions that the tests ran on: constraints-py310.txt for Python 3.10, constraints.txt for newer
ones. PyTorch comes first, so that no other package chooses its build. The mark of a finished environment carries a hash
of all that was asked for and is written last: a broken-off install is taken up again. An environment of another Python, or
with PyTorch from elsewhere, is made anew: pip would keep what is there. Standard library only.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
EXTRAS = "dev,optimizers,board,video,app"
OLDEST, NEWEST = (3, 10), (3, 13)


class Failed(Exception):
    """A sentence for the person in front of the screen."""


def main():
    """Make the environment; the exit code is 0 when it is ready, 1 with one sentence when it is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=".venv", help="where the environment is made")
    parser.add_argument("--constraints", help="file with exact versions; chosen by the Python's version if not given")
    parser.add_argument("--torch-index", default=os.environ.get("TORCH_INDEX") or None,
                        help="package index to take PyTorch from, such as that of its CPU builds [the variable TORCH_INDEX]")
    asked = parser.parse_args()
    try:
        make(ROOT / asked.folder, ROOT / (asked.constraints or constraints()), asked.torch_index)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


def constraints():
    """The file with the exact versions for this Python."""
    return "constraints-py310.txt" if sys.version_info[:2] == (3, 10) else "constraints.txt"


def make(folder, versions, torch_index):
    """Make the environment in `folder` with the exact versions in the file `versions`, unless it is there already."""
    this = "{}.{}".format(*sys.version_info[:2])
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise Failed(f"This is Python {this}; Aprendiz needs 3.10 to 3.13. Name one that is installed: "
                     "make quickstart PYTHON=python3.11")
    mark = folder / f"complete-{wanted(versions, torch_index)}"
    if mark.exists():
        return
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    origin, this_origin = folder / "made-of", f"Python {this}, PyTorch from {torch_index or 'the usual index'}"
    if not python.exists() or not origin.exists() or origin.read_text(encoding="utf-8") != this_origin:
        create(folder)
        origin.write_text(this_origin, encoding="utf-8")
    print(f"Installing into {folder} (some minutes the first time, nothing the next)", flush=True)
    exact = ["-c", str(versions)]
    install(python, [*exact, "torch", *(["--index-url", torch_index] if torch_index else [])])
    install(python, [*exact, "-e", f"{ROOT}[{EXTRAS}]"])
    for old in folder.glob("complete-*"):
        old.unlink()
    mark.write_text("all packages are installed\n", encoding="utf-8")
    if os.name == "nt" and not torch_index and shutil.which("nvidia-smi"):
        print(CARD)


CARD = """There is an NVIDIA card here, and PyTorch as it was installed does not use it on Windows. To have it used:
    set TORCH_INDEX=the address that PyTorch's install page names for CUDA (after --index-url)
and run this again in the same window. What is in the environment is replaced."""


def wanted(versions, torch_index):
    """A hash of all that decides what is installed."""
    told = [sys.version, str(ROOT), EXTRAS, torch_index or ""]
    told += [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", versions)]
    return hashlib.sha256("\n".join(told).encode("utf-8")).hexdigest()[:16]


def create(folder):
    """Make an empty environment."""
    print("Making {} with Python {}.{}".format(folder, *sys.version_info[:2]), flush=True)
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(folder)]):
        raise Failed("Python could not make an environment. On Debian and Ubuntu install what it lacks with: "
                     "sudo apt-get install python3-venv")


def install(python, arguments):
    """Run pip in the environment."""
    command = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    if subprocess.call([*command, *arguments], cwd=str(ROOT)):
        raise Failed("The install broke off; what pip said stands above. Once that is mended, run the same command again: "
                     "it goes on where it stopped.")


if __name__ == "__main__":
    sys.exit(main())
