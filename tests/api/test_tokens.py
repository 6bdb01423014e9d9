"""Tokens and sessions."""

import json
import stat
from pathlib import Path

import pytest

from trimtab.api.answers import NewToken
from trimtab.api.forms import SessionForm
from trimtab.api.home import Access, admin_token, read_access, write_access
from trimtab.api.tokens import SESSION_S, Role, Tokens
from trimtab.controller.errors import Refused


def test_only_the_owner_may_read_the_file_and_it_holds_no_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = Tokens(path).new("ci", Role.OPERATOR)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert json.loads(path.read_text())["tokens"][0]["role"] == "operator"


def test_a_token_expires(tmp_path: Path) -> None:
    now = 1000.0
    tokens = Tokens(tmp_path / "t", lambda: now)
    token = tokens.new("ci", Role.OPERATOR, expires=1060.0)
    identity = tokens.identify(token)
    assert identity is not None
    cookie = tokens.open_session(identity)
    assert identity in tokens
    now = 1060.0
    assert (tokens.identify(token), tokens.of_session(cookie), identity in tokens) == (None, None, False)


def test_what_another_process_changes_counts_at_once(tmp_path: Path) -> None:
    ours, theirs = Tokens(tmp_path / "t"), Tokens(tmp_path / "t")
    token = theirs.new("ci", Role.VIEWER)
    identity = ours.identify(token)
    assert identity is not None
    cookie = ours.open_session(identity)
    assert theirs.of_session(cookie) == identity
    ours.new("other", Role.ADMIN)
    theirs.remove("ci")
    assert (ours.identify(token), ours.of_session(cookie), identity in ours) == (None, None, False)
    assert [one.name for one in ours] == ["other"]
    again = theirs.new("ci", Role.VIEWER)
    assert ours.identify(again) is not None
    assert identity not in ours  # who came in by the old one is not who has the new one


def test_the_last_admin_stays(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "t")
    tokens.new("a", Role.ADMIN)
    tokens.new("b", Role.ADMIN, expires=2e9)
    for name, code in (("a", "last-admin"), ("nix", "token-not-found")):
        with pytest.raises(Refused) as refused:
            tokens.remove(name)
        assert refused.value.code == code
    tokens.new("c", Role.ADMIN)
    tokens.remove("a")
    with pytest.raises(Refused, match="there is a token 'c' already"):
        tokens.new("c", Role.VIEWER, replace=False)
    assert [one.name for one in tokens] == ["b", "c"]


def test_no_token_is_shown_by_what_holds_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    tokens = Tokens(tmp_path / "t")
    token = tokens.new("ci", Role.VIEWER, by="alice")
    identity = tokens.identify(token)
    assert identity is not None
    assert identity.sha256 not in repr(identity)
    made = NewToken(name="ci", role="viewer", created=None, expires=None, token=token)
    for holder in (Access("http://127.0.0.1", token), SessionForm(token=token), made):
        assert token not in repr(holder)
    assert caplog.messages == ["token ci (viewer) was made by alice"]


def test_a_token_opens_after_a_restart_and_no_other_does(tmp_path: Path) -> None:
    token = Tokens(tmp_path / "t").new("ci", Role.OPERATOR)
    tokens = Tokens(tmp_path / "t")
    identity = tokens.identify(token)
    assert identity is not None
    assert (identity.name, identity.role) == ("ci", Role.OPERATOR)
    for bad in ("", token[:-1], token + "x", "ünïcode", "\ud800"):
        assert tokens.identify(bad) is None


def test_a_session_outlives_a_restart_and_ends_with_its_time(tmp_path: Path) -> None:
    now = 1000.0
    tokens = Tokens(tmp_path / "t", lambda: now)
    identity = tokens.identify(tokens.new("ci", Role.VIEWER))
    assert identity is not None
    cookie = tokens.open_session(identity)
    assert Tokens(tmp_path / "t", lambda: now).of_session(cookie) == identity
    assert Tokens(tmp_path / "t", lambda: now + SESSION_S + 1).of_session(cookie) is None


def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "t")
    identity = tokens.identify(tokens.new("ci", Role.ADMIN))
    assert identity is not None
    cookie = tokens.open_session(identity)
    tokens.new("ci", Role.ADMIN)
    assert tokens.of_session(cookie) is None


@pytest.mark.parametrize("cookie", ["", "x", "ci", "ci.", "ci.99999999999.", "ci.99999999999.00", "ci.é.é", "ci.1.é"])
def test_a_forged_session_opens_nothing(tmp_path: Path, cookie: str) -> None:
    tokens = Tokens(tmp_path / "t")
    tokens.new("ci", Role.ADMIN)
    assert tokens.of_session(cookie) is None


def test_a_session_of_another_installation_opens_nothing(tmp_path: Path) -> None:
    ours, theirs = Tokens(tmp_path / "a"), Tokens(tmp_path / "b")
    ours.new("ci", Role.ADMIN)
    identity = theirs.identify(theirs.new("ci", Role.ADMIN))
    assert identity is not None
    assert ours.of_session(theirs.open_session(identity)) is None


def test_the_first_token_is_kept_and_made_anew_when_it_is_lost(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    first = admin_token(tmp_path, tokens)
    write_access(tmp_path, Access("http://127.0.0.1:8270", first))
    assert stat.S_IMODE((tmp_path / "client.json").stat().st_mode) == 0o600
    assert admin_token(tmp_path, tokens) == first
    (tmp_path / "client.json").write_text("{}")
    assert read_access(tmp_path) is None
    second = admin_token(tmp_path, tokens)
    assert tokens.identify(first) is None
    assert tokens.identify(second) is not None
