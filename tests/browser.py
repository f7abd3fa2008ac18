"""A headless browser: the system's Chromium, driven by selenium; tests are skipped if it is not installed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

WIDTHS = (1280, 390)


@contextmanager
def opened(address: str, width: int) -> Iterator[Any]:
    """Opens a page at the width of a desktop or a phone; afterwards checks that nothing was requested from the net."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"):
        options.add_argument(word)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with mock.patch.dict(os.environ, {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true", "NO_PROXY": "*"}):
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(address)
            yield browser
            sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
            urls = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
            assert urls
            home = address.partition("://")[0] + "://" + address.partition("://")[2].partition("/")[0]
            assert [url for url in urls if not url.startswith((home, "data:", "blob:"))] == []
            assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        finally:
            browser.quit()


def is_too_wide(browser: Any) -> bool:
    """Whether the page needs horizontal scrolling."""
    return bool(browser.execute_script("return document.documentElement.scrollWidth > innerWidth"))
