"""Authentication: one dependency for every route there is. What is to be open must be named here."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from trimtab.api.context import context_of
from trimtab.api.problems import Failure
from trimtab.api.tokens import Identity, Role

COOKIE = "trimtab_session"
SESSION = "/api/v1/session"
OPEN = frozenset({("GET", "/healthz"), ("GET", "/readyz"), ("POST", SESSION), ("DELETE", SESSION)})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
ASKING = frozenset({"replay_run"})  # routes that have a body to say what is asked, and change nothing
NOBODY = Identity("", Role.VIEWER)

_bearer = HTTPBearer(auto_error=False, description="A token, as tools send it.")
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="A session, which the page gets for a token.")


def authenticated(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> Identity:
    """Who asks; refuses whoever has neither token nor session, or a role that may only read."""
    if (request.method, request.url.path) in OPEN:
        return NOBODY
    tokens = context_of(request).tokens
    identity = tokens.identify(bearer.credentials) if bearer else tokens.of_session(cookie) if cookie else None
    if identity is None:
        raise Failure(401, "unauthenticated", "a valid token is needed")
    reads = request.method in READING or request.scope["route"].name in ASKING
    needed = Role.VIEWER if reads else Role.OPERATOR
    if identity.role < needed:
        raise Failure(403, "forbidden", f"this needs the role {needed.word}, {identity.name} is {identity.role.word}")
    return identity


Caller = Annotated[Identity, Depends(authenticated)]
