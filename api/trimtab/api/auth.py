"""Authentication: one dependency for every route there is. What is to be open must be named here."""

import math
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from trimtab.api.context import Context, context_of
from trimtab.api.limits import network
from trimtab.api.problems import Failure
from trimtab.api.tokens import Identity, Role

COOKIE = "trimtab_session"
SESSION = "/api/v1/session"
SCRAPED = "/metrics"  # open where the operator has said so
OPEN = frozenset({("GET", "/healthz"), ("GET", "/readyz"), ("POST", SESSION), ("DELETE", SESSION)})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
STEERING = (
    *("put_pin", "delete_pin", "put_policy", "delete_policy", "rollback_run"),
    *("pause_run", "resume_run", "stop_run", "checkpoint_run", "decay_run"),
)
ROLES = {  # by a route's name, where it is not as for most: whoever reads is a viewer, all else is for admins
    **dict.fromkeys(("compare_metrics", "replay_run"), Role.VIEWER),  # their bodies say what is asked; nothing changes
    "list_tokens": Role.ADMIN,
    **dict.fromkeys(STEERING, Role.OPERATOR),
}
NOBODY = Identity("", Role.VIEWER)

_bearer = HTTPBearer(auto_error=False, description="A token, as tools send it.")
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="A session, which the page gets for a token.")


async def authenticated(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> Identity:
    """Who asks; refuses whoever has neither token nor session, whose role is too low, or who asks too often."""
    context = context_of(request)
    if (request.method, request.url.path) in OPEN or (context.open_metrics and request.url.path == SCRAPED):
        _limit(context.limits.requests.take(address(request)))
        return NOBODY
    tokens = context.tokens
    identity = tokens.identify(bearer.credentials) if bearer else tokens.of_session(cookie) if cookie else None
    if identity is None:
        raise unknown(context, request) if bearer or cookie else Failure(401, *UNKNOWN)
    _limit(context.limits.requests.take(identity.name))
    needed = role_for(request.scope["route"].name, request.method)
    if identity.role < needed:
        raise Failure(403, "forbidden", f"this needs the role {needed.word}, {identity.name} is {identity.role.word}")
    return identity


UNKNOWN = ("unauthenticated", "a valid token is needed")


def role_for(route: str, method: str) -> Role:
    """The least role that a route asks for."""
    return ROLES.get(route, Role.VIEWER if method in READING else Role.ADMIN)


def unknown(context: Context, request: Request) -> Failure:
    """The refusal of a token or session that is not known; of too many of them, from one place, another."""
    wait_s = context.limits.failures.take(address(request))
    return _too_many(wait_s, "failed attempts to authenticate from here") if wait_s else Failure(401, *UNKNOWN)


def address(request: Request) -> str:
    """Where a request comes from, as far as limits go."""
    return network(request.client.host) if request.client else ""


def _limit(wait_s: float) -> None:
    if wait_s:
        raise _too_many(wait_s, "requests")


def _too_many(wait_s: float, what: str) -> Failure:
    return Failure(
        429, "too-many-requests", f"too many {what}; wait for {wait_s:.1f} s", retry_after_s=math.ceil(wait_s)
    )


Caller = Annotated[Identity, Depends(authenticated)]
