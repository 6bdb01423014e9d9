"""For probes, open to all: is the API up, does the controller answer? And for readers, how everything fares."""

from fastapi import APIRouter

from trimtab.api.answers import Health, SystemHealth
from trimtab.api.context import Ctx
from trimtab.api.health import gather

router = APIRouter()
system = APIRouter()


@router.get("/healthz")
async def health() -> Health:
    return Health()


@router.get("/readyz")
async def readiness(context: Ctx) -> Health:
    await context.gateway.ready()
    return Health()


@system.get("/health")
async def system_health(context: Ctx) -> SystemHealth:
    """How the controller, the API, the cluster and the runs that go on fare; what does not answer is null."""
    return await gather(context)
