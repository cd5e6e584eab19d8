"""Import all that host programs import, with nothing installed, and use it a little.

    python -I -S tests/host_imports.py

Runs on every Python from 3.10 on, without pytest. torch, numpy, tomllib and everything else that is not the standard library
cannot be imported here, as if it were not there: a host may hold none of it, or another version.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "aprendiz"
FILES = ("__init__.py", "errors.py", "knobs.py", "settings.py", "registry.py", "run.py", "worker/__init__.py",
         "worker/client.py", "worker/messages.py", "formats/graph.py")
FOLDERS = ("texts", "views", "families", "methods")


def host_files() -> list[Path]:
    """The files of the package that host processes import."""
    files = [PACKAGE / name for name in FILES]
    for name in FOLDERS:
        files += sorted((PACKAGE / name).rglob("*.py"))
    return [file for file in files if file.exists()]


def module_name(file: Path) -> str:
    """The dotted name of a file of the package: 'aprendiz.worker.client'."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class NothingInstalled(importlib.abc.MetaPathFinder):
    """Refuses every import but the standard library's and our own; tomllib too, which 3.10 lacks."""

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        top = name.partition(".")[0]
        if top != "aprendiz" and (top not in sys.stdlib_module_names or top == "tomllib"):
            raise ModuleNotFoundError(f"{name} is not for hosts", name=name)
        return None


def main() -> None:
    """Import every module that hosts import, read a job, and say how many there were."""
    sys.path.append(str(ROOT))
    sys.meta_path.insert(0, NothingInstalled())
    names = [module_name(file) for file in host_files()]
    for name in names:
        importlib.import_module(name)
    settings = importlib.import_module("aprendiz.settings")
    job = settings.Job.read({"data": "pictures", "steps": 10, "learning_rate": "0.005:100, 1e-5", "method": {"rank": 8}})
    assert settings.Job.read(job.values()) == job
    assert job.training.steps == 10 and job.method.rank == 8
    heavy = {"torch", "numpy", "diffusers", "transformers", "peft", "PIL"} & set(sys.modules)
    assert not heavy, heavy
    print(f"{len(names)} modules on Python {sys.version_info.major}.{sys.version_info.minor}")


if __name__ == "__main__":
    main()
