"""What every test stands on: no network, one thread, English, a user's folder of its own, and the table of bad inputs.

A test of a bad input notes what it gave and what it was answered (fixture `answers`); the table of all of them is printed
at the end of the run. A test that needs a host fails by name where the host is missing: nothing is skipped.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported anywhere, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["APRENDIZ_LANGUAGE"] = "en"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1,::1"
for _name in ("http_proxy", "https_proxy", "all_proxy"):
    # Nobody listens on the discard port: a process that reaches out fails at once.
    os.environ[_name] = os.environ[_name.upper()] = "http://127.0.0.1:9"

import pytest  # noqa: E402

HOSTS = {"comfyui": ("COMFYUI_DIR", "COMFYUI_PYTHON"), "webui": ("WEBUI_DIR", "WEBUI_PYTHON")}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def pytest_configure(config: pytest.Config) -> None:
    """A user's folder for this process and all that it starts."""
    os.environ["APRENDIZ_HOME"] = tempfile.mkdtemp(prefix="aprendiz-tests-")
    if importlib.metadata.version("torch").startswith("2.1."):  # it warns of itself, once, where it reads with weights_only
        config.addinivalue_line("filterwarnings", "ignore:TypedStorage is deprecated:UserWarning")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the user's folder."""
    shutil.rmtree(os.environ["APRENDIZ_HOME"], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, by name, a test whose host is not there."""
    for lane, names in HOSTS.items():
        missing = [name for name in names if not os.environ.get(name)]
        if item.get_closest_marker(lane) and missing:
            pytest.fail(f"make test-{lane} needs {' and '.join(missing)} to name a real host", pytrace=False)
    if item.get_closest_marker("page") and not any(map(shutil.which, BROWSERS)):
        pytest.fail("this test needs Chromium; on Debian and Ubuntu: apt-get install chromium", pytrace=False)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse sockets that leave this machine."""
    connect = socket.socket.connect

    def at_home(self: socket.socket, address: Any) -> None:
        outside = isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost")
        if outside:
            raise AssertionError(f"a test reached out to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", at_home)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse the first rename of everything, as Windows does while a virus scanner looks into it."""
    seen: set[str] = set()

    def refusing(move: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def tried(source: Any, target: Any) -> None:
            if str(source) not in seen:
                seen.add(str(source))
                raise PermissionError(errno.EACCES, "Access is denied")
            move(source, target)

        return tried

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Note a bad input and the sentence it was answered with, for the table at the end of the run."""

    def note(given: str, answer: object) -> None:
        request.node.user_properties.append(("answer", (given, str(answer))))

    return note


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty user's folder (APRENDIZ_HOME) for this test alone."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("APRENDIZ_HOME", str(folder))
    yield folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of bad inputs and answers, whatever process a test ran in."""
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "answer"
    ]
    if not rows:
        return
    terminalreporter.section("bad inputs and their answers")
    for given, answer in sorted(rows):
        terminalreporter.write_line(given)
        for line in answer.splitlines():
            terminalreporter.write_line(f"    {line}")
