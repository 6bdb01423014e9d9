"""Replay: what policies decide on the recorded observations of a run, beside what was decided."""

from fastapi import APIRouter

from trimtab.api.context import Ctx
from trimtab.api.forms import ReplayForm, RunId
from trimtab.controller.replayed import Candidate, Replayed

router = APIRouter()


@router.post("/runs/{run}/replay", name="replay_run")
async def replay(run: RunId, context: Ctx, form: ReplayForm | None = None) -> Replayed:
    """Let the recorded policies decide again, or others in their place; nothing is changed.

    `equal` tells whether the decisions are those recorded; of the recorded policies, to the bit.
    """
    policies = form.policies if form else None
    candidates = None if policies is None else [Candidate(**one.model_dump()) for one in policies]
    return await context.gateway.replay(run, candidates)
