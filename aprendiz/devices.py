"""Which device and which precision a run takes, what memory there is, and how running out of it shows."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .errors import DeviceError

if TYPE_CHECKING:
    from .settings import TrainingSettings

logger = logging.getLogger(__name__)

KINDS = ("cpu", "cuda", "mps", "xpu")
# torch before 2.5 knows the CUDA one alone; they are the same class.
OutOfMemory: type[RuntimeError] = torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else torch.cuda.OutOfMemoryError
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED",
             "CUDNN_STATUS_ALLOC_FAILED")


def device(name: str) -> torch.device:
    """The device of a name; 'auto' is the fastest there is. Raises DeviceError where it is not there."""
    there = available()
    if name == "auto":
        return torch.device(there[-1])
    kind, colon, number = name.partition(":")
    if kind not in KINDS or (colon and not number.isdigit()):
        raise DeviceError("device is '{name}'. It can be: auto, cpu, cuda, cuda:1, mps, xpu.", name=name, where="training.device")
    if kind not in there or (colon and int(number) >= _count(kind)):
        raise DeviceError("The device '{name}' is not there; this machine has: {there}. Choose one of these, or 'auto'; "
                          "`python -m aprendiz doctor` tells what is missing.",
                          name=name, there=", ".join(there), where="training.device")
    return torch.device(kind if kind in ("cpu", "mps") else name)


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


def _count(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count() if kind == "xpu" else 1


def precision(settings: TrainingSettings, where: torch.device) -> torch.dtype:
    """Number format of the frozen base: bf16 where the device has it, fp16 on older cards, fp32 on a CPU."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if settings.precision != "auto":
        if settings.precision == "fp16" and where.type == "cpu":
            raise DeviceError("precision is fp16, which a CPU cannot train in. Choose fp32 or bf16.", where="training.precision")
        return named[settings.precision]
    if where.type == "cpu":
        return torch.float32
    if where.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(where)[0] < 8:
        # torch says yes to emulated bf16, which is several times slower.
        logger.warning("This GPU lacks bf16; the frozen base is kept in fp16.")
        return torch.float16
    return torch.bfloat16


# How much there is


def memory_gb(where: torch.device) -> tuple[float, float]:
    """Memory in use now and at its peak, in GB (of the device, or of this process on a CPU)."""
    if where.type == "cuda":
        return torch.cuda.memory_allocated(where) / 1e9, torch.cuda.max_memory_allocated(where) / 1e9
    if where.type == "xpu":
        return torch.xpu.memory_allocated(where) / 1e9, torch.xpu.max_memory_allocated(where) / 1e9
    if where.type == "mps":
        now = torch.mps.driver_allocated_memory() / 1e9
        return now, now
    now, peak = process_memory()
    return now / 1e9, peak / 1e9


def process_memory() -> tuple[int, int]:
    """Memory of this process, in bytes: now and at its peak; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _windows_process()
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return peak, peak
    return int(pages) * resource.getpagesize(), peak


def free_bytes(where: torch.device) -> int | None:
    """Bytes of a device's memory that a run can still take; None where nobody knows. A CPU's is the computer's."""
    if where.type == "cuda":
        # What torch holds without using it is free as well.
        idle = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return torch.cuda.mem_get_info(where)[0] + idle
    if where.type == "xpu":
        return torch.xpu.get_device_properties(where).total_memory - torch.xpu.memory_allocated(where)  # type: ignore[no-any-return]
    if where.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_ram()


def card(where: torch.device) -> tuple[int, int, int]:
    """Bytes free on a CUDA card, of the card, and held by torch; on Windows the last may be more than the card has."""
    free, total = torch.cuda.mem_get_info(where)
    return free, total, torch.cuda.memory_reserved(where)


def free_ram(swap: bool = False) -> int | None:
    """Bytes of the computer's memory that programs can still take, with or without what can be swapped out; None: unknown.

    Less where a container is allowed less.
    """
    if sys.platform == "win32":
        return _windows_memory(swap)
    return least(_read("/proc/meminfo"), _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current"), swap)


def least(meminfo: str, limit: str, used: str, swap: bool = False) -> int | None:
    """Bytes free by Linux' own count (/proc/meminfo) and within a container's bound (cgroup 2, 'max' for none); None: unknown."""
    lines = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    wanted = ("MemAvailable", "SwapFree") if swap else ("MemAvailable",)
    known = []
    if "MemAvailable" in lines:
        known.append(sum(int(lines[name].split()[0]) * 1024 for name in wanted if name in lines))
    if limit.strip().isdigit() and used.strip().isdigit():
        known.append(max(0, int(limit) - int(used)))
    return min(known, default=None)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii")
    except OSError:
        return ""


class _Memory(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), *((name, ctypes.c_ulonglong) for name in
                ("total", "available", "total_page", "available_page", "total_virtual", "available_virtual", "extended"))]


class _Process(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = [("length", ctypes.c_ulong), ("faults", ctypes.c_ulong), *((name, ctypes.c_size_t) for name in
                ("peak", "now", "peak_paged", "paged", "peak_non_paged", "non_paged", "page_file", "peak_page_file"))]


def _windows_memory(swap: bool) -> int | None:
    status = _Memory()
    status.length = ctypes.sizeof(_Memory)
    done = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.available_page if swap else status.available) if done else None


def _windows_process() -> tuple[int, int]:
    counters = _Process()
    counters.length = ctypes.sizeof(_Process)
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p  # a handle is as wide as a pointer
    handle = ctypes.c_void_p(kernel.GetCurrentProcess())
    done = kernel.K32GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.length)
    return (int(counters.now), int(counters.peak)) if done else (0, 0)


# When there is not enough


@contextlib.contextmanager
def naming_shortage() -> Iterator[None]:
    """Every way of running out of memory, whatever the device calls it, is `OutOfMemory` outside of this."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
            raise OutOfMemory(str(error)) from error
        raise


def release(where: torch.device) -> None:
    """Give back what is held of the device without being used: by torch, and on a CPU by the C library."""
    if where.type == "cuda":
        torch.cuda.empty_cache()
    elif where.type == "xpu":
        torch.xpu.empty_cache()
    elif where.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)
