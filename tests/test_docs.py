"""The pages and package files say what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import aprendiz
from aprendiz import __main__, registry
from aprendiz.knobs import knobs
from aprendiz.run import default_name
from aprendiz.settings import SECTIONS, Job
from aprendiz.views import docs, flags

ROOT = Path(__file__).resolve().parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONSTRAINTS = ("constraints.txt", "constraints-py310.txt")


def lines(name: str) -> list[str]:
    """The lines of a requirements file, without comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def package(requirement: str) -> str:
    """The normal form of a requirement's name."""
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].replace("_", "-").lower()


def quoted(start: str) -> list[str]:
    """The strings of a list in pyproject.toml that begins with this text."""
    body = PROJECT.split(f"\n{start}", 1)[1].split("\n]" if start.endswith("[\n") else "]\n", 1)[0]
    return re.findall(r'"([^"]+)"', body)


def test_the_settings_page_is_the_schema() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run: make docs"


def test_the_two_lists_of_requirements_are_one() -> None:
    assert [line.replace('"', "'") for line in lines("requirements.txt")] == quoted("dependencies = [\n")


def test_requirements_are_lower_bounds_in_an_order_that_leaves_hosts_alone() -> None:
    asked = lines("requirements.txt")
    names = [package(line) for line in asked]
    assert not {"torch", "numpy", "torchvision"} & set(names)
    assert names.index("transformers") < names.index("diffusers")
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+(,!=[\d.]+\*)*(; python_version < \"3\.11\")?", line) for line in asked)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_pin_everything_the_environment_asks_for(name: str) -> None:
    pinned = {package(line) for line in lines(name)}
    extras = [word for extra in ("optimizers", "board", "video", "app", "dev") for word in quoted(f"{extra} = [")]
    asked = {package(line) for line in lines("requirements.txt") if "python_version" not in line}
    assert {*asked, *map(package, extras), "torch"} - pinned == set()
    assert "torchvision" not in pinned
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines(name)), "exact versions, none of a local build"


def test_the_package_has_one_version() -> None:
    assert f'\nversion = "{aprendiz.__version__}"\n' in PROJECT
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+|Unreleased)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) in (aprendiz.__version__, "Unreleased")


def test_every_kohya_name_in_the_readme_stands_beside_a_setting_there_is() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Coming from kohya", 1)[1].split("\n## ", 1)[0]
    ours = [row.split("|")[2] for row in section.splitlines() if row.startswith("| `")]
    named = {name for cell in ours for name in re.findall(r"`([a-z_0-9]+)`", cell)}
    known = {name for settings in SECTIONS.values() for name in knobs(settings)} | {"method_name"}
    known |= {name for method in registry.methods().values() for name in knobs(method.Settings)}
    assert len(ours) >= 15
    assert named - known == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_links_to_is_there(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_of_the_readme_is_one_that_the_program_takes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\.venv/bin/python -m aprendiz (.+)$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert __main__.read_arguments(shlex.split(command)).command is not None  # exits with 2 where a flag is none
    table = text.split("## Commands", 1)[1].split("\n## ", 1)[0].split("|---|", 1)[1]
    firsts = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
    named = {word for first in firsts for word in re.findall(r"`([a-z]+(?:-[a-z]+)*)", first)}
    assert named == set(__main__.make_parser()[1])


@pytest.mark.parametrize("page", ["README.md", "docs/textual-inversion.md"])  # a ControlNet is named after its base
def test_the_files_that_a_page_draws_with_are_those_that_its_trainings_write(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    written = set()
    for command in re.findall(r"-m aprendiz (train .+)$", text, re.MULTILINE):
        job = Job.read(flags.job_values(__main__.read_arguments(shlex.split(command)), {"method": shlex.split(command)[1]}))
        name = job.output.name or default_name(job)
        written.add(f"output/aprendiz/{name}/{name}.safetensors")
    used = set(re.findall(r"output/aprendiz/(?!quickstart)\S+\.safetensors", text))
    assert used and used <= written


def test_no_file_names_the_place_it_was_made_at() -> None:
    patterns = ("*.md", "*.txt", "*.toml", "*.py", "docs/**/*.md", "aprendiz/**/*.py")
    files = [file for pattern in patterns for file in ROOT.glob(pattern)]
    private = re.compile(r"/(home|root|Users)/[a-z]|/tmp/|file:///")
    assert [file.name for file in files if private.search(file.read_text(encoding="utf-8"))] == []
