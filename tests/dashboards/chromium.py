"""The system's Chromium, without what it would ask the internet for."""

import shutil

from playwright.sync_api import Browser, Playwright

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def launch(playwright: Playwright, *flags: str) -> Browser:
    assert PATH, "install Chromium (Debian: apt-get install chromium)"
    return playwright.chromium.launch(executable_path=PATH, args=[*FLAGS, *flags])
