"""What this machine and its Python can do, what is missing, and the remedy. Works where torch is missing or broken."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import __version__
from .files import home
from .texts import say

REQUIRED = {"torch": "2.0.0", "transformers": "4.30.2", "diffusers": "0.31.0", "peft": "0.13.2", "accelerate": "0.21.0",
            "safetensors": "0.4.2", "pillow": "9.5.0"}
# What asks for them, as one types it.
OPTIONAL = {"pytorch-optimizer": "--optimizer prodigy|lion|adafactor|schedulefree", "bitsandbytes": "--optimizer adamw8bit",
            "tensorboard": "--tensorboard", "wandb": "--wandb", "imageio-ffmpeg": "walk --out FILE.mp4", "gradio": "app"}
GB = 1e9
LITTLE_DISK, LITTLE_MEMORY = 5 * GB, 4 * GB


@dataclass(frozen=True)
class Finding:
    """One line of the report. remedy: what to do; empty where all is well. stops: nothing can be trained like this."""

    name: str
    value: str
    remedy: str = ""
    stops: bool = False


def examine(folder: Path) -> list[Finding]:
    """Look at everything; `folder` is where runs would be written."""
    return [_python(), *_packages(), *_torch(), *_torchvision(), _memory(), _disk(folder), _home()]


def _python() -> Finding:
    value = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}, Aprendiz {__version__}"
    return Finding("Python", value)


def _packages() -> list[Finding]:
    findings = []
    for name, least in REQUIRED.items():
        version = _version(name)
        install = say("Install it with: {command}", command=f'{sys.executable} -m pip install "{name}>={least}"')
        if version is None:
            findings.append(Finding(name, say("missing"), _torch_install() if name == "torch" else install, stops=True))
        elif _numbers(version) < _numbers(least):
            older = say("At least {version} is needed.", version=least)
            findings.append(Finding(name, version, f"{older} {install}", stops=True))
        else:
            findings.append(Finding(name, version))
    for name, what in OPTIONAL.items():
        findings.append(Finding(name, _version(name) or say("missing, only needed for: {what}", what=what)))
    return findings


def _torch_install() -> str:
    return say("Install PyTorch as its site says for this machine: https://pytorch.org/get-started/locally")


def _torch() -> list[Finding]:
    """Devices, if torch can be imported."""
    if _version("torch") is None:
        return []
    try:
        torch = importlib.import_module("torch")
        devices = importlib.import_module("aprendiz.devices").available()
    except Exception as error:  # noqa: BLE001 - whatever is broken about torch is what is to be told
        return [Finding(say("torch cannot be imported"), _first_line(error), _torch_install(), stops=True)]
    findings = [Finding(say("devices"), ", ".join(devices))]
    if "cuda" in devices:
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            value = say("{name}, {free} of {total} GB free", name=card.name, free=f"{free / GB:.1f}", total=f"{total / GB:.1f}")
            findings.append(Finding(f"cuda:{index}", value))
    elif shutil.which("nvidia-smi"):
        remedy = say("An NVIDIA card seems to be there, but this torch cannot use it. Install the build of torch for CUDA, or "
                     "update the driver.") + " " + _torch_install()
        findings.append(Finding("cuda", say("not usable"), remedy))
    return findings


def _torchvision() -> list[Finding]:
    """torchvision is not needed, but one that was made for another torch breaks transformers."""
    version = _version("torchvision")
    if version is None or _version("torch") is None:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - as above
        remedy = say("It was made for another torch. Install the two together, or remove torchvision: nothing here needs it.")
        return [Finding("torchvision", f"{version}: {_first_line(error)}", remedy, stops=True)]
    return [Finding("torchvision", version)]


def _memory() -> Finding:
    total = total_memory()
    if total is None:
        return Finding(say("memory"), say("unknown"))
    remedy = say("That is little: expect room for small bases only.") if total < LITTLE_MEMORY else ""
    return Finding(say("memory"), say("{total} GB, {cores} cores", total=f"{total / GB:.1f}", cores=os.cpu_count()), remedy)


def total_memory() -> int | None:
    """The computer's memory in bytes."""
    if sys.platform == "win32":
        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), *((name, ctypes.c_ulonglong) for name in
                        ("total", "available", "total_page", "available_page", "total_virtual", "available_virtual", "extended"))]
        status = Status()
        status.length = ctypes.sizeof(Status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _disk(folder: Path) -> Finding:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    remedy = say("Free some space, or choose another folder with --out.") if free < LITTLE_DISK else ""
    return Finding(say("free disk"), say("{free} GB in {folder}", free=f"{free / GB:.1f}", folder=str(there)), remedy)


def _home() -> Finding:
    there = next(parent for parent in (home().absolute(), *home().absolute().parents) if parent.exists())
    if os.access(there, os.W_OK):
        return Finding(say("own data"), str(home()))
    return Finding(say("own data"), str(home()), say("It cannot be written. Set APRENDIZ_HOME to a folder that can."), stops=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
