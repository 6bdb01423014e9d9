"""Is the API up, and does the controller answer? For probes; open to all, and it tells nothing else."""

from fastapi import APIRouter

from trimtab.api.answers import Health
from trimtab.api.context import Ctx

router = APIRouter()


@router.get("/healthz")
async def health() -> Health:
    return Health()


@router.get("/readyz")
async def readiness(context: Ctx) -> Health:
    await context.gateway.ready()
    return Health()
