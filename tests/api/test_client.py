"""The typed client: beside the description of the API, and against a served app."""

import inspect
import math
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from plain import RUN, SPEC, Door, free_port, keep_checkpoints, serving, train

from trimtab.api import ApiError, Client
from trimtab.api.home import Access, write_access
from trimtab.controller.replayed import Candidate

METHODS = {  # of the client, by operation
    "health": ["health"],
    "readiness": ["ready"],
    "system_health": ["system_health"],
    "about": ["version"],
    "list_runs": ["runs"],
    "get_run": ["run"],
    "list_changes": ["changes"],
    "audit": ["audit"],
    "pause_run": ["pause"],
    "resume_run": ["resume"],
    "stop_run": ["stop"],
    "checkpoint_run": ["checkpoint"],
    "decay_run": ["decay"],
    "rollback_run": ["rollback"],
    "submit_job": ["submit_job"],
    "list_jobs": ["jobs", "job_server"],
    "get_job": ["job"],
    "delete_job": ["delete_job"],
    "stop_job": ["stop_job"],
    "get_logs": ["job_logs", "follow_job"],
    "get_hyperparameters": ["hyperparameters"],
    "put_pin": ["pin"],
    "delete_pin": ["unpin"],
    "list_policy_kinds": ["policy_kinds"],
    "list_policies": ["policies"],
    "get_policy": ["policy"],
    "put_policy": ["put_policy", "dry_run"],
    "delete_policy": ["delete_policy"],
    "replay_run": ["replay"],
    "compare_metrics": ["compare"],
    "get_metrics": ["metrics", "metric_keys", "csv"],
    "stream_events": ["events"],
    "list_tokens": ["tokens"],
    "create_token": ["new_token"],
    "delete_token": ["delete_token"],
}
OF_THE_PAGE = {"sign_in", "sign_out"}  # a cookie is for browsers
NAMES = {
    "from": "from_",
    "If-Match": "revision",
    "If-None-Match": "revision",
    "last-event-id": "last_event_id",
    "idempotency-key": "idempotency_key",
}
PAGING = {"limit", "page_token", "follow"}  # the client's own affair


def missing(app: FastAPI, methods: dict[str, list[str]]) -> list[str]:
    """What the API's description has and the client has not: operations, and parameters of them."""
    schema = app.openapi()
    found = []
    for path in schema["paths"].values():
        for operation in path.values():
            name = operation["operationId"]
            if name in OF_THE_PAGE:
                continue
            if name not in methods:
                found.append(name)
                continue
            taken = {one for method in methods[name] for one in inspect.signature(getattr(Client, method)).parameters}
            dry = {"dry_run"} & set(methods[name])
            found += [f"{name}: {one}" for one in sorted(parameters(schema, operation) - taken - dry)]
    return found


def parameters(schema: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    """Path, query, condition and body, as the client names them."""
    names = {one["name"] for one in operation.get("parameters", ()) if one["in"] != "cookie"}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for one in (body, *body.get("anyOf", ())):
        if "$ref" in one:
            names |= set(schema["components"]["schemas"][one["$ref"].rpartition("/")[2]]["properties"])
    return {NAMES.get(name, name) for name in names} - PAGING


def test_every_operation_has_a_method_with_its_parameters(door: Door) -> None:
    assert missing(door.app, METHODS) == []


def test_an_operation_without_a_method_is_found_out(door: Door) -> None:
    @door.app.get("/api/v1/new")
    async def something_new() -> None: ...

    door.app.openapi_schema = None
    assert missing(door.app, METHODS) == ["something_new"]
    assert "put_pin: value" in missing(door.app, METHODS | {"something_new": ["runs"], "put_pin": ["unpin"]})


@pytest.fixture
def api(door: Door, served: str) -> Iterator[Client]:
    with Client(served, door.token) as client:
        yield client


def test_answers_are_the_models_of_the_api(door: Door, api: Client) -> None:
    controller = door.gateway.controller
    train(controller, range(1, 101), loss=float("nan"))
    controller.expire()
    assert (api.health().status, api.ready().status, api.version().role) == ("ok", "ok", "admin")
    assert [run.id for run in api.runs()] == [RUN]
    run = api.run(RUN)
    assert (run.state, run.progress.steps, math.isnan(run.loss or 0)) == ("running", 100, True)
    assert run.created == controller.run(RUN).created
    assert api.hyperparameters(RUN) == controller.hyperparameters(RUN)
    assert "loss" in api.metric_keys(RUN)
    found = api.metrics(RUN, ["loss", "step_time"], x="samples", from_=320, to=640, max_points=2)
    assert (found.x, len(found.series["step_time"].mean)) == ("samples", 2)
    assert all(map(math.isnan, found.series["loss"].mean))
    compared = api.compare([RUN], ["step_time"], {"x": "time", "points": 4})
    assert (len(compared.grid), compared.runs[RUN]["step_time"].mean) == (4, pytest.approx([0.02] * 4))
    with api.csv(RUN, ["loss"]) as text:
        assert "".join(text).splitlines()[:2] == ["step,samples,time,loss", "1,32,1700000000.02,"]


def test_changes_are_made_on_a_revision_or_on_any(door: Door, api: Client) -> None:
    pinned = api.pin(RUN, "lr", 0.01, reason="too high", revision=api.hyperparameters(RUN).revision)
    assert (pinned.revision, pinned.version) == (2, 2)
    with pytest.raises(ApiError, match="you saw revision 1, the present one is 2") as refused:
        api.unpin(RUN, "lr", revision=1)
    assert (refused.value.status, refused.value.code) == (412, "stale-revision")
    assert (refused.value.current or {})["revision"] == 2
    assert api.unpin(RUN, "lr", "calm again").revision == 3
    put = api.put_policy(RUN, "cut", "plateau", {"patience": 3}, "shadow")
    assert (put.revision, put.mode) == (1, "shadow")
    with pytest.raises(ApiError, match="has a policy 'cut' already"):
        api.put_policy(RUN, "cut", "plateau", revision=0)
    assert api.policies(RUN) == [api.policy(RUN, "cut")] == [put]
    assert api.dry_run(RUN, "cut", "plateau").decisions == []
    assert api.replay(RUN).equal
    assert api.replay(RUN, [Candidate(name="a", kind="warmup", params={"steps": 5})]).observations == 0
    api.delete_policy(RUN, "cut", revision=1)
    assert "plateau" in {kind.kind for kind in api.policy_kinds(RUN)}
    api.put_policy(RUN, "wsd", "schedule", {"shape": "wsd"}, "shadow")
    versions = [getattr(api, name)(RUN, "because").version for name in ("pause", "resume", "checkpoint", "decay")]
    assert versions == sorted(versions)
    keep_checkpoints(door.gateway.controller, 100)
    assert api.rollback(RUN, 100).version == versions[-1] + 1
    audit = list(api.changes(RUN))
    assert [one.changes[0].by for one in audit] == ["alice"] * len(audit)
    assert list(api.changes(RUN, after=audit[-2].id)) == audit[-1:]
    api.stop(RUN)


def test_a_job_tells_whether_it_was_submitted_before(api: Client) -> None:
    first, again = (api.submit_job("python train.py", "train-1") for _ in range(2))
    assert (first.known, again.known) == (False, True)
    assert again.model_dump() == api.job("train-1").model_dump()


def test_lists_come_whole_however_many_pages(door: Door, api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.api.client.PAGE", 2)
    for number in range(4):
        door.gateway.controller.create_run(f"run-{number}", SPEC)
        api.checkpoint(RUN)
    assert [run.id for run in api.runs()] == ["run-3", "run-2", "run-1", "run-0", RUN]
    assert [one.id for one in api.changes(RUN)] == [1, 2, 3, 4]


def test_what_is_refused_has_a_code_and_names_its_fields(api: Client) -> None:
    with pytest.raises(ApiError) as refused:
        api.put_policy(RUN, "cut", "plateau", {"patience": -1})
    assert (refused.value.code, list(refused.value.fields)) == ("invalid-parameters", ["params.patience"])
    with pytest.raises(ApiError) as refused:
        api.run("../nix")
    assert (refused.value.status, refused.value.code) == (404, "not-found")


def test_who_does_not_answer_is_told(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIMTAB_URL", "TRIMTAB_TOKEN", "TRIMTAB_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ApiError, match="start it with `trimtab up`, or give its url") as refused:
        Client(home=tmp_path)
    assert refused.value.code == "no-access"
    for url in ("http://127.0.0.1:1", "nonsense", "http://[::1"):
        with pytest.raises(ApiError) as refused:
            Client(url, "token").version()
        assert refused.value.code in ("unreachable", "no-access")
    stranger = httpx.MockTransport(lambda _: httpx.Response(200, json={"hello": "world"}))
    with pytest.raises(ApiError, match="is it Trimtab") as refused:
        Client("http://127.0.0.1", "token", transport=stranger).version()
    assert refused.value.code == "not-understood"
    write_access(tmp_path, Access("http://127.0.0.1:1", door.token))
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    assert Client().url == "http://127.0.0.1:1"


class Well(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')


def own_authority(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody else has signed, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, secret


def test_an_authority_of_ones_own_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = own_authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Well) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_port}"
        with pytest.raises(ApiError, match="certificate verify failed"), Client(url, "token") as api:
            api.health()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Client(url, "token") as api:
            assert api.health().status == "ok"
        server.shutdown()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    with pytest.raises(ApiError, match="No such file"):
        Client(url, "token")


def test_tokens(door: Door, api: Client) -> None:
    made = api.new_token("ci", "operator", datetime.now(UTC) + timedelta(days=1))
    ci = Client(api.url, made.token)
    assert (ci.version().name, ci.version().role) == ("ci", "operator")
    ci.pin(RUN, "lr", 0.01)
    assert [(one.name, one.role) for one in api.tokens()] == [("alice", "admin"), ("ci", "operator")]
    with pytest.raises(ApiError) as refused:
        ci.tokens()
    assert refused.value.code == "forbidden"
    events = ci.events(topic=["alerts"], last_event_id=f"{door.gateway.controller.term}-0")
    door.gateway.controller.feed.publish("alerts", RUN, {"number": 1})
    assert next(events).data == {"number": 1}
    api.delete_token("ci")
    door.gateway.controller.feed.publish("alerts", RUN, {"number": 2})
    for ask in (lambda: next(events), ci.version):  # an open stream ends too, without the event
        with pytest.raises(ApiError) as refused:
            ask()
        assert refused.value.code == "unauthenticated"


def test_events_come_as_they_happen(door: Door, api: Client) -> None:
    events = api.events(RUN, ["alerts", "changes"], last_event_id=f"{door.gateway.controller.term}-0")
    door.gateway.controller.feed.publish("alerts", RUN, {"text": "two\u2028lines"})
    api.pin(RUN, "lr", 0.01)
    told = next(events)
    assert (told.topic, told.data) == ("alerts", {"text": "two\u2028lines"})
    changed = next(events)
    assert (changed.topic, changed.data["change"]["changes"][0]["to"]) == ("changes", 0.01)
    again = api.events(RUN, last_event_id=told.id)
    assert next(event for event in again if event.topic == "changes") == changed
    assert next(api.events(last_event_id="7-1")).topic == "reset"
    with pytest.raises(ApiError) as refused:
        next(Client(api.url, "wrong").events())
    assert refused.value.code == "unauthenticated"


def test_a_stream_that_breaks_off_is_taken_up_again(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.api.client.RETRY_S", 0.05)
    port, feed = free_port(), door.gateway.controller.feed
    place = f"{door.gateway.controller.term}-{feed._seq}"
    events = Client(f"http://127.0.0.1:{port}", door.token).events(topic=["alerts"], last_event_id=place, patience_s=20)
    seen = []
    for turn in range(3):  # three servers, one after the other
        feed.publish("alerts", RUN, {"number": 2 * turn})  # while nobody serves
        with serving(*door.again(), port):
            seen.append(next(events).data["number"])
            feed.publish("alerts", RUN, {"number": 2 * turn + 1})
            seen.append(next(events).data["number"])
    assert seen == list(range(6))
    with pytest.raises(ApiError) as refused:
        next(Client(f"http://127.0.0.1:{port}", door.token).events(patience_s=0.2))
    assert refused.value.code == "unreachable"
