"""Tokens: who may come in, as what, until when. For admins."""

import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path

from trimtab.api.answers import NewToken, Tokens, TokenView
from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import TOKEN_NAME, TokenForm
from trimtab.api.problems import Failure
from trimtab.api.tokens import Identity, Role

router = APIRouter()


@router.get("/tokens")
async def list_tokens(context: Ctx) -> Tokens:
    return Tokens(tokens=[_view(identity) for identity in context.tokens])


@router.post("/tokens", status_code=201)
async def create_token(form: TokenForm, caller: Caller, context: Ctx) -> NewToken:
    """Make a token, which is shown this once; only its hash is kept."""
    role = Role[form.role.upper()]
    expires = form.expires.timestamp() if form.expires else None
    if expires is not None and expires <= time.time():
        raise Failure(422, "invalid-parameters", "expires: must lie ahead", {"expires": "must lie ahead"})
    token = context.tokens.new(form.name, role, expires, caller.name, replace=False)
    identity = next(one for one in context.tokens if one.name == form.name)
    return NewToken(**_view(identity).model_dump(), token=token)


@router.delete("/tokens/{token}", status_code=204)
async def delete_token(
    token: Annotated[str, Path(pattern=TOKEN_NAME, description="Its name.")], caller: Caller, context: Ctx
) -> None:
    """End a token, with its sessions and event streams, at once."""
    context.tokens.remove(token, caller.name)


def _view(identity: Identity) -> TokenView:
    expires = datetime.fromtimestamp(identity.expires, UTC) if identity.expires else None
    return TokenView(
        name=identity.name,
        role=identity.role.word,
        created=datetime.fromtimestamp(identity.created, UTC) if identity.created else None,
        expires=expires,
    )
