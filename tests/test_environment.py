"""What `environment.py` makes anew, and what it leaves. What pip would fetch is only noted: tests never reach the network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ROOT / "constraints.txt"


class Maker:
    """`environment.py` with a pip that only notes what it is asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.util.spec_from_file_location("environment", ROOT / "environment.py")
        assert spec is not None and spec.loader is not None
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.folder, self.created, self.installed = folder, 0, list[list[str]]()
        monkeypatch.setattr(self.module, "create", self._create)
        monkeypatch.setattr(self.module, "install", lambda python, arguments: self.installed.append(arguments))

    def _create(self, folder: Path) -> None:
        self.created += 1
        for name in ("bin/python", "Scripts/python.exe"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        for old in folder.glob("complete-*"):  # as venv --clear does
            old.unlink()

    def make(self, torch_index: str | None = None) -> list[list[str]]:
        """What is installed by one call."""
        self.installed = []
        self.module.make(self.folder, VERSIONS, torch_index)
        return self.installed


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(tmp_path / ".venv", monkeypatch)


def test_an_environment_is_made_once(maker: Maker) -> None:
    torch, ours = maker.make()
    assert torch[-1] == "torch" and "-e" in ours
    assert (maker.make(), maker.created) == ([], 1)


def test_a_broken_off_install_is_taken_up_where_it_stopped(maker: Maker) -> None:
    maker.make()
    next(maker.folder.glob("complete-*")).unlink()
    assert len(maker.make()) == 2 and maker.created == 1


def test_another_index_of_pytorch_or_another_python_makes_it_anew(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.make()
    torch, _ = maker.make("https://example.org/cuda")
    assert torch[-2:] == ["--index-url", "https://example.org/cuda"] and maker.created == 2, "pip keeps the torch that is there"
    monkeypatch.setattr(maker.module.sys, "version_info", (3, 12) if sys.version_info[:2] != (3, 12) else (3, 11))
    maker.make("https://example.org/cuda")
    assert maker.created == 2, "the mark of this very environment is there"
    next(maker.folder.glob("complete-*")).unlink()
    maker.make("https://example.org/cuda")
    assert maker.created == 3
