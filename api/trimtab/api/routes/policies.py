"""Policies of a run, and the kinds there are."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from trimtab.api.answers import Policies, PolicyKinds
from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import DryRunQuery, KindsQuery, PolicyForm, ReasonQuery, Revision, RevisionOrNone, RunId
from trimtab.controller.controller import PolicySpec
from trimtab.controller.replayed import Candidate, Replayed
from trimtab.controller.views import PolicyView

router = APIRouter()


@router.get("/policy-kinds")
async def list_policy_kinds(query: Annotated[KindsQuery, Query()], context: Ctx) -> PolicyKinds:
    """Every installed kind, and those that came with a run, with the JSON Schema of its parameters."""
    await context.gateway.call("prepare_kinds")
    return PolicyKinds(kinds=await context.gateway.call("policy_kinds", query.run))


@router.get("/runs/{run}/policies")
async def list_policies(run: RunId, context: Ctx) -> Policies:
    return Policies(policies=await context.gateway.call("policies", run))


@router.get("/runs/{run}/policies/{name}")
async def get_policy(run: RunId, name: str, context: Ctx, response: Response) -> PolicyView:
    policy: PolicyView = await context.gateway.call("policy", run, name)
    response.headers["ETag"] = f'"{policy.revision}"'
    return policy


@router.put("/runs/{run}/policies/{name}", responses={201: {"model": PolicyView}})
async def put_policy(
    run: RunId,
    name: str,
    query: Annotated[DryRunQuery, Query()],
    form: PolicyForm,
    seen: RevisionOrNone,
    caller: Caller,
    context: Ctx,
    request: Request,
    response: Response,
) -> PolicyView | Replayed:
    """Install a policy, or edit it; what it remembers is kept. With `dry_run` nothing is changed: the answer is what
    would have been decided on the recorded run, had this policy been there from its start, beside the others as they
    were."""
    wished = PolicySpec(name=name, kind=form.kind, params=form.params)
    await context.gateway.call("prepare_policies", run, [wished])
    put = (run, name, form.kind, form.params, form.mode)
    if query.dry_run:
        await context.gateway.call("check_policy", *put)
        return await context.gateway.replay(run, Candidate(**form.model_dump(exclude={"reason"}), name=name))
    policy: PolicyView
    policy, created = await context.gateway.call("put_policy", *put, caller.name, form.reason, seen)
    response.headers["ETag"] = f'"{policy.revision}"'
    if created:
        response.status_code = 201
        response.headers["Location"] = request.url.path
    return policy


@router.delete("/runs/{run}/policies/{name}", status_code=204)
async def delete_policy(
    run: RunId, name: str, query: Annotated[ReasonQuery, Query()], seen: Revision, caller: Caller, context: Ctx
) -> None:
    """Remove a policy; its factors are folded into the bases, so that no value jumps."""
    await context.gateway.call("delete_policy", run, name, caller.name, query.reason, seen)
