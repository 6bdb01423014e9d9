"""The command line's way to the API: where it is, what opens it, and its problems as one clear line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    import httpx

ROOT = "/api/v1"
REPLAY_S = 130.0  # a little longer than the server takes at most
START_IT = "is it running? `trimtab up` starts it"


class CommandError(Exception):
    """Ends the command with exit code 1; its text is what the user reads."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Speaks to the API at `url`."""

    url: str
    token: str

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    def change(self, method: str, path: str, body: Any = None, revision: int | None = None, **query: Any) -> Any:
        """Make a change; of `revision` if given, else whatever is there now."""
        match = "*" if revision is None else f'"{revision}"'
        params = {name: value for name, value in query.items() if value}
        return self._ask(method, path, json=body, params=params, headers={"If-Match": match})

    def replay(self, method: str, path: str, body: Any, **query: Any) -> Any:
        """Ask what policies decide on a recorded run, which takes a while and changes nothing."""
        return self._ask(method, path, json=body, params=query, headers={"If-Match": "*"}, timeout=REPLAY_S)

    def pages(self, path: str, items: str, cursor: str, answered: str, **query: Any) -> Iterator[Any]:
        """All items of a list that comes in pages; `answered` is the field that the next `cursor` stands in."""
        place = None
        while True:
            answer = self.get(path, **query, **{cursor: place})
            yield from answer[items]
            place = answer[answered]
            if place is None:
                return

    def run(self, prefix: str) -> str:
        """The path of the run whose id is `prefix`, or the only one that begins with it."""
        ids = [run["id"] for run in self.pages("/runs", "runs", "page_token", "next_page_token", limit=1000)]
        found = [prefix] if prefix in ids else [one for one in ids if one.startswith(prefix)]
        if len(found) == 1:
            return f"/runs/{found[0]}"
        if not found:
            raise CommandError(f"no run's id begins with {prefix!r}; `trimtab runs` lists them")
        raise CommandError(f"{prefix!r} is not unique: {', '.join(found[:8])}")

    @contextmanager
    def text(self, path: str, accept: str, **query: Any) -> Iterator[Iterator[str]]:
        """An answer as a stream of text."""
        with self._client() as client, client.stream("GET", path, params=query, headers={"Accept": accept}) as answer:
            if answer.is_error:
                answer.read()
                raise CommandError(_sentence(answer))
            yield answer.iter_text()

    def _ask(self, method: str, path: str, **rest: Any) -> Any:
        with self._client() as client:
            answer = client.request(method, path, **rest)
        if answer.is_error:
            raise CommandError(_sentence(answer))
        return answer.json() if answer.content else None

    @contextmanager
    def _client(self) -> Iterator["httpx.Client"]:
        import httpx

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with httpx.Client(base_url=self.url + ROOT, headers=headers, timeout=30.0, trust_env=False) as client:
                yield client
        except httpx.InvalidURL as error:
            raise CommandError(f"{self.url!r} is no URL: {error}") from None
        except httpx.HTTPError as error:
            raise CommandError(f"no answer from {self.url} ({error}); {START_IT}") from None


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")


def _sentence(answer: "httpx.Response") -> str:
    """A problem's detail, with the fields that it does not name itself."""
    if "json" not in answer.headers.get("content-type", ""):
        return f"{answer.url} answered {answer.status_code} {answer.reason_phrase}; is this Trimtab?"
    problem = answer.json()
    detail = str(problem["detail"])
    fields = [f"{e['field']}: {e['message']}" for e in problem["errors"] if e["message"] not in detail]
    hint = "; the token is in the home's client.json, or give --token" if answer.status_code == 401 else ""
    return "; ".join([detail, *fields]) + hint


def connect(url: str | None, token: str | None, home: Path) -> Connection:
    """The connection that options and environment name, else the one that `trimtab up` wrote down in `home`."""
    from trimtab.api.home import read_access

    access = read_access(home)
    url = url or (access.url if access else None)
    token = token or (access.token if access else None)
    if url is None or token is None:
        missing = "--url" if url is None else "--token"
        raise CommandError(f"nothing is known of an API in {home}; start it with `trimtab up`, or give {missing}")
    return Connection(url.rstrip("/"), token)


def connection(context: typer.Context) -> Connection:
    """The connection of the command that is running."""
    options = context.find_root().params
    return connect(options["url"], options["token"], options["home"])
