"""Which device and which precision a run takes, and what memory it has."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from .errors import DeviceError

if TYPE_CHECKING:
    from .settings import TrainingSettings

logger = logging.getLogger(__name__)


def device(name: str) -> torch.device:
    """The device of a name; 'auto' is the fastest there is. Raises DeviceError where it is not there."""
    there = available()
    if name == "auto":
        return torch.device(there[-1])
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        raise DeviceError("device is '{name}'. It can be: auto, cpu, cuda, cuda:1, mps, xpu.", name=name, where="training.device")
    if kind not in there or (":" in name and not _has(kind, name)):
        raise DeviceError("The device '{name}' is not there; this machine has: {there}. Choose one of these, or 'auto'; "
                          "`python -m aprendiz doctor` tells what is missing.", name=name, there=", ".join(there), where="training.device")
    return torch.device(name)


def available() -> list[str]:
    """The kinds of device there are, the fastest last."""
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    if torch.cuda.is_available():
        found.append("cuda")
    return found


def _has(kind: str, name: str) -> bool:
    number = name.split(":")[1]
    count = torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count() if kind == "xpu" else 1
    return number.isdigit() and int(number) < count


def precision(settings: TrainingSettings, where: torch.device) -> torch.dtype:
    """Number format of the frozen base: bf16 where the device has it, fp16 on older cards, fp32 on a CPU."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if settings.precision != "auto":
        if settings.precision == "fp16" and where.type == "cpu":
            raise DeviceError("precision is fp16, which a CPU cannot train in. Choose fp32 or bf16.", where="training.precision")
        return named[settings.precision]
    if where.type == "cpu":
        return torch.float32
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.warning("This GPU lacks bf16; the frozen base is kept in fp16.")
        return torch.float16
    return torch.bfloat16


def memory_gb(where: torch.device) -> tuple[float, float]:
    """Memory in use now and at its peak, in GB (of the device, or of this process on a CPU)."""
    if where.type == "cuda":
        return torch.cuda.memory_allocated(where) / 1e9, torch.cuda.max_memory_allocated(where) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0, 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e9, peak
    except OSError:
        return peak, peak
