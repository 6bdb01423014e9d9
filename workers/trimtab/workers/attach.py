"""`attach`: steer a training loop that somebody else owns: torchrun's, Ray Train's, or that of any program."""

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from trimtab.controller import actor, hosted, logs
from trimtab.controller.actor import call
from trimtab.controller.connect import connect
from trimtab.controller.controller import Formation, PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.events import RunSpec
from trimtab.controller.home import home as default_home
from trimtab.controller.home import owner
from trimtab.controller.hyperparameters import BATCH, HyperParameter
from trimtab.controller.observation import Horizon
from trimtab.controller.overrides import overrides
from trimtab.controller.policies import Policy
from trimtab.controller.sync import ALLREDUCE, LEARNERS, SYNC, SYNC_PARAMETER, WORKERS
from trimtab.controller.trajectory import LrRule, Progress, Scalar
from trimtab.workers.assignment import Assignment
from trimtab.workers.driver import new_run_id
from trimtab.workers.group import Group
from trimtab.workers.hosted import HostedSession
from trimtab.workers.launch import Given, asked, begun, declared, until
from trimtab.workers.meeting import Meeting
from trimtab.workers.peers import TIMEOUT_S, Peers

T = TypeVar("T")
_ATTACHED = itertools.count()  # all ranks attach equally often


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    name: str | None = None,
    hp: Mapping[str, Given] | None = None,
    policies: Sequence[str | Policy | PolicySpec] = (),
    samples: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    dataset_size: int | None = None,
    micro_batch: int | None = None,
    sync: str | None = None,
    lr_rule: LrRule | None = None,
    lr_exponent: float = 1.0,
    run: str | None = None,
    state: Mapping[str, Any] | None = None,
    address: str | None = None,
    home: Path | None = None,
    find_unused_parameters: bool = False,
) -> HostedSession:
    """Make the hyper-parameters of a loop that is there already live; the processes, the data and the checkpoints stay
    the host's.

    To be called by all ranks, after `init_process_group` where there are several, with the bare model on its device
    and the optimizer of its parameters. A model in DistributedDataParallel is taken out of it, and `session.model`
    reduces the gradients in its place; the host's wrapper must not be used any more. From here on `session.step(loss)`
    stands for backward, clipping, `optimizer.step` and `zero_grad`; the host scales no loss and has no scheduler.

    The host's loader gives micro-batches, all of one size: that of the first, or `micro_batch` [samples a rank], with
    which bad input is refused here and not in the first forward pass. The global batch is `hp["batch_size"]` (one
    micro-batch of each rank if that is not given), rounded to ranks x micro-batch; it changes by accumulation only.
    The run ends at `samples`, `steps` or `epochs` of `dataset_size`, if one is given, or when the host closes it.

    With `run` a run goes on with what it was started with, at the progress that the controller last heard of, or, with
    `state`, at that of a `session.state()` which the host has kept with its model.

    Several ranks need a cluster that runs, at `address` or on this machine (`trimtab up`); one alone starts its own.
    Raises ValueError, RuntimeError, ConnectionError or Refused, on all ranks, before anything is trained.
    """
    wrapped = isinstance(model, DistributedDataParallel)
    module = model.module if isinstance(model, DistributedDataParallel) else model
    device = _device(module)
    told = overrides()
    wanted = _Wanted(
        name=name or Path(sys.argv[0]).stem or "run",
        hp=_values(told.over_hp(hp or {}), sync, wrapped),
        policies=tuple(told.over_policies([asked(policy) for policy in policies])),
        ends=_ends(samples, steps, epochs, dataset_size),
        lr_rule=lr_rule,
        lr_exponent=lr_exponent,
    )
    group = _join(device, address)
    progress = None if state is None else Progress(int(state["steps"]), int(state["samples"]))
    run = run or (str(state["run"]) if state is not None else None)
    host = _host()

    def find() -> tuple[str, RunSpec | None]:
        """The run's id, and what it was started with if it goes on."""
        if not actor.running():
            actor.start(home or default_home())
        if run is not None:
            return run, _going_on(run)
        new = new_run_id(wanted.name)
        call("prepare_policies", new, wanted.policies)
        return new, None

    named, spec = _by_rank_0(group, find)

    def begin(micro: int) -> Assignment:
        def create() -> tuple[RunSpec, Progress, Formation]:
            if spec is None:
                new = wanted.spec(micro, group.size, host)
                call("create_run", named, new, wanted.policies)
            logs.show()
            begun(named)
            told, at = spec or new, progress or call("run", named).progress
            return told, at, call("start_formation", named, group.size, at)

        told, at, formation = _by_rank_0(group, create)
        return Assignment(
            run=named,
            spec=told,
            rank=group.rank,
            world_size=group.size,
            formation=formation.number,
            version=formation.version,
            progress=at,
            checkpoints=Path(),
            checkpoint_steps=None,
            device=str(device),
        )

    unused = find_unused_parameters or (wrapped and bool(model.find_unused_parameters))
    given: dict[str, Scalar] = {p: v.default if isinstance(v, HyperParameter) else v for p, v in wanted.hp.items()}
    session = HostedSession(module, optimizer, named, group, call, begin, given, dataset_size, unused)
    if spec is not None or micro_batch is not None:
        session.begin(spec.micro_batch if spec is not None else micro_batch or 0)
    return session


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a new run is started with, but for the micro-batch."""

    name: str
    hp: Mapping[str, Given]
    policies: tuple[PolicySpec, ...]
    ends: Horizon | None
    lr_rule: LrRule | None
    lr_exponent: float

    def spec(self, micro: int, ranks: int, host: Literal["torchrun", "ray-train", "attached"]) -> RunSpec:
        """Raises ValueError if the batch has no room for a micro-batch of each rank."""
        if micro < 1:
            raise ValueError(f"micro_batch must be at least 1 sample, got {micro}")
        grain = ranks * micro
        parameters = [_batch(p, grain, micro) for p in declared({BATCH: grain, **self.hp}, ranks)]
        return RunSpec(
            name=self.name,
            world_size=ranks,
            parameters=tuple(parameters),
            micro_batch=micro,
            max_micro_batch=micro,
            horizon=self.ends,
            lr_rule=self.lr_rule,
            lr_exponent=self.lr_exponent,
            script=str(Path(sys.argv[0]).absolute()) if sys.argv[0] else "",
            owner=owner(),
            host=host,
        )


def _batch(parameter: HyperParameter, grain: int, micro: int) -> HyperParameter:
    if parameter.name != BATCH:
        return parameter
    first = float(parameter.default)
    if first < grain:
        raise ValueError(
            f"batch_size {first:g} has no room for a micro-batch of {micro} from each of {grain // micro} ranks: raise "
            f"it to {grain}, or let the loader give fewer samples"
        )
    return replace(parameter, min=max(parameter.min or 0, grain))


def _values(hp: Mapping[str, Given], sync: str | None, wrapped: bool) -> dict[str, Given]:
    """`hp` with the strategy. Raises ValueError for what an attached run cannot have."""
    for size in (WORKERS, LEARNERS):
        if size in hp:
            raise ValueError(f"{size} cannot be a hyper-parameter here: the host has started the processes")
    values = {**hp, **({SYNC: sync} if sync is not None else {})}
    if not wrapped:
        return values
    if SYNC in values and values[SYNC] != ALLREDUCE:
        raise ValueError(
            f"sync={values[SYNC]!r} needs the bare model, and this one is in DistributedDataParallel: hand it over "
            "before it is wrapped (Ray Train: prepare_model(model, parallel_strategy=None)), or leave sync at "
            f"{ALLREDUCE!r}"
        )
    return {**values, SYNC: replace(SYNC_PARAMETER, choices=(ALLREDUCE,))}


def _ends(samples: int | None, steps: int | None, epochs: int | None, dataset_size: int | None) -> Horizon | None:
    horizon, passes = until(samples, steps, epochs)
    if passes is None:
        return horizon
    if dataset_size is None:
        raise ValueError("epochs need dataset_size=..., since the host reads the data; or give samples or steps")
    return Horizon(passes * dataset_size)


def _device(module: nn.Module) -> torch.device:
    """Where the model lies. Raises ValueError for models whose parameters are not whole on every rank."""
    from torch.distributed.fsdp import FullyShardedDataParallel  # a second that only a host need wait
    from torch.distributed.tensor import DTensor

    spread = any(isinstance(p, DTensor) for p in module.parameters())
    if spread or isinstance(module, FullyShardedDataParallel | DataParallel):
        raise ValueError(
            f"attach needs a whole model on every rank, got {type(module).__name__} with its parameters spread: give "
            "the bare module or one in DistributedDataParallel"
        )
    trained = next((p for p in module.parameters() if p.requires_grad), None)
    if trained is None:
        raise ValueError("the model has no parameter to train")
    return trained.device


def _host() -> Literal["torchrun", "ray-train", "attached"]:
    if "ray.train" in sys.modules and ray.get_runtime_context().get_actor_id() is not None:
        return "ray-train"
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "attached"


# ---- the other ranks and the controller ----------------------------------------------------------------------------


def _join(device: torch.device, address: str | None) -> Group:
    """Connect to the cluster, and lay this rank's own lines to the others beside the host's process group."""
    if not (dist.is_available() and dist.is_initialized()):
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1:
            raise RuntimeError(
                f"this is one of {world} ranks (WORLD_SIZE), but torch.distributed is not initialised: call "
                "torch.distributed.init_process_group() before attach()"
            )
        return _alone(address)
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        return _alone(address)
    store = PrefixStore(f"trimtab/{next(_ATTACHED)}", _get_default_store())
    trouble = _connect(address)
    troubles = Meeting(PrefixStore("connect", store), rank, size, TIMEOUT_S).gather(trouble)
    if any(troubles):
        raise ConnectionError("; ".join(f"rank {rank}: {told}" for rank, told in enumerate(troubles) if told))
    own = str(ray.util.get_node_ip_address())
    peers = Peers(PrefixStore("peers", store), rank, size, own)
    return Group(1, rank, size, peers, own, looks=device.type == "cpu")


def _alone(address: str | None) -> Group:
    if address is None:
        connect()
    elif trouble := _connect(address):
        raise ConnectionError(trouble)
    return Group.alone()


def _connect(address: str | None) -> str:
    """Connect to a cluster that runs; "", or why that failed."""
    try:
        connect(address, new=False)
    except ConnectionError as error:
        return f"{error}; or with `trimtab up`, or give attach(address=...)"
    return ""


def _by_rank_0(group: Group, body: Callable[[], T]) -> T:
    """What `body` returns or raises on rank 0, on all ranks."""
    told: tuple[T | None, Exception | None] = (None, None)
    if group.rank == 0:
        try:
            told = (body(), None)
        except Exception as error:  # the others wait for it
            told = (None, error)
    value, failed = group.broadcast(told)
    if failed is not None:
        raise failed
    return value  # type: ignore[return-value]  # None only if T is


def _going_on(run: str) -> RunSpec:
    spec: RunSpec = call("spec", run)
    if not spec.host:
        message = f"run {run} has workers of Trimtab's own: go on with `trimtab run --resume {run}`"
        raise Refused(hosted.NOT_WITH_ATTACH, message)
    return spec
