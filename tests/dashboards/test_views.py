"""Every view of the page over recorded runs, in real Chromium: what it shows, and that all people can use it."""

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from recorded import FIRST, JOB, SECOND, UNNAMED, Served, begin, keep_jobs, policies, served

from trimtab.controller.overrides import VARIABLE, Overrides
from trimtab.controller.state import RunState

THIRD = "vision-9d01"
COMPARED = f"/compare?runs={FIRST},{SECOND},{THIRD}"
VIEWS = {
    "runs": "/",
    "values": f"/runs/{FIRST}",
    "policies": f"/runs/{FIRST}?tab=policies",
    "changes": f"/runs/{FIRST}?tab=changes",
    "ranks": f"/runs/{FIRST}?tab=ranks",
    "compare": COMPARED,
    "nothing to compare": "/compare",
    "jobs": "/jobs",
    "cluster": "/cluster",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("shown"), more=60) as shown:
        yield shown


@pytest.fixture(scope="module")
def context(browser: Browser, shown: Served) -> Iterator[BrowserContext]:
    """Signed in."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.goto(shown.door)
    expect(page.get_by_test_id("runs")).to_be_visible()
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, shown: Served) -> Iterator[Page]:
    """A tab that breaks no rule of the Content-Security-Policy and asks nobody else."""
    page = context.new_page()
    complaints: list[str] = []
    strangers: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: strangers.append(request.url) if not request.url.startswith(ours) else None)
    ours = (shown.url, "blob:")
    yield page
    page.close()
    assert [text for text in complaints if "status of 4" not in text] == []
    assert strangers == []


def open_view(page: Page, shown: Served, path: str) -> None:
    page.goto(shown.url + path)
    expect(page.locator("main h1, main h2").first).to_be_visible()
    expect(page.locator("main[aria-busy]")).to_have_count(0)


def steps_shown(page: Page) -> int:
    return int(page.locator('[data-figure="step"] dd').inner_text().replace(",", ""))


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def violations(page: Page) -> list[str]:
    """What axe-core finds, with where."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['target']} {node['html'][:120]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_stands_in_the_way_of_anybody(page: Page, shown: Served, view: str, colors: Any) -> None:
    page.emulate_media(color_scheme=colors)
    open_view(page, shown, VIEWS[view])
    assert violations(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_window_needs_no_sideways_scrolling(page: Page, shown: Served, view: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_view(page, shown, VIEWS[view])
    if view == "cluster":
        expect(page.get_by_test_id("live-run").first).to_be_visible()
    if view == "compare":
        expect(page.get_by_test_id("compare-values")).to_be_visible()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    beyond = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)"
    assert page.locator(".scroll").evaluate_all(beyond) == []
    if view in ("runs", "values", "policies"):
        assert violations(page) == []


@pytest.mark.parametrize("view", ["values", "compare"])
def test_charts_shrink_with_their_window(page: Page, shown: Served, view: str) -> None:
    open_view(page, shown, VIEWS[view])
    expect(page.get_by_test_id("chart").first.locator("canvas")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    until(lambda: page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_dialogs_and_forms_are_for_everybody_too(page: Page, shown: Served) -> None:
    open_view(page, shown, VIEWS["policies"])
    page.locator('[data-policy="plateau"]').get_by_test_id("policy-edit").click()
    page.get_by_test_id("policy-try").click()
    expect(page.get_by_test_id("what-if-row").first).to_be_visible(timeout=15_000)
    assert violations(page) == []
    page.get_by_test_id("what-if-close").click()
    page.get_by_test_id("tab-values").click()
    page.locator('[data-param="lr"]').get_by_test_id("pin-button").click()
    expect(page.get_by_test_id("pin-form")).to_be_visible()
    page.get_by_test_id("command-rollback").click()
    expect(page.get_by_test_id("rollback-dialog")).to_be_visible()
    assert violations(page) == []


def test_runs_are_filtered_sorted_and_picked_by_keys_alone(page: Page, shown: Served) -> None:
    open_view(page, shown, "/")
    page.keyboard.press("?")
    expect(page.get_by_test_id("keys")).to_contain_text("compare what is picked")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("bytes owner:alice")
    expect(page.get_by_test_id("run-row")).to_have_count(2)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("c")
    page.wait_for_url(f"**/compare?runs={FIRST},{SECOND}")
    page.go_back()
    page.wait_for_url("**q=bytes**")
    page.get_by_test_id("runs-filter").fill("")
    page.get_by_test_id("sort-loss").click()
    assert "sort=loss" in page.evaluate("new Promise(done => setTimeout(() => done(location.search), 500))")
    losses = [float(text) for text in page.locator(".row .c-loss b").all_inner_texts()]
    assert losses == sorted(losses)


@pytest.mark.parametrize("width", [1440, 390])
def test_what_recoveries_cost_stands_in_its_column_and_is_not_cut(page: Page, shown: Served, width: int) -> None:
    back = {"cause": "rollback", "step": 123_399, "world_size": 2, "lost": 0, "pause_s": None, "redone": 1493}

    def with_a_roll_back(route: Route) -> None:
        run = route.fetch().json()
        moment = {"formation": 4, "time": run["recoveries"][-1]["time"]}
        route.fulfill(json=run | {"recoveries": [*run["recoveries"], back | moment]})

    page.route(f"**/api/v1/runs/{FIRST}", with_a_roll_back)
    page.set_viewport_size({"width": width, "height": 900})
    open_view(page, shown, VIEWS["ranks"])
    table = page.get_by_test_id("recoveries")
    row = table.locator('[data-cause="rollback"]')
    expect(row.locator("td")).to_have_text(["123,3991,493 steps again", "2", "–"])
    expect(page.locator(".ranks h3 small").last).to_contain_text("stood still for 730 ms in 2 of 3")
    assert table.evaluate("one => one.scrollWidth <= one.clientWidth")
    assert table.locator("table").evaluate("one => one.scrollWidth <= one.parentElement.clientWidth")


def test_only_the_rows_in_the_window_are_in_the_document(page: Page, shown: Served) -> None:
    open_view(page, shown, "/")
    expect(page.get_by_test_id("runs")).to_have_attribute("aria-rowcount", "64")
    assert page.get_by_test_id("run-row").count() < 45
    expect(page.locator(f'[data-run="{FIRST}"] .c-policies .tag').last).to_have_text("+1")
    page.keyboard.press("End")
    expect(page.locator('[data-run="digits-0000"]')).to_be_visible()


def test_a_value_shows_what_it_is_made_of(page: Page, shown: Served) -> None:
    open_view(page, shown, VIEWS["values"])
    parts = page.locator('[data-param="lr"]').get_by_test_id("provenance")
    expect(parts.locator("dt")).to_have_text(["base", "× batch", "× warmup", "="])
    base, batch, warmup, value = (float(text) for text in parts.locator("dd b").all_inner_texts())
    assert base * batch * warmup == pytest.approx(value, rel=0.01)
    expect(page.locator('[data-param="weight_decay"]')).to_contain_text("by alice")


def test_a_pin_is_followed_on_its_card_and_says_where_it_came_to_another_value(page: Page, shown: Served) -> None:
    open_view(page, shown, VIEWS["values"])
    card = page.locator('[data-testid="value"][data-param="batch_size"]')
    card.get_by_test_id("pin-button").click()
    card.get_by_test_id("pin-value").fill("33")
    card.get_by_test_id("pin-save").click()
    expect(card.get_by_test_id("version-trail")).to_have_attribute("data-status", "applied")
    expect(card.get_by_test_id("pin-form")).to_have_count(0)
    expect(card.get_by_test_id("pin-button")).to_be_focused()
    expect(card.locator(".pin-note")).to_have_text("pinned at 33 by admin; 33 cannot be shared out evenly")
    expect(card.get_by_test_id("value-now")).to_contain_text("32")
    card.get_by_test_id("pin-button").click()
    expect(card.get_by_test_id("version-trail")).to_have_count(0)
    expect(card.get_by_test_id("pin-value")).to_have_value("33")
    card.get_by_test_id("unpin").click()
    expect(card.get_by_test_id("pin-form")).to_have_count(0)
    expect(card.locator(".pin-note")).to_have_count(0)
    card.get_by_test_id("pin-button").click()
    expect(card.get_by_test_id("pin-value")).to_have_value("")
    expect(page.locator('[data-param="weight_decay"] .pin-note')).not_to_contain_text("cannot be shared out")


def test_why_a_run_is_in_its_state_is_no_news_while_it_runs(page: Page, shown: Served) -> None:
    controller, reason = shown.gateway.controller, "rolled back from step 960 to step 500"
    open_view(page, shown, VIEWS["values"])
    controller.set_state(FIRST, RunState.RUNNING, reason)
    expect(page.get_by_test_id("state-chip")).to_have_attribute("title", reason)  # it has been heard of
    expect(page.locator(".state-reason")).to_have_count(0)
    controller.set_state(FIRST, RunState.RUNNING, "")
    open_view(page, shown, "/runs/mnist-0002")
    expect(page.locator(".state-reason").last).to_have_text("the loss is not finite")


def test_charts_share_axis_cursor_zoom_and_marks(page: Page, shown: Served) -> None:
    open_view(page, shown, f"/runs/{FIRST}?x=samples&smooth=0.5&log=loss")
    loss = page.locator('[data-chart="loss"]')
    expect(loss).to_have_attribute("data-events", "loss")
    expect(loss.get_by_test_id("log-toggle")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("smoothing")).to_have_value("0.5")
    for n in range(4):
        expect(page.get_by_test_id("chart").nth(n).locator("canvas")).to_be_visible()
    loss.get_by_test_id("plot").focus()
    for key in ("ArrowRight", "ArrowRight", "+", "+"):
        page.keyboard.press(key)
    page.wait_for_url("**zoom=**")
    page.wait_for_timeout(500)  # the address follows at its own pace
    lines = page.locator(".u-cursor-x").evaluate_all("all => all.map(one => one.style.transform)")
    assert len(set(lines[:4])) == 1
    zoomed = page.url
    before = steps_shown(page)
    until(lambda: steps_shown(page) > before + 10)
    assert page.url == zoomed
    page.get_by_test_id("zoom-reset").click()
    page.wait_for_url(lambda url: "zoom" not in url)


def test_a_chart_is_saved_with_all_its_points_and_as_a_picture(page: Page, shown: Served) -> None:
    open_view(page, shown, VIEWS["values"])
    loss = page.locator('[data-chart="loss"]')
    expect(loss.locator(".legend b").first).not_to_have_text("–")
    with page.expect_download() as download:
        loss.get_by_test_id("csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert [int(row["step"]) for row in rows[:900]] == list(range(1, 901))
    assert rows[0].keys() >= {"step", "samples", "time", "loss", "val_loss"}
    with page.expect_download() as download:
        loss.get_by_test_id("png").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_how_trimtab_itself_fares_is_shown(page: Page, shown: Served) -> None:
    open_view(page, shown, "/cluster")
    expect(page.get_by_test_id("node")).to_contain_text("1 of 4")
    expect(page.get_by_test_id("node")).to_contain_text("reserved in Ray")
    expect(page.locator('[data-title="Controller"]')).to_contain_text("term")
    expect(page.locator('[data-title="Records"]')).to_contain_text("dropped")
    expect(page.get_by_test_id("live-run").filter(has_text="vision")).to_be_visible()


def test_what_does_not_answer_is_told_with_a_way_on(page: Page, shown: Served) -> None:
    open_view(page, shown, "/runs/nobody-0000")
    expect(page.get_by_test_id("error")).to_contain_text("Not found")
    assert violations(page) == []
    open_view(page, shown, "/compare")
    expect(page.get_by_test_id("empty")).to_contain_text("Pick two runs")


def test_ten_tabs_are_live_over_one_stream(context: BrowserContext, shown: Served) -> None:
    tabs = [context.new_page() for _ in range(10)]
    try:
        for i, tab in enumerate(tabs):
            tab.goto(shown.url + ("/" if i == 9 else f"/runs/{(FIRST, SECOND, THIRD)[i % 3]}?q=loss"))
        for tab in tabs:
            expect(tab.get_by_test_id("link")).to_have_attribute("data-link", "live", timeout=20_000)
        live = [tab for i, tab in enumerate(tabs[:9]) if i % 3 == 0]
        before = [steps_shown(tab) for tab in live]
        until(lambda: all(steps_shown(tab) > step + 20 for tab, step in zip(live, before, strict=True)))
        assert shown.hub.clients == 1
    finally:
        for tab in tabs:
            tab.close()


def test_a_policy_says_what_it_waits_for(page: Page, shown: Served) -> None:
    known = page.request.get(f"{shown.url}/api/v1/runs/{FIRST}").json()
    for policy in known["policies"]:
        policy["waits"] = "lr is still rising" if policy["name"] == "noise_scale" else None
    page.route(f"**/api/v1/runs/{FIRST}", lambda route: route.fulfill(json=known))
    open_view(page, shown, VIEWS["policies"])
    expect(page.get_by_test_id("policy-waits")).to_have_text("waits: lr is still rising")
    expect(page.locator('[data-policy="noise_scale"]').get_by_test_id("policy-waits")).to_be_visible()


def test_a_policy_that_is_added_replaces_none(page: Page, shown: Served) -> None:
    controller = shown.gateway.controller
    before = controller.policy(FIRST, "plateau")
    open_view(page, shown, VIEWS["policies"])
    page.get_by_test_id("policy-add").click()
    new = page.get_by_test_id("policy-new")
    new.get_by_test_id("policy-kind").select_option("plateau")  # the name is the kind's where none is given
    expect(new.get_by_test_id("policy-taken")).to_contain_text("A policy plateau is there already")
    expect(new.get_by_test_id("policy-name")).to_have_attribute("aria-invalid", "true")
    expect(new.get_by_test_id("policy-save")).to_be_disabled()
    assert violations(page) == []
    new.get_by_test_id("policy-other-name").click()
    expect(new.get_by_test_id("policy-name")).to_have_value("plateau_2")
    expect(new.get_by_test_id("policy-taken")).to_have_count(0)
    new.get_by_test_id("policy-name").fill("late")
    known = page.request.get(f"{shown.url}/api/v1/runs/{FIRST}").json()
    page.route(f"**/api/v1/runs/{FIRST}", lambda route: route.fulfill(json=known))  # of what others do it hears late
    controller.put_policy(FIRST, "late", "plateau", {}, "shadow", "bob", "", None)
    new.get_by_test_id("policy-save").click()
    expect(new.get_by_test_id("policy-error")).to_contain_text("has a policy 'late' already")
    page.unroute(f"**/api/v1/runs/{FIRST}")
    expect(new.get_by_test_id("policy-taken")).to_contain_text("A policy late is there already")
    assert (controller.policy(FIRST, "late").mode, controller.policy(FIRST, "plateau")) == ("shadow", before)
    new.get_by_test_id("policy-edit-taken").click()
    expect(new).to_have_count(0)
    expect(page.locator('[data-policy="late"]').get_by_test_id("form-mode")).to_have_attribute("data-mode", "shadow")
    controller.delete_policy(FIRST, "late", "bob", "", None)


def test_thousands_of_metrics_cost_only_those_in_the_window(page: Page, shown: Served) -> None:
    asked: list[str] = []
    names = {"keys": ["loss", *(f"metric_{i:04}" for i in range(2000))]}
    page.route(f"**/runs/{SECOND}/metrics", lambda route: route.fulfill(json=names))
    page.on("request", lambda request: asked.append(request.url) if "key=" in request.url else None)
    open_view(page, shown, f"/runs/{SECOND}")
    expect(page.locator('[data-chart="loss"] .legend b').first).not_to_have_text("–")
    assert page.get_by_test_id("chart").count() < 20
    assert sum(url.count("key=") for url in asked) < 30
    page.get_by_test_id("metric-filter").fill("metric_1999")
    expect(page.get_by_test_id("chart")).to_have_count(1)


def test_runs_are_compared_on_one_grid_with_what_they_were_given(page: Page, shown: Served) -> None:
    open_view(page, shown, COMPARED)
    loss = page.locator('[data-chart="loss"]')
    expect(loss.locator(".legend span")).to_have_text([FIRST, SECOND, "vision"])
    expect(loss.locator(".legend b").nth(1)).not_to_have_text("–")
    assert int(loss.get_attribute("data-marks") or 0) > 3
    rows = page.get_by_test_id("compare-row")
    expect(rows.filter(has_text="batch_size")).to_have_class("differs")
    expect(rows.and_(page.locator('[data-name="beta1"]'))).not_to_have_class("differs")
    last = loss.get_by_test_id("chart-table").locator("tbody tr").last.locator("td")
    assert [text != "" for text in last.all_text_contents()] == [True, False, False]  # the others ended before
    before = rows.count()
    page.get_by_test_id("only-differences").check()
    assert 0 < rows.count() < before
    page.get_by_test_id("axis-time").click()
    expect(loss.locator(".legend b").nth(2)).not_to_have_text("–")
    page.locator(f'[data-run="{SECOND}"]').get_by_test_id("compare-drop").click()
    page.wait_for_url(f"**runs={FIRST},{THIRD}**")
    expect(loss.locator(".legend span")).to_have_text(["bytes_lm", "vision"])


def test_what_is_constant_in_each_compared_run_is_one_line(page: Page, shown: Served) -> None:
    open_view(page, shown, COMPARED)
    summary = page.get_by_test_id("constants").locator("summary")
    expect(summary).to_contain_text("learners 1")
    expect(summary).to_contain_text("workers 2 / 2 / 4")
    expect(page.locator('[data-chart="hp/learners"]')).to_have_count(0)
    expect(page.locator('[data-chart="hp/lr"]')).to_be_visible()


def test_the_legend_tells_nothing_of_a_run_beyond_its_end(page: Page, shown: Served) -> None:
    open_view(page, shown, COMPARED)
    loss = page.locator('[data-chart="loss"]')
    values = loss.locator(".legend b")
    expect(values.nth(2)).not_to_have_text("–")  # where the cursor is elsewhere each run's last
    box = loss.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.98, box["y"] + box["height"] / 2)
    for ended in (1, 2):
        expect(values.nth(ended)).to_have_text("–")
    expect(values.first).not_to_have_text("–")
    page.mouse.move(0, 0)
    expect(values.nth(2)).not_to_have_text("–")


def test_a_job_is_submitted_followed_and_stopped(page: Page, shown: Served) -> None:
    server = shown.gateway.jobs
    server.printed["sweep-1"] = ["\x1b[32mepoch 1\x1b[0m\n", "50 %\r100 %\r\nepoch 2\n"]
    open_view(page, shown, "/jobs")
    page.get_by_test_id("job-new").click()
    dialog = page.get_by_test_id("job-dialog")
    dialog.get_by_test_id("job-environment").fill('{"working_dir": "/home/me"}')
    dialog.get_by_test_id("job-submit").click()
    expect(dialog).to_contain_text("A command is needed.")
    dialog.get_by_test_id("job-entrypoint").fill("python train.py")
    dialog.get_by_test_id("job-submission_id").fill("sweep-1")
    dialog.get_by_test_id("job-hp").fill("lr=abc")
    dialog.get_by_test_id("job-submit").click()
    expect(dialog).to_contain_text("lr is a number; got abc.")
    dialog.get_by_test_id("job-hp").fill("lr=0.2")
    dialog.get_by_test_id("job-policy").select_option("plateau")
    dialog.get_by_test_id("chosen-mode-shadow").click()
    assert violations(page) == []
    dialog.get_by_test_id("job-submit").click()
    expect(dialog).to_contain_text("is a path")  # the server's word, beside the field
    dialog.get_by_test_id("job-environment").fill("")
    dialog.get_by_test_id("job-submit").click()
    page.wait_for_url("**/jobs/sweep-1")
    expect(page.get_by_test_id("log").locator("pre")).to_have_text("epoch 1\n100 %\nepoch 2\n")
    (asked,) = (one for one in server.asked if one.submission_id == "sweep-1")
    told = json.loads(asked.runtime_env["env_vars"][VARIABLE])
    assert told["hp"] == {"lr": 0.2}
    assert [(one["kind"], one["mode"]) for one in told["policies"]] == [("plateau", "shadow")]
    assert violations(page) == []
    page.get_by_test_id("job-stop").click()
    page.get_by_test_id("job-stop-confirm").click()
    expect(page.get_by_test_id("job-status")).to_have_text("stopped")
    expect(page.get_by_test_id("log")).to_contain_text("all that it printed")
    page.get_by_test_id("nav-jobs").click()
    expect(page.locator('[data-job="sweep-1"]')).to_contain_text("python train.py")


def test_a_job_shows_what_it_was_given_and_is_submitted_again(page: Page, shown: Served) -> None:
    keep_jobs(shown)
    open_view(page, shown, f"/jobs/{JOB}")
    about = page.locator(".facts-list")
    expect(about).to_contain_text("lr 0.2, policies plateau, goodput (shadow)")
    expect(about).not_to_contain_text("TRIMTAB")
    page.get_by_test_id("job-again").click()
    dialog = page.get_by_test_id("job-dialog")
    expect(dialog.get_by_test_id("chosen-policy")).to_have_count(2)
    expect(dialog.get_by_test_id("job-hp")).to_have_value("lr=0.2")
    dialog.get_by_test_id("job-submit").click()
    expect(dialog).to_contain_text("give DATA a value again")  # it may be a secret: nobody is shown it
    assert violations(page) == []
    dialog.get_by_test_id("job-environment").fill('{"working_dir": "gcs://_ray_pkg_41.zip"}')
    dialog.get_by_test_id("job-submit").click()
    page.wait_for_url("**/jobs/trimtab-*")
    first, again = (
        Overrides.decode(one.runtime_env["env_vars"][VARIABLE])
        for one in shown.gateway.jobs.asked
        if one.submission_id in (JOB, page.url.rsplit("/", 1)[1])
    )
    assert (again.hp, [one.mode for one in again.policies]) == (first.hp, ["active", "shadow"])
    assert again.policies[0].params["patience"] == 5
    page.get_by_test_id("nav-jobs").click()
    name = page.locator(f'[data-job="{UNNAMED}"] th')
    expect(name).to_have_text(UNNAMED)
    assert name.evaluate("one => one.scrollWidth <= one.clientWidth")  # all of it
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.locator(".job-list").evaluate("one => one.scrollWidth - one.clientWidth")
    assert wide <= 0
    assert violations(page) == []


def test_what_is_wrong_with_a_job_is_told_once_beside_its_field_until_it_is_edited(page: Page, shown: Served) -> None:
    keep_jobs(shown)
    open_view(page, shown, "/jobs")
    page.get_by_test_id("job-new").click()
    dialog = page.get_by_test_id("job-dialog")
    dialog.get_by_test_id("job-entrypoint").fill("python another.py")
    dialog.get_by_test_id("job-submission_id").fill("my job")
    dialog.get_by_test_id("job-submit").click()
    told = dialog.locator(".field-error")
    expect(told).to_have_text("Letters, digits, dots, - and _, at most 128, the first a letter or a digit.")
    dialog.get_by_test_id("job-submission_id").fill(JOB)
    expect(told).to_have_count(0)
    dialog.get_by_test_id("job-submit").click()
    expect(told).to_have_text(f"another job was submitted as '{JOB}'; choose another id")
    dialog.get_by_test_id("job-submission_id").fill("")
    expect(told).to_have_count(0)
    dialog.get_by_test_id("job-environment").fill("{")
    dialog.get_by_test_id("job-submit").click()
    expect(told).to_have_text("This is not valid JSON.")
    dialog.get_by_test_id("job-environment").fill("{}")
    expect(told).to_have_count(0)
    dialog.get_by_test_id("job-policy").select_option("plateau")
    dialog.get_by_text("Parameters").click()
    patience = dialog.locator('[data-field="patience"]')
    patience.fill("-1")
    dialog.get_by_test_id("job-submit").click()
    expect(told).to_have_count(1)
    patience.fill("3")
    expect(told).to_have_count(0)


def test_of_a_job_that_is_over_all_is_there_at_once_and_why_it_failed_is_one_line(page: Page, shown: Served) -> None:
    keep_jobs(shown)
    jobs = shown.gateway.jobs
    trace = 'Traceback (most recent call last):\n  File "train.py", line 3\nValueError: no data in s3://data\n'
    jobs.printed[UNNAMED] = [trace]
    told = f"Job entrypoint command failed with exit code 1, last available logs:\n{trace}"
    jobs.known[UNNAMED] = jobs.known[UNNAMED].model_copy(update={"message": told})
    open_view(page, shown, f"/jobs/{UNNAMED}")
    expect(page.get_by_test_id("log").locator("pre")).to_have_text(trace)
    expect(page.get_by_test_id("log")).to_contain_text("all that it printed")
    expect(page.locator(".facts-list")).to_contain_text("told" + "ValueError: no data in s3://data")
    expect(page.locator(".facts-list")).not_to_contain_text("Traceback")


def test_values_that_never_change_are_one_line(page: Page, shown: Served) -> None:
    open_view(page, shown, VIEWS["values"])
    constants = page.get_by_test_id("constants")
    expect(constants.locator("summary")).to_have_text("3 constant: beta1 0.9, learners 1, workers 2")
    expect(page.locator('[data-chart="hp/beta1"]')).to_have_count(0)
    constants.locator("summary").click()
    expect(page.locator('[data-chart="hp/beta1"]')).to_be_visible()
    shown.gateway.controller.pin(FIRST, "beta1", 0.95, "alice", "", None)
    expect(constants.locator("summary")).to_contain_text("2 constant: learners 1")


def test_a_legend_says_that_its_values_are_means(page: Page, shown: Served) -> None:
    open_view(page, shown, f"/runs/{FIRST}?q=loss")
    expect(page.locator('[data-chart="loss"] .legend')).to_have_attribute("title", re.compile(r"^mean over \d steps$"))
    expect(page.locator('[data-figure="loss"]')).to_contain_text("last step")


def test_of_a_run_that_has_ended_nothing_can_be_changed(page: Page, shown: Served) -> None:
    open_view(page, shown, f"/runs/{SECOND}")
    expect(page.get_by_test_id("ended")).to_have_text("This run has ended; nothing can be changed.")
    expect(page.locator('[data-param="lr"]').get_by_test_id("pin-button")).to_be_disabled()
    page.get_by_test_id("tab-policies").click()
    plateau = page.locator('[data-policy="plateau"]')
    expect(plateau.get_by_test_id("policy-mode-off").first).to_be_disabled()
    for name in ("policy-delete", "policy-edit"):
        expect(page.get_by_test_id(name)).to_have_count(0)
    plateau.get_by_test_id("policy-try-open").click()
    form = page.get_by_test_id("policy-form")
    for name in ("policy-save", "policy-reason-input"):
        expect(form.get_by_test_id(name)).to_have_count(0)
    expect(form.locator("code").first).to_be_visible()
    expect(form).not_to_contain_text("`")
    form.get_by_test_id("policy-try").click()
    expect(page.get_by_test_id("what-if-summary")).to_contain_text("Had plateau been there", timeout=15_000)
    expect(page.get_by_test_id("what-if-apply")).to_have_count(0)
    assert violations(page) == []
    open_view(page, shown, f"/runs/{FIRST}")
    expect(page.get_by_test_id("ended")).to_have_count(0)


def test_a_run_that_ended_before_its_first_step_says_so(page: Page, shown: Served) -> None:
    controller, clock = shown.gateway.controller, shown.runs[FIRST].clock
    one = begin(controller, clock, "unbegun-0001", policies("warmup"))
    controller.set_state(one.id, RunState.FAILED, "no module named data")
    open_view(page, shown, f"/runs/{one.id}")
    expect(page.get_by_test_id("no-metrics")).to_have_text("It ended before its first step: no module named data")
    expect(page.locator('[data-param="lr"]').get_by_test_id("value-version")).to_have_text("v2 never applied")
    expect(page.locator(".facts .pending")).to_have_count(0)


def test_a_change_of_a_policy_is_listed_as_in_force(page: Page, shown: Served) -> None:
    open_view(page, shown, VIEWS["changes"])
    row = page.locator('[data-kind="policy"]').filter(has_text="policy noise_scale")
    expect(row).to_have_attribute("data-status", "applied")
    expect(row).to_contain_text("in force from step 0")
    expect(row).to_contain_text("shrink=false")


def test_what_the_server_says_is_shown_without_backticks(page: Page, shown: Served) -> None:
    told = {"type": "about:blank", "status": 422, "code": "x", "detail": "Declare `learners` first.", "errors": []}
    page.route("**/pins/lr", lambda route: route.fulfill(status=422, json=told))
    open_view(page, shown, VIEWS["values"])
    card = page.locator('[data-param="lr"]')
    card.get_by_test_id("pin-button").click()
    card.get_by_test_id("pin-value").fill("0.01")
    card.get_by_test_id("pin-save").click()
    expect(card.get_by_test_id("pin-error")).to_have_text("Declare learners first.")
    expect(card.get_by_test_id("pin-error").locator("code")).to_have_text("learners")
