"""Who am I, and the page's session: a token is exchanged for a cookie that no script can read."""

from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from trimtab.api.answers import About
from trimtab.api.auth import COOKIE, Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import SessionForm
from trimtab.api.problems import Failure
from trimtab.api.responses import StrictJSON
from trimtab.api.tokens import SESSION_S

router = APIRouter()


@router.get("/version")
async def about(caller: Caller) -> About:
    """The version of Trimtab and the role of whoever asks."""
    return About(version=version("trimtab"), role=caller.role.word)


@router.post("/session", status_code=204)
async def sign_in(form: SessionForm, request: Request, response: Response, context: Ctx) -> None:
    """Exchange a token for a session's cookie."""
    identity = context.tokens.identify(form.token)
    if identity is None:
        raise Failure(401, "unauthenticated", "this token is not known here", {"token": "not known"})
    response.set_cookie(
        COOKIE,
        context.tokens.open_session(identity),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


@router.delete("/session", status_code=204)
async def sign_out(response: Response) -> None:
    """Forget the session's cookie."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return StrictJSON(request.app.openapi())
