"""install.py with real pip, small packages and no index: the host's packages stay, a broken-off install is taken up again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARK = "complete-{}.{}".format(*sys.version_info[:2])
Answers = Callable[[str, object], None]


def loaded() -> ModuleType:
    """install.py, as a module."""
    spec = importlib.util.spec_from_file_location("aprendiz_install", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INSTALL = loaded()
NEWEST = INSTALL.SETS[max(INSTALL.SETS)]
MINE = INSTALL.wanted(INSTALL.torch_version(), [])  # the set for the PyTorch that these tests run on


def wheel(folder: Path, name: str, version: str) -> None:
    """A package of one line."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    files = {f"{stem}/__init__.py": f"__version__ = '{version}'\n",
             f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    record = "".join(f"{path},sha256={hashlib.sha256(text.encode()).hexdigest()},{len(text)}\n" for path, text in files.items())
    with zipfile.ZipFile(folder / f"{stem}-{version}-py3-none-any.whl", "w") as made:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            made.writestr(path, text)


@pytest.fixture
def extension(tmp_path: Path) -> Path:
    """The extension in a host's folder, beside the host's `launch` and a folder that pip takes packages from."""
    place = tmp_path / "extensions" / "aprendiz"
    place.mkdir(parents=True)
    shutil.copyfile(ROOT / "install.py", place / "install.py")
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "launch.py").write_text("", encoding="utf-8")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for package in MINE:
        wheel(wheels, *package.split("=="))
    return place


def run(extension: Path, host: bool = True, *arguments: str, wheels: str = "wheels") -> subprocess.CompletedProcess[str]:
    """Run it as the host does: a process of its own, the host's folder on its path."""
    top = extension.parent.parent
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(top / wheels), "PIP_CONFIG_FILE": os.devnull,
                   "PYTHONPATH": str(top / "host") if host else ""}
    command = [sys.executable, str(extension / "install.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=top, check=False)


def installed(extension: Path) -> list[Path]:
    return sorted((extension / "overlay").iterdir()) if (extension / "overlay").is_dir() else []


def test_without_the_webuis_launch_nothing_is_done(extension: Path) -> None:
    done = run(extension, host=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert installed(extension) == []


def test_the_packages_go_into_a_folder_of_their_own_once_and_the_host_keeps_its_own(extension: Path) -> None:
    frozen = [sys.executable, "-m", "pip", "freeze", "--disable-pip-version-check"]
    before = subprocess.run(frozen, capture_output=True, check=True).stdout
    done = run(extension)
    assert done.returncode == 0, done.stderr
    assert "the host's stay as they are" in done.stdout
    folder, = installed(extension)
    told = (folder / MARK).read_text(encoding="utf-8").splitlines()
    assert told == ["# torch {}.{}".format(*INSTALL.fitting(INSTALL.torch_version())), *MINE]
    asked = "import sys; sys.path.insert(0, sys.argv[1]); import diffusers; print(diffusers.__version__)"
    seen = subprocess.run([sys.executable, "-c", asked, str(folder)], capture_output=True, text=True, check=True).stdout.strip()
    assert f"diffusers=={seen}" in MINE
    assert subprocess.run(frozen, capture_output=True, check=True).stdout == before
    again = run(extension, wheels="nowhere")  # needs nothing any more
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_broken_off_install_counts_for_nothing_and_is_begun_anew(extension: Path) -> None:
    assert run(extension).returncode == 0
    folder, = installed(extension)
    (folder / MARK).unlink()  # as if it had ended before its last line
    (folder / "half").write_text("", encoding="utf-8")
    assert run(extension).returncode == 0
    again, = installed(extension)
    assert again == folder and (folder / MARK).is_file() and not (folder / "half").exists()


def test_what_a_killed_install_left_goes_at_a_later_start(extension: Path) -> None:
    assert run(extension).returncode == 0
    folder, = installed(extension)
    left = extension / "overlay" / f".{folder.name}.1.tmp"
    left.mkdir()
    assert run(extension).returncode == 0 and left.is_dir()  # it may still be at it
    long_ago = left.stat().st_mtime - 7200
    os.utime(left, (long_ago, long_ago))
    assert run(extension, wheels="nowhere").returncode == 0
    assert installed(extension) == [folder]


def test_an_install_that_is_interrupted_says_one_sentence_and_leaves_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(folder: Path, packages: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(INSTALL, "OVERLAY", tmp_path / "overlay")
    monkeypatch.setattr(INSTALL, "pip", interrupted)
    assert INSTALL.main(["--now"]) == 130
    assert "begins it anew" in capsys.readouterr().err
    assert list((tmp_path / "overlay").iterdir()) == []


def test_an_install_that_fails_says_one_sentence_with_the_remedy_and_leaves_nothing(extension: Path, answers: Answers) -> None:
    done = run(extension, wheels="nowhere")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "--now" in done.stderr and "Traceback" not in done.stderr
    assert installed(extension) == []
    shown = done.stderr.strip().replace(str(extension.parent.parent), "...").replace(sys.executable, "python")
    answers("install.py without a package index", shown)
    assert run(extension, False, "--now").returncode == 0  # by hand, as the sentence says


def test_an_update_leaves_the_set_that_a_worker_may_hold(extension: Path) -> None:
    assert run(extension).returncode == 0
    before, = installed(extension)
    program = extension / "install.py"
    older = next(package for package in MINE if package.startswith("zipp=="))
    program.write_text(program.read_text(encoding="utf-8").replace(older, "zipp==0.0.1"), encoding="utf-8")
    wheel(extension.parent.parent / "wheels", "zipp", "0.0.1")
    assert run(extension).returncode == 0
    assert before in installed(extension) and len(installed(extension)) == 2


def aged(folder: Path, days: float) -> None:
    """A set as it is so many days after it was installed or used."""
    for path in (folder / MARK, folder):
        stamp = time.time() - days * 24 * 3600
        os.utime(path, (stamp, stamp))


def test_a_set_that_is_used_stays_and_one_that_is_not_goes_once_the_new_one_is_there(extension: Path) -> None:
    assert run(extension).returncode == 0
    before, = installed(extension)
    aged(before, 30)
    assert run(extension, wheels="nowhere").returncode == 0  # a start of the host
    assert time.time() - (before / MARK).stat().st_mtime < 3600
    program = extension / "install.py"
    older = next(package for package in MINE if package.startswith("zipp=="))
    program.write_text(program.read_text(encoding="utf-8").replace(older, "zipp==0.0.1"), encoding="utf-8")
    aged(before, 30)
    assert run(extension).returncode == 1  # an update without a connection
    assert installed(extension) == [before]
    wheel(extension.parent.parent / "wheels", "zipp", "0.0.1")
    os.utime(before / MARK)  # a worker began with it
    assert run(extension).returncode == 0
    assert before in installed(extension) and len(installed(extension)) == 2
    aged(before, 30)
    assert run(extension).returncode == 0
    assert before not in installed(extension) and len(installed(extension)) == 1


def test_the_set_follows_the_hosts_torch_and_one_too_old_is_refused(answers: Answers) -> None:
    assert INSTALL.wanted((2, 1), []) == list(INSTALL.SETS[(2, 1)]) == INSTALL.wanted((2, 2), [])
    assert INSTALL.wanted((2, 3), ["psutil"]) == [*INSTALL.SETS[(2, 3)], "psutil"]
    assert INSTALL.wanted((2, 13), []) == list(NEWEST)
    with pytest.raises(INSTALL.Failed) as raised:
        INSTALL.wanted((2, 0), [])
    answers("install.py in a host with torch 2.0", raised.value)


def test_no_set_moves_what_hosts_pin_beside_the_five_that_the_worker_needs() -> None:
    for packages in INSTALL.SETS.values():
        names = {package.partition("==")[0].lower() for package in packages}
        assert all("==" in package for package in packages)
        assert not names & {"torch", "torchvision", "numpy", "pillow", "gradio", "pydantic", "fastapi", "xformers"}
    lines = (ROOT / "constraints-py310.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower().replace("-", "_"): line for line in lines}
    tested = {pins[package.partition("==")[0]] for package in INSTALL.SETS[(2, 1)] if package.partition("==")[0] in pins}
    assert tested <= set(INSTALL.SETS[(2, 1)]), "the set for torch 2.1 is the one that the tests run on"


def overlay(tmp_path: Path, *sets: tuple[str, str, int, str]) -> Callable[..., list[str]]:
    """Sets (folder, mark, its age in seconds, what it says), and what asks a worker for the first two folders on its path."""
    package = tmp_path / "aprendiz"
    (package / "worker").mkdir(parents=True)
    for name in ("__init__.py", "worker/__init__.py"):
        (package / name).write_text("", encoding="utf-8")
    text = (ROOT / "aprendiz" / "worker" / "__main__.py").read_text(encoding="utf-8")
    head, _, _ = text.partition("\nimport io\n")
    told = "\nimport json\nprint(json.dumps(sys.path[:2]))\n"
    (package / "worker" / "__main__.py").write_text(head + told, encoding="utf-8")
    for name, mark, age, said in sets:
        folder = tmp_path / "overlay" / name
        folder.mkdir(parents=True)
        (folder / mark).write_text(said, encoding="utf-8")
        stamp = (folder / mark).stat().st_mtime - age
        os.utime(folder / mark, (stamp, stamp))

    def first(**environment: str) -> list[str]:
        command = [sys.executable, "-I", str(package / "worker" / "__main__.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
        return [Path(path).name for path in json.loads(done.stdout)]

    return first


def test_a_worker_sees_the_newest_finished_set_of_its_own_python_first(tmp_path: Path) -> None:
    first = overlay(tmp_path, ("old", MARK, 100, ""), ("new", MARK, 10, ""), ("unfinished", "half", 0, ""),
                    ("foreign", "complete-3.1", 0, ""))
    assert first() == ["new", tmp_path.name]
    assert first(APRENDIZ_OVERLAY="")[0] == tmp_path.name
    assert first(APRENDIZ_OVERLAY=str(tmp_path / "overlay" / "old"))[0] == "old"


def test_a_worker_takes_the_set_that_fits_its_torch_and_marks_that_it_uses_it(tmp_path: Path) -> None:
    first = overlay(tmp_path, ("plain", MARK, 0, "zipp==1\n"), ("later", MARK, 10, "# torch 99.0\n"),
                    ("lower", MARK, 20, "# torch 2.0\n"), ("mine", MARK, 3000, "# torch 2.1\nzipp==1\n"),
                    ("mine before", MARK, 4000, "# torch 2.1\n"))
    assert first()[0] == "mine"
    assert time.time() - (tmp_path / "overlay" / "mine" / MARK).stat().st_mtime < 60
    assert time.time() - (tmp_path / "overlay" / "mine before" / MARK).stat().st_mtime > 3000
