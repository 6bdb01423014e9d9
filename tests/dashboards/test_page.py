"""The page in real Chromium over a real run: live charts, pins and policies that reach the workers, a lasting view."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from prometheus_client.parser import text_string_to_metric_families as families
from torch import nn
from torch.nn.functional import cross_entropy

from grafana import asked, missing
from trimtab.api import server
from trimtab.controller.actor import call
from trimtab.controller.observation import Command
from trimtab.workers import Session, launch

OWN = Path(__file__).with_name("own.py")


def make_train() -> Callable[[Session], None]:
    def train(session: Session) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4000, 10, generator=generator)
        y = (x.sum(1) + torch.randn(4000, generator=generator) > 0).long()
        model = nn.Linear(10, 2)
        wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=session.hp.lr, momentum=0.9))
        for inputs, labels in session.batches((x, y)):
            session.step(cross_entropy(wrapped(inputs), labels))
            time.sleep(0.02)
            if session.every(steps=10):
                with torch.no_grad():
                    session.log(val_loss=cross_entropy(wrapped(x), y))

    return train


@pytest.fixture(scope="module")
def run(controller: Path) -> Iterator[str]:  # noqa: ARG001
    """A run that goes on until the module's tests are done."""
    started = threading.Event()
    ids: list[str] = []

    def on_start(run_id: str) -> None:
        ids.append(run_id)
        started.set()

    options: dict[str, Any] = {
        "workers": 2,
        "hp": {"batch_size": 32, "lr": 0.05},
        "policies": ["noise_scale", "warmup", "plateau", f"{OWN}:Speaks", f"{OWN}:Fails"],
        "steps": 1_000_000,
        "name": "shown",
    }
    thread = threading.Thread(target=lambda: launch(make_train(), on_start=on_start, **options))
    thread.start()
    assert started.wait(60)
    until(lambda: call("run", ids[0]).progress.steps > 40, 90)
    yield ids[0]
    call("command", ids[0], Command("stop", "the tests are done"), "tester")
    thread.join(60)


@pytest.fixture(scope="module")
def page(controller: Path, run: str, browser: Browser) -> Iterator[Page]:
    """The run's page, signed in. No test may leave an error in the console."""
    access = server.start(controller, port=0)
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(access.page)
    page.locator(f'[data-run="{run}"] a').first.click()
    expect(page.locator('[data-chart="loss"]')).to_be_visible()
    yield page
    page.close()
    assert [text for text in complaints if "status of 4" not in text] == []  # refused input answers 4xx on purpose


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def step_shown(page: Page) -> int:
    figure = page.locator("dl.figures div", has=page.get_by_text("step", exact=True)).locator("dd")
    return int(figure.inner_text().replace(",", ""))


def test_the_token_leaves_the_address(page: Page) -> None:
    assert "token" not in page.url


def test_the_run_is_live(page: Page, run: str) -> None:
    first = step_shown(page)
    until(lambda: step_shown(page) > first + 20)
    expect(page.get_by_test_id("state-chip").first).to_have_text("running")
    for chart in ("loss", "hp/lr", "hp/batch_size"):
        assert page.locator(f'[data-chart="{chart}"]').count() == 1, chart
    assert call("run", run).state == "running"


def test_a_value_pinned_on_the_page_reaches_all_workers(page: Page, run: str) -> None:
    page.get_by_test_id("tab-values").click()
    card = page.locator('[data-testid="value"][data-param="lr"]')
    card.get_by_test_id("pin-button").click()
    card.get_by_test_id("pin-value").fill("7")
    card.get_by_test_id("pin-save").click()
    expect(card.get_by_test_id("pin-error")).to_contain_text("must lie in")
    card.get_by_test_id("pin-value").fill("0.02")
    card.get_by_test_id("pin-reason").fill("seen on the page")
    card.get_by_test_id("pin-save").click()
    expect(card.get_by_test_id("version-trail")).to_have_attribute("data-status", "applied", timeout=15_000)
    expect(card.get_by_test_id("value-now")).to_have_text("0.02")
    record = next(r for r in reversed(call("changes", run)) if r.changes[0].param == "lr")
    assert (record.changes[0].to, record.changes[0].reason, record.status) == (0.02, "seen on the page", "applied")
    assert len(set(record.applied.values())) == 1
    assert len(record.applied) == 2


def test_a_policy_edited_on_the_page_is_applied(page: Page, run: str) -> None:
    page.get_by_test_id("tab-policies").click()
    card = page.locator('[data-testid="policy"][data-policy="plateau"]')
    card.get_by_test_id("policy-edit").click()
    card.locator('[data-field="patience"]').fill("-1")
    card.get_by_test_id("policy-save").click()
    expect(card.locator('[data-error="patience"]')).to_be_visible()
    card.locator('[data-field="patience"]').fill("77")
    card.get_by_test_id("policy-save").click()
    until(lambda: call("policy", run, "plateau").params["patience"] == 77)
    assert call("policy", run, "plateau").revision == 2


def test_zoom_and_view_outlast_updates_and_a_refresh(page: Page) -> None:
    page.get_by_test_id("axis-samples").click()
    page.wait_for_url("**x=samples**")
    plot = page.locator('[data-chart="loss"] .u-over')

    def dragged() -> bool:
        """As over one that is just being built anew for its axis a drag may be in vain."""
        box = plot.bounding_box()
        if box is None:
            return False
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.3, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=5)
        page.mouse.up()
        page.wait_for_timeout(500)  # the address follows at its own pace
        return "zoom=" in page.url

    page.locator('[data-chart="loss"]').scroll_into_view_if_needed()
    until(dragged)
    zoomed = page.url
    first = step_shown(page)
    until(lambda: step_shown(page) > first + 10)
    assert page.url == zoomed
    page.reload()
    expect(page.locator('[data-chart="loss"]')).to_be_visible()
    until(lambda: step_shown(page) > first + 20)
    assert page.url == zoomed
    assert "x=samples" in zoomed
    page.get_by_test_id("zoom-reset").click()
    page.get_by_test_id("axis-step").click()
    page.wait_for_url(lambda url: "samples" not in url and "zoom" not in url)


def test_a_narrow_window_needs_no_sideways_scrolling(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    page.set_viewport_size({"width": 1440, "height": 900})
    assert not wide


def test_what_changed_is_listed_with_its_step(page: Page) -> None:
    page.get_by_test_id("tab-changes").click()
    row = page.locator('[data-version][data-status="applied"]').first
    expect(row).to_be_visible()
    expect(row).to_contain_text("applied")


def test_a_policy_put_in_shadow_on_the_page_is_listed_and_drawn(page: Page, run: str) -> None:
    page.get_by_test_id("tab-policies").click()
    card = page.locator('[data-testid="policy"][data-policy="plateau"]')
    card.get_by_test_id("policy-mode-shadow").click()
    expect(card.get_by_test_id("policy-mode")).to_have_attribute("data-mode", "shadow")
    expect(card.get_by_test_id("policy-would-be")).to_contain_text("lr would be")
    assert call("policy", run, "plateau").mode == "shadow"
    legend = page.locator('[data-chart="hp/lr"] .legend li.shape-shadow')
    expect(legend).to_contain_text("plateau (shadow)")
    expect(legend.locator("b")).not_to_have_text("–")  # its line has values
    card.get_by_test_id("policy-mode-active").click()
    expect(legend.locator("b")).to_have_text("–")  # and ends


def test_a_dry_run_on_the_page_shows_decisions_and_changes_nothing(page: Page, run: str) -> None:
    page.get_by_test_id("tab-policies").click()
    card = page.locator('[data-testid="policy"][data-policy="warmup"]')
    card.get_by_test_id("policy-edit").click()
    card.locator('[data-field="start"]').fill("0.5")
    card.locator('[data-field="steps"]').fill("100")
    before = call("policy", run, "warmup"), len([r for r in call("changes", run) if r.kind == "policy"])
    card.get_by_test_id("policy-try").click()
    dialog = page.get_by_test_id("what-if")
    expect(dialog.get_by_test_id("what-if-row").first).to_be_visible()
    assert dialog.locator('[data-testid="what-if-row"] td:nth-child(2) b', has_text="lr").count() >= 1
    expect(dialog.get_by_test_id("what-if-caveat")).to_contain_text("those of the real run")
    expect(dialog.locator('[data-testid="overlay"][data-param="lr"] canvas')).to_be_visible()
    dialog.get_by_test_id("what-if-close").click()
    after = call("policy", run, "warmup"), len([r for r in call("changes", run) if r.kind == "policy"])
    assert (before[0].params, before[0].revision, before[1]) == (after[0].params, after[0].revision, after[1])
    card.get_by_role("button", name="Cancel").click()


def test_a_policy_of_the_job_that_fails_is_shown_as_disabled(page: Page, run: str) -> None:
    page.get_by_test_id("tab-policies").click()
    card = page.locator('[data-testid="policy"][data-policy="fails"]')
    expect(card.get_by_test_id("policy-disabled")).to_contain_text("no idea what to do")
    expect(card.get_by_test_id("policy-faults")).to_have_text("3 faults")
    expect(card.get_by_test_id("policy-mode")).to_have_attribute("data-mode", "off")
    card.get_by_test_id("policy-edit").click()  # its form is made as for a policy of Trimtab's
    expect(card.get_by_test_id("policy-form")).to_contain_text("Raises whenever it is asked.")
    expect(card.get_by_test_id("policy-try")).to_be_disabled()
    card.get_by_test_id("form-mode-shadow").click()
    card.get_by_test_id("policy-save").click()
    expect(card).to_have_attribute("data-revision", "2")
    until(lambda: call("policy", run, "fails").disabled is not None)  # asked anew, it fails again
    expect(card.get_by_test_id("policy-disabled")).to_contain_text("no idea what to do")


def test_a_notice_is_listed_with_the_notices(page: Page) -> None:
    page.get_by_test_id("tab-changes").click()
    listed = page.get_by_test_id("changes")
    expect(listed).not_to_contain_text("the first loss is here")
    page.get_by_test_id("group-notices").click()
    page.wait_for_url("**list=changes,notices**")
    row = listed.locator('[data-kind="notice"]')
    expect(row).to_contain_text("the first loss is here")
    expect(row.locator(".by")).to_have_text("speaks")
    page.get_by_test_id("group-notices").click()
    expect(row).to_have_count(0)


def test_the_decay_can_be_asked_for_where_a_schedule_waits_for_it(page: Page, run: str) -> None:
    expect(page.get_by_test_id("command-decay")).to_have_count(0)
    page.get_by_test_id("tab-policies").click()
    page.get_by_test_id("policy-add").click()
    new = page.get_by_test_id("policy-new")
    new.get_by_test_id("policy-kind").select_option("schedule")
    new.locator('[data-field="param"]').fill("momentum")
    new.locator('[data-field="shape"]').select_option("wsd")
    new.get_by_test_id("policy-save").click()
    page.get_by_test_id("command-decay").click()
    page.get_by_test_id("decay-reason").fill("seen on the page")
    page.get_by_test_id("decay-confirm").click()
    trail = page.locator(".commands").get_by_test_id("version-trail")
    expect(trail).to_have_attribute("data-status", "applied", timeout=15_000)
    record = next(r for r in reversed(call("changes", run)) if r.changes[0].param == "decay")
    assert (record.changes[0].reason, record.status) == ("seen on the page", "applied")


def test_a_roll_back_asked_for_on_the_page_is_applied(page: Page, run: str) -> None:
    before = call("run", run).checkpoints
    page.get_by_test_id("command-checkpoint").click()
    until(lambda: call("run", run).checkpoints != before)
    expect(page.get_by_test_id("command-rollback")).to_be_enabled(timeout=15_000)
    newest = call("run", run).checkpoints[-1].step
    until(lambda: call("run", run).progress.steps > newest + 5)
    page.get_by_test_id("command-rollback").click()
    dialog = page.get_by_test_id("rollback-dialog")
    step = dialog.get_by_test_id("rollback-step").first
    expect(step).to_be_checked()
    kept = int(step.get_attribute("value") or 0)  # the newest that the page had heard of
    dialog.get_by_test_id("rollback-skip").check()
    dialog.get_by_test_id("rollback-reason").fill("seen on the page")
    dialog.get_by_test_id("rollback-confirm").click()
    trail = page.locator(".commands").get_by_test_id("version-trail")
    expect(trail).to_have_attribute("data-status", "applied", timeout=15_000)
    page.get_by_test_id("tab-changes").click()
    row = page.locator(".change.rollback").first
    expect(row).to_contain_text("rolled back from step")
    expect(row).to_contain_text("seen on the page")
    record, back = next((r, c) for r in reversed(call("changes", run)) for c in r.changes if c.param == "rollback")
    assert (back.to, record.status) == (kept, "applied")
    assert set(record.applied.values()) == {kept + 1}


def test_a_run_scaled_and_switched_on_the_page_shows_both_marks(page: Page, run: str) -> None:
    ids: list[str] = []
    options: dict[str, Any] = {"workers": 1, "max_workers": 2, "hp": {"batch_size": 32, "lr": 0.05}, "steps": 1_000_000}
    thread = threading.Thread(target=lambda: launch(make_train(), name="grown", on_start=ids.append, **options))
    thread.start()
    try:
        until(lambda: bool(ids) and call("run", ids[0]).progress.steps > 5, 60)
        page.goto(f"{page.url.split('/runs/')[0]}/runs/{ids[0]}?tab=values")
        figure = page.locator('[data-figure="workers"] dd')
        expect(figure).to_have_text("1")
        workers, sync = (page.locator(f'[data-testid="value"][data-param="{name}"]') for name in ("workers", "sync"))
        workers.get_by_test_id("pin-button").click()
        workers.get_by_test_id("pin-value").fill("3")
        workers.get_by_test_id("pin-save").click()
        expect(workers.get_by_test_id("pin-error")).to_contain_text("workers must lie in [1, 2]")
        workers.get_by_test_id("pin-value").fill("2")
        workers.get_by_test_id("pin-save").click()
        expect(figure).to_have_text("2 formation\N{NO-BREAK SPACE}2", timeout=60_000)
        expect(workers.get_by_test_id("value-now")).to_contain_text("2")
        sync.get_by_test_id("pin-button").click()
        sync.get_by_test_id("pin-value").select_option("sma")
        sync.get_by_test_id("pin-save").click()
        expect(sync.get_by_test_id("version-trail")).to_have_attribute("data-status", "applied", timeout=15_000)
        expect(sync.get_by_test_id("value-now")).to_have_text("sma")
        chart = page.locator('[data-chart="loss"]')
        expect(chart).to_have_attribute("data-events", "resize sync", timeout=15_000)
        expect(page.locator('[data-figure="sync"] dd')).to_have_text("sma")
        page.get_by_test_id("tab-ranks").click()
        expect(page.get_by_test_id("rank")).to_have_count(2)
        expect(page.locator('[data-testid="recovery"][data-cause="resize"]')).to_have_count(1)
        page.get_by_test_id("tab-changes").click()
        expect(page.locator(".change.resize")).to_contain_text("1 → 2 workers; training stood still for")
        view = call("run", ids[0])
        assert (view.world_size, view.sync, [one.cause for one in view.recoveries]) == (2, "sma", ["resize"])
    finally:
        call("command", ids[0], Command("stop", "the test is done"), "tester")
        thread.join(60)
        page.goto(page.url.replace(ids[0], run))


def test_grafana_finds_all_that_its_dashboards_ask_for(controller: Path, run: str) -> None:
    access = server.start(controller, port=0)

    def scrape() -> str:
        answer = httpx.get(f"{access.url}/metrics", headers={"Authorization": f"Bearer {access.token}"}, timeout=30)
        return answer.raise_for_status().text

    until(lambda: missing(asked(), scrape()) == set())
    text = scrape()
    told = {(one.name, one.labels.get("run")): one.value for f in families(text) for one in f.samples}
    assert told["trimtab_decision_to_applied_seconds_count", None] > 0
    assert 0 < told["trimtab_run_overhead_ratio", run] < 0.5
    assert told["trimtab_run_world_size", run] == 2
