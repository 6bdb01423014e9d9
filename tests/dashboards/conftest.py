"""A real Chromium for each file of tests that look at the page."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))  # for `plain`
sys.path.insert(0, str(Path(__file__).parent))  # for `chromium` and `recorded`, which scripts use too

from chromium import launch

expect.set_options(timeout=20_000)  # a machine may be busy; what never comes fails all the same


@pytest.fixture(scope="module")  # not the session's: while it is open, no event loop can be run beside playwright's own
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()
