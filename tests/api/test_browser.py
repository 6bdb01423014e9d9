"""What a real browser says of the door: the policy on scripts holds, the token is in no address and in no log."""

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from plain import RUN, Door, keep_checkpoints, serving, train
from playwright.sync_api import Browser, Page, expect, sync_playwright

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.stream import Hub
from trimtab.controller.controller import Controller
from trimtab.dashboards import STATIC

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (e) => violations.push(`${e.effectiveDirective} ${e.blockedURI}`));
"""
ADD = "const add = (tag, given) => document.body.append(Object.assign(document.createElement(tag), given)); "
TEMPTATIONS = {  # what a policy that holds refuses, and the directive that it names
    ADD + "add('script', {textContent: 'window.got = 1'})": "script-src",
    ADD + "add('script', {src: 'http://127.0.0.1:9/a.js'})": "script-src",
    ADD + "add('img', {src: 'http://127.0.0.1:9/a.png'})": "img-src",
    ADD + "add('style', {textContent: 'p {}'})": "style-src",
    ADD + "add('iframe', {src: 'http://127.0.0.1:9/'})": "frame-src",
    "fetch('http://127.0.0.1:9/').catch(() => 0)": "connect-src",
    "document.body.setAttribute('onclick', 'window.got = 1'); document.body.click()": "script-src",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "install Chromium (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def url(door: Door) -> Iterator[str]:
    """The door's app with the page as it is built, over a run that has trained."""
    controller: Controller = door.gateway.controller
    train(controller, range(1, 101))
    keep_checkpoints(controller, 50)
    controller.put_policy(RUN, "plateau", "plateau", {}, "active", "alice", "", None)
    controller.expire()
    hub = Hub(door.gateway)
    with serving(create_app(door.gateway, door.tokens, hub, STATIC, Hosts("127.0.0.1")), hub) as url:
        yield url


def violation(page: Page) -> str:
    """The first one told of. Not by `wait_for_function`, whose own script the policy refuses."""
    for _ in range(100):
        if found := page.evaluate("violations"):
            return str(found[0])
        page.wait_for_timeout(50)
    raise AssertionError("nothing was refused")


def opened(browser: Browser, address: str) -> Page:
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(address)
    expect(page.locator(f'[data-run="{RUN}"] a').first).to_be_visible()
    return page


def test_the_policy_holds_and_the_page_keeps_to_it(door: Door, url: str, browser: Browser) -> None:
    page = opened(browser, f"{url}/#token={door.token}")
    page.locator(f'[data-run="{RUN}"] a').first.click()
    expect(page.locator('[data-chart="loss"]')).to_be_visible()
    tabs = page.get_by_role("tab")
    for number in range(tabs.count()):
        tabs.nth(number).click()
    for path in (f"/compare?runs={RUN}", "/jobs", "/cluster"):
        page.goto(url + path)
        page.wait_for_load_state("networkidle", timeout=3000) if path == "/jobs" else page.wait_for_timeout(300)
        assert page.evaluate("violations") == [], path
    for script, directive in TEMPTATIONS.items():
        page.evaluate(f"{{ violations = []; {script} }}")
        assert violation(page).startswith(directive), script
    assert page.evaluate("window.got") is None
    page.close()


def test_no_frame_shows_the_page(url: str, browser: Browser) -> None:
    page = browser.new_page()
    page.set_content(f'<iframe src="{url}/"></iframe>')
    page.wait_for_timeout(500)
    assert [frame.locator("#app").count() for frame in page.frames] == [0, 0]
    page.close()


def test_the_token_is_in_no_address_and_in_no_log(
    door: Door, url: str, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sent: list[tuple[str, dict[str, str]]] = []
    page = browser.new_page()
    page.on("request", lambda request: sent.append((request.url, request.headers)))
    page.goto(f"{url}/#token={door.token}")
    expect(page.locator(f'[data-run="{RUN}"] a').first).to_be_visible()
    page.locator(f'[data-run="{RUN}"] a').first.click()
    expect(page.locator('[data-chart="loss"]')).to_be_visible()
    page.reload()
    expect(page.locator('[data-chart="loss"]')).to_be_visible()
    door.gateway.controller.feed.publish("alerts", RUN, {"text": "look"})
    session = next(one["value"] for one in page.context.cookies() if one["name"] == "trimtab_session")
    asked = [address.partition("#")[0] for address, _ in sent]
    assert len(asked) > 10
    assert door.token not in page.url + page.evaluate("document.cookie + JSON.stringify({...localStorage})")
    assert page.evaluate("document.cookie") == ""
    door.gateway.error = RuntimeError("a fault, whose traceback is logged")
    page.evaluate("fetch('/api/v1/runs')")
    page.evaluate(f"fetch('/api/v1/runs', {{headers: {{Authorization: 'Bearer {door.token}'}}}})")
    page.evaluate("fetch('/api/v1/session', {method: 'POST', body: '{\"token\": 1}'})")
    page.wait_for_timeout(300)
    assert "a fault, whose traceback is logged" in caplog.text
    for secret in (door.token, session, session.rpartition(".")[2]):
        assert not [address for address in asked if secret in address]
        assert not [headers for _, headers in sent if secret in headers.get("referer", "")]
        assert secret not in caplog.text
    page.close()


def test_a_door_without_the_policy_is_found_out(door: Door, browser: Browser) -> None:
    def violations(guarded: bool) -> Any:
        app, hub = door.again()
        if not guarded:
            app.user_middleware.clear()
        (door.page / "index.html").write_text("<!doctype html><body><p>page</p></body>")
        with serving(app, hub) as url:
            page = browser.new_page()
            page.add_init_script(WATCH)
            page.goto(url)
            page.evaluate(f"{{ {next(iter(TEMPTATIONS))} }}")
            page.wait_for_timeout(300)
            found = page.evaluate("[violations.length, window.got ?? null]")
            page.close()
            return found

    door.page.mkdir()
    assert violations(guarded=True) == [1, None]
    assert violations(guarded=False) == [0, 1]
