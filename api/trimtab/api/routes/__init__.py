"""The routes, one file a resource."""

from fastapi import APIRouter

from trimtab.api.routes import (
    about,
    events,
    health,
    hyperparameters,
    jobs,
    metrics,
    policies,
    prometheus,
    replay,
    runs,
    session,
    tokens,
)

ROOT = "/api/v1"


def router() -> APIRouter:
    """All routes there are."""
    every = APIRouter()
    every.include_router(health.router, tags=["health"])
    every.include_router(prometheus.router)
    for resource in (about, session, jobs, runs, hyperparameters, policies, replay, metrics, events, tokens):
        every.include_router(resource.router, prefix=ROOT, tags=[resource.__name__.rpartition(".")[-1]])
    every.include_router(health.system, prefix=ROOT, tags=["health"])
    return every
