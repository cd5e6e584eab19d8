"""The browser that pages are measured in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def browser(*flags: str) -> Iterator[Any]:
    """Chromium, from playwright, started with these flags more."""
    from playwright.sync_api import sync_playwright
    path = next(found for name in BROWSERS if (found := shutil.which(name)))
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *flags])
        yield opened
        opened.close()
