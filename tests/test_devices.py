"""Devices by name, what memory there is, and every way of running out of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aprendiz import devices
from aprendiz.errors import DeviceError
from aprendiz.settings import TrainingSettings

ROOT = Path(__file__).resolve().parent.parent

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda 1", "CPU", "directml"])
def test_a_name_that_is_no_device_is_answered_with_those_that_are(name: str, answers: Callable[[str, object], None]) -> None:
    with pytest.raises(DeviceError, match="It can be: auto, cpu, cuda, cuda:1, mps, xpu") as caught:
        devices.device(name)
    assert f"'{name}'" in str(caught.value) and caught.value.problem.where == "training.device"
    answers(f"device '{name}'", caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "xpu:1", "mps", "cpu:3"])
def test_a_device_that_is_not_there_is_answered_with_what_is(
        name: str, monkeypatch: pytest.MonkeyPatch, answers: Callable[[str, object], None]) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["cpu"])
    with pytest.raises(DeviceError, match="this machine has: cpu.*doctor") as caught:
        devices.device(name)
    answers(f"device '{name}' where there is a CPU alone", caught.value)


def test_a_card_beyond_the_last_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(devices, "_count", lambda kind: 2)
    assert devices.device("cuda:1") == torch.device("cuda:1")
    assert devices.device("auto") == torch.device("cuda")
    with pytest.raises(DeviceError, match="'cuda:2' is not there"):
        devices.device("cuda:2")


def test_there_is_always_a_cpu() -> None:
    assert devices.available()[0] == "cpu"
    assert devices.device("cpu") == CPU


def test_a_cpu_trains_in_fp32_unless_told_and_never_in_fp16() -> None:
    assert devices.precision(TrainingSettings(), CPU) == torch.float32
    assert devices.precision(TrainingSettings(precision="bf16"), CPU) == torch.bfloat16
    with pytest.raises(DeviceError, match="a CPU cannot train in"):
        devices.precision(TrainingSettings(precision="fp16"), CPU)


def test_a_card_that_emulates_bf16_keeps_the_base_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, wanted in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where, found=capability: found)
        assert devices.precision(TrainingSettings(), torch.device("cuda")) == wanted


def test_memory_that_is_taken_shows() -> None:
    """In a process of its own: one that has done much before takes it from what it holds."""
    script = ("import torch; from aprendiz import devices; cpu = torch.device('cpu'); before, _ = devices.memory_gb(cpu)\n"
              "taken = torch.ones(50_000_000)  # 0.2 GB, written to\n"
              "print(before, *devices.memory_gb(cpu), float(taken[0]))")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    before, now, peak, value = map(float, done.stdout.split())
    assert 0.15 < now - before < 0.25
    assert peak >= 0.99 * now
    assert value == 1.0


def test_the_memory_that_is_left_is_some_of_the_computers() -> None:
    free = devices.free_bytes(CPU)
    if sys.platform == "darwin":
        assert free is None
    else:
        assert free is not None and 1e8 < free < 1e14
        with_swap = devices.free_ram(swap=True)
        assert with_swap is not None and with_swap > 0.5 * free


MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nSwapFree:        1000000 kB\n"


@pytest.mark.parametrize(("meminfo", "limit", "used", "swap", "free"), [
    (MEMINFO, "", "", False, 8_192_000_000), (MEMINFO, "", "", True, 9_216_000_000),
    (MEMINFO, "max\n", "5000\n", False, 8_192_000_000),
    (MEMINFO, "4000000000\n", "1000000000\n", False, 3_000_000_000), (MEMINFO, "1000\n", "2000\n", False, 0),
    ("", "4000\n", "1000\n", False, 3000), ("", "", "", False, None), ("MemTotal: 5 kB\n", "max", "", True, None)])
def test_what_is_free_is_the_least_of_what_is_left_and_what_is_allowed(
        meminfo: str, limit: str, used: str, swap: bool, free: int | None) -> None:
    assert devices.least(meminfo, limit, used, swap) == free


@pytest.mark.parametrize("error", [
    RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"), RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:113] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), devices.OutOfMemory("as it is")])
def test_every_way_of_running_out_of_memory_has_one_name(error: Exception) -> None:
    with pytest.raises(devices.OutOfMemory), devices.naming_shortage():
        raise error


def test_memory_that_really_runs_out_has_that_name() -> None:
    with pytest.raises(devices.OutOfMemory), devices.naming_shortage():
        torch.empty(1 << 56, dtype=torch.uint8)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")])
def test_other_errors_keep_their_own(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, devices.naming_shortage():
        raise error
    assert caught.value is error


def test_a_cpu_has_nothing_to_give_back() -> None:
    devices.release(CPU)
    assert torch.ones(1).sum() == 1
