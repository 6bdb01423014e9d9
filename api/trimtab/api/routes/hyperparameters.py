"""Hyper-parameters with their provenance, and the pins that persons hold them with."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import PinForm, ReasonQuery, Revision, RunId
from trimtab.controller.views import HyperParametersView, Pinned

router = APIRouter()


@router.get("/runs/{run}/hyperparameters")
async def get_hyperparameters(run: RunId, context: Ctx, response: Response) -> HyperParametersView:
    """Every value as it is now, and what makes it. The ETag is the revision of the pins."""
    view: HyperParametersView = await context.gateway.call("hyperparameters", run)
    response.headers["ETag"] = f'"{view.revision}"'
    return view


@router.put("/runs/{run}/pins/{param}")
async def put_pin(
    run: RunId, param: str, form: PinForm, seen: Revision, caller: Caller, context: Ctx, response: Response
) -> Pinned:
    """Hold a hyper-parameter at a value, whatever the policies say."""
    answer = await context.gateway.call("pin", run, param, form.value, caller.name, form.reason, seen)
    return _pinned(answer, response)


@router.delete("/runs/{run}/pins/{param}")
async def delete_pin(
    run: RunId,
    param: str,
    query: Annotated[ReasonQuery, Query()],
    seen: Revision,
    caller: Caller,
    context: Ctx,
    response: Response,
) -> Pinned:
    """Give a hyper-parameter back to its policies."""
    answer = await context.gateway.call("unpin", run, param, caller.name, query.reason, seen)
    return _pinned(answer, response)


def _pinned(answer: Pinned, response: Response) -> Pinned:
    response.headers["ETag"] = f'"{answer.revision}"'
    return answer
