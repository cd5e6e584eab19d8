"""Gives AUTOMATIC1111, Forge and reForge what the worker needs, without touching a package that the host pins.

The host runs this file at every start. The packages go into `overlay/<hash of the set>/` beside this file, with exact versions
chosen by the host's PyTorch; only the worker sees them. The mark `complete-<Python's version>` is written last, and the folder
takes its name when all is in it: a broken-off install is begun anew at the next start, and a worker that runs keeps the set
that it began with. PyTorch itself is never installed. Other programs that run this file (ComfyUI's manager does) get nothing:
it returns at once unless `launch`, the WebUI's own, can be imported. By hand: `python install.py --now`. Standard library only.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

OVERLAY = Path(__file__).resolve().parent / "overlay"
OLD = 7 * 24 * 3600  # seconds after which a set that is no longer used is removed; no worker is that old
# The newest versions that were tried with each PyTorch, from that one on; whole, because nothing else is installed with them.
SETS = {
    (2, 1): ("accelerate==1.15.0", "diffusers==0.35.2", "huggingface_hub==0.36.2", "importlib_metadata==9.0.1", "peft==0.21.2",
             "regex==2026.9.29", "safetensors==0.8.0", "tokenizers==0.21.4", "transformers==4.55.4", "zipp==4.1.2"),
    (2, 3): ("accelerate==1.15.0", "diffusers==0.38.0", "huggingface_hub==0.36.2", "importlib_metadata==9.0.1", "peft==0.21.2",
             "regex==2026.9.29", "safetensors==0.8.0", "tokenizers==0.22.2", "transformers==4.57.6", "zipp==4.1.2"),
}
COMMON = ("filelock", "fsspec", "hf-xet", "packaging", "psutil", "PyYAML", "requests", "tqdm", "typing_extensions")


class Failed(Exception):
    """A sentence for the person in front of the console."""


def main(arguments):
    """Install what is missing; 0 when all is there, 1 with one sentence when it is not."""
    if "--now" not in arguments and importlib.util.find_spec("launch") is None:
        return 0
    try:
        install()
    except Failed as failed:
        print(f"Aprendiz: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Aprendiz: the installation was broken off; the next start begins it anew.", file=sys.stderr)
        return 130
    return 0


def install():
    """Fill the overlay's folder for this Python and this PyTorch, unless it is there."""
    torch = torch_version()
    packages = wanted(torch, missing())
    python = "{}.{}".format(*sys.version_info[:2])
    name = hashlib.sha256("\n".join([python, sys.platform, *packages]).encode()).hexdigest()[:12]
    folder = OVERLAY / name
    if (folder / f"complete-{python}").is_file():
        with contextlib.suppress(OSError):  # where only somebody else may write
            os.utime(folder / f"complete-{python}")  # it is in use, and the one that this host wants
        return clear(keep=folder)
    print(f"Aprendiz: installing {len(packages)} packages into {folder}, for its own use; the host's stay as they are.",
          flush=True)
    building = OVERLAY / f".{name}.{os.getpid()}.tmp"
    building.mkdir(parents=True, exist_ok=True)
    try:
        pip(building, packages)
        told = ["# torch {}.{}".format(*fitting(torch)), *packages]
        (building / f"complete-{python}").write_text("\n".join(told) + "\n", encoding="utf-8")
        if folder.exists() and not (folder / f"complete-{python}").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        move(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    clear(keep=folder)  # not before: offline an old set is better than none
    print("Aprendiz: ready.", flush=True)


def torch_version():
    """The host's PyTorch as numbers, without importing it. Raises Failed."""
    try:
        text = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise Failed("this Python has no PyTorch yet. Start the WebUI once without Aprendiz, so that it installs its own, and "
                     "then again.") from None
    numbers = text.split("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in numbers)


def missing():
    """What the sets take for granted and this host lacks: small packages that nobody pins tightly."""
    return [name for name in COMMON if not there(name)]


def there(name):
    """Whether a distribution is installed in the host, not in an overlay."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def wanted(torch, lacking):
    """The packages for a version of PyTorch. Raises Failed where there is no set for it."""
    return [*SETS[fitting(torch)], *lacking]


def fitting(torch):
    """The version of PyTorch that the set for this one begins with. Raises Failed where there is no set for it."""
    if torch < min(SETS):
        raise Failed("PyTorch {}.{} is too old for training; 2.1 is the oldest that works. Update the WebUI.".format(*torch))
    return max(known for known in SETS if known <= torch)


def pip(folder, packages):
    """Install exactly these into a folder. Raises Failed."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), "--no-input", "--quiet",
               "--disable-pip-version-check", "--no-warn-script-location", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise Failed(f"pip could not be started ({error}).") from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else str(done.returncode))
        raise Failed(f"the packages could not be installed ({reason}). With a connection to the package index, start the WebUI "
                     f"again, or run: {sys.executable} {Path(__file__).resolve()} --now")


def move(building, folder):
    """Give the finished folder its name; another start may have been quicker. Raises Failed."""
    for _ in range(50):  # a virus scanner may hold new files for a moment
        try:
            building.rename(folder)
            return
        except OSError as error:
            if folder.exists():
                return
            reason = error
            time.sleep(0.1)
    raise Failed(f"{folder} could not be made ({reason}). Check that nothing holds it and that the disk is writable.")


def clear(keep):
    """Remove what broken-off installs left, and old sets that no running worker can still hold: each marks its set as used."""
    for folder in OVERLAY.glob("*") if OVERLAY.is_dir() else ():
        age = time.time() - max(path.stat().st_mtime for path in (folder, *folder.glob("complete-*")))
        if folder != keep and age > (3600 if folder.name.endswith(".tmp") else OLD):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
