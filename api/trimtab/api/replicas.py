"""The same app under Ray Serve: as many replicas as there are people to look on, none of which opens the database.

    serve run trimtab.api.replicas:build home=/shared/trimtab replicas=3 hosts=trimtab.example.org

Each replica has an event hub of its own, and all of them take the tokens of the home, which is a folder that their
nodes share. The controller is started on the head node unless it runs there already. Needs the extra `trimtab[serve]`.
"""

from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.home import TOKENS, Access, admin_token, write_access
from trimtab.api.ray_gateway import RayGateway
from trimtab.api.stream import Hub
from trimtab.api.tokens import Tokens
from trimtab.api.tracing import traced
from trimtab.controller import actor, durable, logs, tracing
from trimtab.controller.home import home
from trimtab.dashboards import STATIC

REQUESTS = 1000  # that a replica answers at once; each open page is one
GOODBYE_S = 5.0  # that a replica which is to end waits for open pages


class Settings(BaseModel):
    """What `serve run` takes as name=value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Field(default_factory=home)
    replicas: int = Field(2, ge=1)
    hosts: str = ""  # names, joined by commas, under which the API may be addressed besides the loopback's
    url: str = "http://127.0.0.1:8000"  # where Serve answers, for tools on this machine


def build(settings: Settings) -> Application:
    """The application for `serve run`; makes the home's first token and writes down in the home how tools get in."""
    folder = settings.home.expanduser().absolute()
    durable.make(folder)
    write_access(folder, Access(settings.url, admin_token(folder, Tokens(folder / TOKENS))))
    names = tuple(filter(None, settings.hosts.split(",")))

    def app() -> FastAPI:
        return replica(folder, names)

    deployed = serve.deployment(
        name="trimtab",
        num_replicas=settings.replicas,
        max_ongoing_requests=REQUESTS,
        graceful_shutdown_timeout_s=GOODBYE_S,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": actor.passed_on()}},
    )
    application: Application = deployed(serve.ingress(app)()).bind()
    return application


def replica(folder: Path, hosts: tuple[str, ...]) -> FastAPI:
    """The app as one replica serves it. Raises RuntimeError where the home is not shared with the replica's node."""
    if not (folder / TOKENS).exists():
        raise RuntimeError(f"there are no tokens in {folder}: replicas need a home that their nodes share")
    logs.configure()
    actor.start(folder)
    gateway = RayGateway()
    app = create_app(gateway, Tokens(folder / TOKENS), Hub(gateway), STATIC, Hosts("127.0.0.1", *hosts))
    return traced(app, tracing.tracer("trimtab-api"))
