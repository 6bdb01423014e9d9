"""From the page alone, against a real Ray: submit a job, see what is decided, steer it, and stop it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from joined import Cluster, joined, until
from playwright.sync_api import Browser, Page, expect

from trimtab.api.home import read_access

SCRIPT = """
import time
import torch
from torch import nn
from trimtab.workers import launch

def train(session):
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    net = nn.Linear(8, 2)
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
    for inputs, labels in session.batches((x, y)):
        session.step(nn.functional.cross_entropy(model(inputs), labels))
        time.sleep(0.02)

if __name__ == "__main__":
    print("the script begins", flush=True)
    launch(train, workers=1, steps=1_000_000, hp={"batch_size": 32, "lr": 0.1}, name="from_the_page")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with joined(tmp_path_factory.mktemp("home")) as cluster:
        yield cluster


@pytest.fixture
def page(browser: Browser, cluster: Cluster) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    access = read_access(cluster.home)
    assert access is not None
    page.goto(access.page)
    yield page
    page.close()


def test_a_job_is_submitted_steered_and_stopped(page: Page, tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text(SCRIPT)
    submit(page, f"{sys.executable} {script}")
    expect(page.get_by_test_id("job-status")).to_have_text("running", timeout=60_000)
    expect(page.get_by_test_id("log")).to_contain_text("the script begins", timeout=60_000)
    page.get_by_test_id("job-run").click(timeout=60_000)
    expect(page.get_by_test_id("run-job")).to_have_text("job from-the-page-1")
    steer(page)
    stop(page)


def submit(page: Page, command: str) -> None:
    page.get_by_test_id("nav-jobs").click()
    page.get_by_test_id("job-new").click()
    dialog = page.get_by_test_id("job-dialog")
    dialog.get_by_test_id("job-submit").click()
    expect(dialog).to_contain_text("A command is needed.")
    dialog.get_by_test_id("job-entrypoint").fill(command)
    dialog.get_by_test_id("job-submission_id").fill("from-the-page-1")
    dialog.get_by_test_id("job-hp").fill("lr=0.2")
    for kind in ("warmup", "plateau"):
        dialog.get_by_test_id("job-policy").select_option(kind)
    dialog.locator('[data-kind="warmup"] summary').click()
    dialog.locator('[data-kind="warmup"] [data-field="steps"]').fill("50")
    dialog.get_by_test_id("job-submit").click()


def steer(page: Page) -> None:
    """Decisions arrive; a policy goes into shadow and back; another is tried; a value is pinned."""
    page.get_by_test_id("tab-changes").click()
    decided = page.locator('[data-testid="change"][data-status="applied"]').filter(has_text="warm-up:")
    expect(decided.first).to_be_visible(timeout=60_000)
    page.get_by_test_id("tab-policies").click()
    plateau = page.locator('[data-testid="policy"][data-policy="plateau"]')
    for mode in ("shadow", "active"):
        plateau.get_by_test_id(f"policy-mode-{mode}").click()
        expect(plateau.get_by_test_id("policy-mode")).to_have_attribute("data-mode", mode)
    warmup = page.locator('[data-testid="policy"][data-policy="warmup"]')
    warmup.get_by_test_id("policy-edit").click()
    warmup.locator('[data-field="start"]').fill("0.5")
    warmup.get_by_test_id("policy-try").click()
    expect(page.get_by_test_id("what-if-row").first).to_be_visible(timeout=30_000)
    page.get_by_test_id("what-if-close").click()
    page.get_by_test_id("tab-values").click()
    lr = page.locator('[data-testid="value"][data-param="lr"]')
    expect(lr.get_by_test_id("provenance")).to_contain_text("0.2")
    lr.get_by_test_id("pin-button").click()
    lr.get_by_test_id("pin-value").fill("0.05")
    lr.get_by_test_id("pin-save").click()
    expect(lr.get_by_test_id("version-trail")).to_have_attribute("data-status", "applied", timeout=30_000)
    page.get_by_test_id("tab-logs").click()
    expect(page.get_by_test_id("log")).to_contain_text("the script begins")


def stop(page: Page) -> None:
    page.get_by_test_id("command-stop").click()
    page.get_by_test_id("stop-confirm").click()
    expect(page.get_by_test_id("state-chip").first).to_have_text("stopped", timeout=60_000)
    page.get_by_test_id("run-job").click()
    until(lambda: page.get_by_test_id("job-status").get_attribute("data-status") == "SUCCEEDED")
