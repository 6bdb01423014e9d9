"""What the app holds and its routes use."""

import time
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from trimtab.api.gateway import Gateway
from trimtab.api.limits import Limits
from trimtab.api.stream import Hub
from trimtab.api.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Context:
    gateway: Gateway
    tokens: Tokens
    hub: Hub
    limits: Limits
    open_metrics: bool = False  # whoever reaches the API may read /metrics
    started: float = field(default_factory=time.monotonic)


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)


Ctx = Annotated[Context, Depends(context_of)]
