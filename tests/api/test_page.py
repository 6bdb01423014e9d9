"""Static files, the page's own addresses, and what is nowhere."""

from pathlib import Path

import pytest
from plain import Door

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def built(door: Door) -> Path:
    (door.page / "assets").mkdir(parents=True)
    (door.page / "index.html").write_text("<!doctype html>the page")
    (door.page / "assets" / "main-1a2b.js").write_text("go()")
    (door.page.parent / "secret").write_text("secret")
    return door.page


@pytest.mark.usefixtures("built")
async def test_files_and_the_pages_own_addresses(door: Door) -> None:
    async with door.client(None) as client:
        for path in ("/", "/runs/some-run", "/index.html"):
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (200, "<!doctype html>the page"), path
            assert answer.headers["cache-control"] == "no-cache"
        script = await client.get("/assets/main-1a2b.js")
        assert (script.text, "immutable" in script.headers["cache-control"]) == ("go()", True)
        assert (await client.get("/assets/gone.js")).status_code == 404
        assert (await client.post("/")).status_code == 405


async def test_large_files_are_sent_compressed_to_who_takes_that(door: Door, built: Path) -> None:
    text = "go();" * 1000
    (built / "assets" / "large-1a2b.js").write_text(text)
    async with door.client(None) as client:
        zipped = await client.get("/assets/large-1a2b.js", headers={"Accept-Encoding": "gzip"})
        plain = await client.get("/assets/large-1a2b.js", headers={"Accept-Encoding": "identity"})
    assert (zipped.text, plain.text) == (text, text)
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < 200
    assert "content-encoding" not in plain.headers
    assert "immutable" in zipped.headers["cache-control"]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "/assets/../../secret", "/%2e%2e%2fsecret", "//secret"]
)
async def test_nothing_outside_is_served(door: Door, path: str) -> None:
    async with door.client(None) as client:
        assert "secret" not in (await client.get(f"http://127.0.0.1:8270{path}")).text


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v1", "/api/v1/nothing", "/api/v2/runs", "/api/v1/runs/"])
async def test_what_is_unknown_under_api_is_json(door: Door, path: str) -> None:
    async with door.client() as client:
        for method in ("GET", "POST"):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/runs", "GET"), ("/runs/a/pins/lr", "DELETE, PUT"), ("/runs/a/policies/b", "DELETE, GET, PUT")],
)
async def test_a_wrong_method_names_the_right_ones(door: Door, path: str, methods: str) -> None:
    async with door.client() as client:
        answer = await client.patch(f"/api/v1{path}")
        assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
        assert answer.headers["allow"] == methods


async def test_a_page_that_is_not_built_says_so(door: Door) -> None:
    async with door.client(None) as client:
        answer = await client.get("/")
        assert answer.status_code == 503
        assert "not built" in answer.text
