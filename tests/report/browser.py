"""Chromium without a window, driven through its own driver; a test skips where either is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_QUIET = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
_FLAGS = f"{_QUIET} disable-component-update disable-sync hide-scrollbars force-prefers-reduced-motion".split()


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with an empty profile, or a skip that says what is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'qresearch[browser]'")
    from selenium.webdriver.chrome.service import Service

    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (*_FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(paths[1], log_output=os.devnull))
    try:
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int = 900) -> None:
    """The size of the page, which may be less than a window can have."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(driver: Any, scheme: str) -> None:
    """``light`` or ``dark``, as a system says."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
