"""Who may import whom, and what a host may import: the walls of the house.

The arrows are those of CONTRIBUTING.md. Imports are read from the source, those inside functions too; what stands under
TYPE_CHECKING is left out, because it never runs.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from host_imports import PACKAGE, ROOT, host_files, module_name

HOST_PACKAGES = {"comfy", "comfy_api", "folder_paths", "modules", "launch", "gradio", "server", "nodes"}
TOP = ("__main__", "train", "generate", "render", "walk", "evaluate", "app", "worker.__main__", "worker.run")
# From the first to any of the second never leads an arrow; '' is the whole package.
FORBIDDEN = {
    "texts": ("",), "errors": ("",), "knobs": ("",),
    "nets": ("methods", "data", "train", "generate", "render", "evaluate", "worker", "run", "objectives", "optimizers", "state",
             "settings"),
    "families": ("methods", "train", "generate", "render", "evaluate", "data", "worker", "run", "objectives", "optimizers",
                 "state"),
    "methods": ("train", "generate", "render", "evaluate", "worker", "run", "state"),
    "formats": ("train", "generate", "render", "evaluate", "worker"),
    "data": ("train", "evaluate", "worker", "methods"),
    "objectives": ("train", "generate", "render", "evaluate", "worker", "methods"),
    "optimizers": ("train", "generate", "render", "evaluate", "worker", "methods", "families"),
    "settings": TOP, "registry": TOP, "run": TOP, "views": TOP, "worker.client": TOP, "worker.messages": TOP,
    "": ("__main__", "app"),
}
ALLOWED = {
    "commands.page": ("app",),
    "texts": ("texts",), "errors": ("texts",), "knobs": ("errors", "texts"),
}


@dataclass(frozen=True)
class Import:
    """One import: in which file and line, of what (dotted; of our own, from the package on), and whether it runs at once."""

    file: Path
    line: int
    name: str
    relative: bool
    at_once: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT).as_posix()}:{self.line} imports {self.name}"


def imports(file: Path) -> list[Import]:
    """Every import of a file, less those for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: list[Import] = []
    for node, at_once in statements(tree, True):
        names: list[str] = []
        level = 0
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            level = node.level
            start = home(file, level) if level else ""
            names = [f"{start}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names]
        found += [Import(file, node.lineno, real(name) if level else name, level > 0, at_once) for name in names]
    return found


def statements(node: ast.AST, at_once: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Every statement below a node, and whether importing the file runs it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(other, at_once)
            continue
        inner = at_once and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(child, ast.stmt):
            yield child, at_once
        yield from statements(child, inner)


def home(file: Path, level: int) -> str:
    """The dotted package that a relative import of this level begins at, with a dot behind it."""
    folder = file.parent
    for _ in range(level - 1):
        folder = folder.parent
    return ".".join(folder.relative_to(ROOT).parts) + "."


def real(name: str) -> str:
    """The module that an import loads: 'aprendiz.errors.Problem' is a name in 'aprendiz.errors'."""
    path = ROOT.joinpath(*name.split("."))
    return name if path.is_dir() or path.with_suffix(".py").exists() else name.rpartition(".")[0]


ALL = [one for file in sorted(PACKAGE.rglob("*.py")) for one in imports(file)]


def within(module: str, area: str) -> bool:
    """Whether a module of the package ('aprendiz.nets.lora') lies in an area ('nets'); '' holds all."""
    inner = module.removeprefix("aprendiz").removeprefix(".")
    return not area or inner == area or inner.startswith(area + ".")


def ours(one: Import) -> bool:
    """Whether an import is of our own package."""
    return one.name.partition(".")[0] == "aprendiz"


def test_inside_the_package_imports_are_relative() -> None:
    # The worker's entry is started by its path, and what a person runs with -m may be as well.
    by_path = {PACKAGE / "worker" / "__main__.py"}
    assert [str(one) for one in ALL if ours(one) and not one.relative and one.file not in by_path] == []


def test_nothing_in_the_package_imports_a_host() -> None:
    page = PACKAGE / "app.py"
    breaches = [str(one) for one in ALL if not one.relative and one.name.partition(".")[0] in HOST_PACKAGES]
    assert [breach for breach in breaches if not breach.startswith(page.relative_to(ROOT).as_posix())] == []


def test_nothing_ever_imports_torchvision() -> None:
    assert [str(one) for one in ALL if one.name.partition(".")[0] == "torchvision"] == []


@pytest.mark.parametrize("area", sorted(FORBIDDEN))
def test_no_arrow_leads_the_wrong_way(area: str) -> None:
    breaches = []
    for one in ALL:
        if not ours(one) or not within(module_name(one.file), area):
            continue
        wrong = any(within(one.name, target) for target in FORBIDDEN[area])
        targets = (*ALLOWED.get(area, ()), *ALLOWED.get(module_name(one.file).removeprefix("aprendiz."), ()))
        allowed = any(within(one.name, target) for target in targets) or one.name == "aprendiz"
        itself = area and within(one.name, area)
        if wrong and not allowed and not itself and not entry_of_itself(one):
            breaches.append(str(one))
    assert breaches == []


def entry_of_itself(one: Import) -> bool:
    """Whether a package's parts import each other, which no wall stands between."""
    return module_name(one.file).rpartition(".")[0] == one.name


def test_what_hosts_import_loads_the_standard_library_and_its_like_alone() -> None:
    loaded = {module_name(file) for file in host_files()}
    while more := {one.name for one in ALL if one.at_once and ours(one) and module_name(one.file) in loaded} - loaded:
        loaded |= more
    third_party = [str(one) for one in ALL if one.at_once and not ours(one) and module_name(one.file) in loaded
                   and (one.name.partition(".")[0] not in sys.stdlib_module_names or one.name.partition(".")[0] == "tomllib")]
    assert third_party == []


def test_the_walls_would_be_seen_to_break(tmp_path: Path) -> None:
    file = PACKAGE / "nets" / "lora.py"
    tree = "from ..train import train\ndef f():\n    import torch\nif TYPE_CHECKING:\n    import numpy\n"
    copy = tmp_path / "lora.py"
    copy.write_text(tree, encoding="utf-8")
    found = [(node.lineno, at_once) for node, at_once in statements(ast.parse(tree), True)
             if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert found == [(1, True), (3, False)]
    assert home(file, 2) == "aprendiz."


def pythons() -> list[str]:
    """The Pythons from 3.10 to 3.13 that this machine has, this one first: paths of interpreters."""
    found = {sys.version_info[:2]: sys.executable}
    for minor in range(10, 14):
        for candidate in candidates(minor):
            asked = [*candidate, "-c", "import sys; print(sys.executable)"]
            version = subprocess.run(asked, capture_output=True, text=True, check=False)
            if version.returncode == 0:
                found.setdefault((3, minor), version.stdout.strip())
                break
    return list(found.values())


def candidates(minor: int) -> Iterator[list[str]]:
    """Commands that may start Python 3.`minor`."""
    if os.name == "nt":
        if shutil.which("py"):
            yield ["py", f"-3.{minor}"]
        return
    if on_path := shutil.which(f"python3.{minor}"):
        yield [on_path]
    for pyenv in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")):
        yield [str(pyenv)]


@pytest.mark.parametrize("python", pythons())
def test_what_hosts_import_runs_on_every_python_with_nothing_installed(python: str) -> None:
    done = subprocess.run([python, "-I", "-S", str(ROOT / "tests" / "host_imports.py")], capture_output=True, text=True,
                          encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) == len(host_files())
