"""deploy/prometheus: what Prometheus's own tool says of it, and that its alerts ask for nothing that there is not."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana import missing, scraped

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
CASES = Path(__file__).with_name("alerts.yml")
PROMETHEUS_OWN = {"up"}
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, with a token and the alerts' cases beside it."""
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool: install Debian's prometheus, or Prometheus's own archive")
    copy = tmp_path / "prometheus"
    shutil.copytree(FOLDER, copy)
    (copy / "trimtab.token").write_text("a-token")
    (copy / "alerts.yml").write_text(CASES.read_text().replace("../../deploy/prometheus/", ""))
    return copy


def promtool(folder: Path, *arguments: str) -> tuple[bool, str]:
    """Is it content, and what it says."""
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode == 0, done.stdout + done.stderr


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_configuration_is_one(folder: Path) -> None:
    content, told = promtool(folder, "check", "config", "prometheus.yml")
    assert content, told
    assert f"{len(ALERTS)} rules found" in told  # the rules are found from there


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scrape_interval: 15s", "scrape_interval: 15"),
        ("file_sd_configs", "file_sd_config"),
        ("credentials_file: trimtab.token", "credentials_file: gone"),
    ],
)
def test_a_broken_configuration_is_refused(folder: Path, old: str, new: str) -> None:
    change(folder / "prometheus.yml", old, new)
    content, _ = promtool(folder, "check", "config", "prometheus.yml")
    assert not content


def test_the_rules_are_rules_and_do_what_their_cases_say(folder: Path) -> None:
    content, told = promtool(folder, "check", "rules", "rules.yml")
    assert content, told
    content, told = promtool(folder, "test", "rules", "alerts.yml")
    assert content, told


@pytest.mark.parametrize(
    ("old", "new"),
    [("for: 2m", "for: soon"), ("== 0", "== "), ("{{ $labels.instance }}", "{{ $labels.instance }"), ("expr", "exp")],
)
def test_a_broken_rule_is_refused(folder: Path, old: str, new: str) -> None:
    change(folder / "rules.yml", old, new)
    content, _ = promtool(folder, "check", "rules", "rules.yml")
    assert not content


@pytest.mark.parametrize("end", ["or vector(1)", "and on () vector(1) > 1"], ids=["always", "never"])
def test_every_alert_that_fires_always_or_never_fails_its_cases(folder: Path, end: str) -> None:
    rules = yaml.safe_load((folder / "rules.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = f"({rule['expr']}) {end}"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules, allow_unicode=True))
    content, told = promtool(folder, "test", "rules", "alerts.yml")
    assert not content
    assert [alert["alert"] for alert in ALERTS if f'alertname=\\"{alert["alert"]}\\"' not in told] == []


def faults(alerts: list[dict[str, Any]]) -> list[str]:
    """What an alert lacks for whoever is woken by it."""
    told = []
    for one in alerts:
        words = one.get("annotations", {})
        told += [f"{one['alert']}: no {word}" for word in ("summary", "action") if not words.get(word)]
        told += [f"{one['alert']}: no for"] if "for" not in one else []
        if (severity := one.get("labels", {}).get("severity")) not in ("critical", "warning", "info"):
            told.append(f"{one['alert']}: severity {severity}")
    return told


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS) >= 10
    assert faults(ALERTS) == []
    assert len(faults([{"alert": "Bare", "labels": {"severity": "page"}}])) == 4


def test_every_alert_asks_for_what_there_is(tmp_path: Path) -> None:
    text = scraped(tmp_path)
    assert missing((alert["expr"] for alert in ALERTS), text) == PROMETHEUS_OWN
    assert missing(["trimtab_home_free_byte < 1"], text) == {"trimtab_home_free_byte"}
