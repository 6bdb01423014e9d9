"""What is checked before any route: who is addressed, where a change comes from, what it carries; and headers set.

Against DNS rebinding the Host must be one of ours; against forged requests an unsafe verb must come from our own
page or from no browser at all; a body must be JSON of a sane size.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.api.problems import Failure, answer

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MAX_BODY = 1 << 20  # [bytes]
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Hosts:
    """The names under which the API may be addressed.

    Where it listens beyond the loopback any IP address is fine too: a rebinding attack needs a name of its own.
    """

    def __init__(self, listening: str, *names: str) -> None:
        self._names = {"localhost", "127.0.0.1", "::1", listening, *names}
        self._beyond_loopback = not is_loopback(listening)

    def __contains__(self, header: str) -> bool:
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        return name in self._names or (self._beyond_loopback and _is_address(name))


def is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """ASGI middleware around the whole app, page included."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no websockets here; the server closes the connection

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                if scope["path"].startswith("/api"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except Failure as failure:
            refusal = answer(failure.status, failure.code, failure.detail, headers={"Connection": "close"})
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if host not in self._hosts:
            told = (
                f"this server does not answer for the host {host!r}; if it is yours, `trimtab up --allow-host` names it"
            )
            raise Failure(403, "host-not-allowed", told)
        if method in UNSAFE:
            _check_origin(headers, host)
            _check_body(headers)


def _check_origin(headers: Headers, host: str) -> None:
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Failure(403, "cross-site", f"changes are not taken from the origin {origin!r}")
    site = headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none"):
        raise Failure(403, "cross-site", f"changes are not taken from a {site} page")


def _check_body(headers: Headers) -> None:
    if "transfer-encoding" in headers:
        raise Failure(411, "length-required", "send the body with its Content-Length")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise Failure(413, "too-large", f"a body may have {MAX_BODY:,} bytes, this one has {length}")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if int(length) and media_type != "application/json":
        raise Failure(415, "unsupported-media-type", f"send application/json, not {media_type or 'an untyped body'}")
