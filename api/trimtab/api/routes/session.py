"""The page's session: a token is exchanged for a cookie that no script can read."""

from fastapi import APIRouter, Request, Response

from trimtab.api.auth import COOKIE, unknown
from trimtab.api.context import Ctx
from trimtab.api.forms import SessionForm
from trimtab.api.tokens import SESSION_S

router = APIRouter()


@router.post("/session", status_code=204)
async def sign_in(form: SessionForm, request: Request, response: Response, context: Ctx) -> None:
    """Exchange a token for a session's cookie."""
    identity = context.tokens.identify(form.token)
    if identity is None:
        raise unknown(context, request)
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
