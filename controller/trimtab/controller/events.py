"""Events of the journal. The state of a run is their fold (`run.fold`), nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, TypeAdapter

from trimtab.controller.hyperparameters import HyperParameter, Version
from trimtab.controller.observation import Horizon, Observation, Proposal
from trimtab.controller.policies.code import Code, Description, Facts
from trimtab.controller.shadow import Overlay
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import LrRule, Progress, Scalar

Mode = Literal["active", "shadow", "off"]  # in shadow a policy decides, and nothing of it is applied


Cause = Literal["start", "rollback", "resize", "loss"]  # start: in new processes, from a checkpoint or from nothing

ROLLBACK = "rollback"  # a change of this name leads from the step that was left to the checkpoint's
WORLD_SIZE = "world_size"  # a change of this name is a resize


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What a run was started with."""

    name: str
    world_size: int
    parameters: tuple[HyperParameter, ...]
    micro_batch: int  # [samples] a rank and forward pass
    max_micro_batch: int
    horizon: Horizon | None = None
    epochs: int | None = None  # a horizon in passes over the data set, whose size is not known yet
    seed: int = 0
    lr_rule: LrRule | None = None  # None: the optimizer's family decides
    lr_exponent: float = 1.0
    on_resize: Literal["hold", "scale"] = "hold"  # the global batch, or what each rank has of it, when ranks come or go
    script: str = ""  # FILE, or FILE:FUNC
    arguments: tuple[str, ...] = ()  # the script's own
    checkpoints: str = ""  # the directory, which all workers share
    owner: str = ""  # whoever started it
    host: Literal["", "torchrun", "ray-train", "attached"] = ""  # who owns the loop; "": Trimtab's own workers

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"a run needs at least one worker, got {self.world_size}")
        if self.horizon is not None and self.epochs is not None:
            raise ValueError("give the horizon either in epochs or in samples or steps, not twice")
        if not 0 <= self.lr_exponent <= 2:
            raise ValueError(f"lr_exponent must lie in [0, 2], got {self.lr_exponent}")


@dataclass(frozen=True, slots=True)
class Change:
    """One hyper-parameter's change; `before` and `after` are its values at the progress of the decision."""

    param: str
    before: StrictBool | Scalar | None
    after: StrictBool | Scalar | None
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one proposal."""

    policy: str
    proposal: Proposal
    refused: str | None = None  # why, if it was


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a policy in shadow would have changed at one tick, and all that it would have set by then."""

    overlay: Overlay
    changes: tuple[Change, ...]  # of its would-be values


@dataclass(frozen=True, slots=True)
class Created:
    spec: RunSpec
    version: Version
    event: Literal["created"] = "created"


@dataclass(frozen=True, slots=True)
class Linked:
    """A job of Ray's trains the run from here on."""

    job: str  # its submission id
    event: Literal["linked"] = "linked"


@dataclass(frozen=True, slots=True)
class Stated:
    state: RunState
    reason: str = ""
    event: Literal["stated"] = "stated"


@dataclass(frozen=True, slots=True)
class Formed:
    """A worker group began: every rank starts from `version` at `progress`."""

    formation: int
    world_size: int
    progress: Progress
    rolled_back: int = 0  # number of the newest roll back that the ranks have made
    left: Progress | None = None  # where they were, if they have gone back in place
    cause: Cause = "start"
    pause_s: float | None = None  # how long training stood still for a resize or a loss
    lost: int = 0  # ranks
    event: Literal["formed"] = "formed"


@dataclass(frozen=True, slots=True)
class Registered:
    """What only the train function knows: the optimizer's rule for the batch and the size of the data set."""

    lr_rule: LrRule
    dataset_size: int | None
    event: Literal["registered"] = "registered"


@dataclass(frozen=True, slots=True)
class PolicyGiven:
    """A kind of policy came with the job, as a file; it is known in this run only."""

    kind: str
    code: Code
    sha256: str  # of the file's text
    description: Description  # with the default parameters
    by: str
    event: Literal["policy-given"] = "policy-given"


@dataclass(frozen=True, slots=True)
class PolicyPut:
    name: str
    kind: str
    rule: int
    params: Mapping[str, Any]
    mode: Mode
    by: str
    reason: str = ""
    progress: Progress = field(default_factory=Progress)
    facts: Facts | None = None  # of a third-party policy, so that nobody need run it to know them
    event: Literal["policy-put"] = "policy-put"


@dataclass(frozen=True, slots=True)
class PolicyDeleted:
    name: str
    by: str
    reason: str = ""
    progress: Progress = field(default_factory=Progress)
    event: Literal["policy-deleted"] = "policy-deleted"


@dataclass(frozen=True, slots=True)
class Observed:
    """One control tick: what was seen, what each policy proposed and remembers."""

    observation: Observation
    outcomes: tuple[Outcome, ...]
    states: Mapping[str, Mapping[str, Any]]  # of the policies whose state has changed
    faults: Mapping[str, str] = field(default_factory=dict)  # policies that raised, with the message
    estimator: Mapping[str, Any] | None = None  # the noise estimator's sums, to go on from
    shadows: Mapping[str, Shadow] = field(default_factory=dict)  # policies in shadow that proposed something
    event: Literal["observed"] = "observed"


@dataclass(frozen=True, slots=True)
class Versioned:
    version: Version
    changes: tuple[Change, ...]
    progress: Progress
    event: Literal["versioned"] = "versioned"


@dataclass(frozen=True, slots=True)
class Applied:
    """Ranks that began to run with a version: (rank, version, first step)."""

    ranks: tuple[tuple[int, int, int], ...]
    event: Literal["applied"] = "applied"


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """Rank 0's report of a checkpoint, and of those that are kept."""

    step: int
    samples: int
    version: int  # that ruled
    kept: tuple[int, ...]  # steps, oldest first
    event: Literal["checkpointed"] = "checkpointed"


@dataclass(frozen=True, slots=True)
class RollbackFailed:
    """Rank 0's report that all ranks went on instead of going back."""

    number: int  # of the roll back
    progress: Progress
    reason: str
    event: Literal["rollback-failed"] = "rollback-failed"


@dataclass(frozen=True, slots=True)
class Told:
    """What the driver has to say of the run's workers to whoever watches, now or later."""

    message: str
    progress: Progress
    event: Literal["told"] = "told"


Event = (
    Created
    | Linked
    | Stated
    | Formed
    | Registered
    | PolicyGiven
    | PolicyPut
    | PolicyDeleted
    | Observed
    | Versioned
    | Applied
    | Checkpointed
    | RollbackFailed
    | Told
)
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def encode(event: Event) -> str:
    return _ADAPTER.dump_json(event).decode()


def decode(text: str) -> Event:
    return _ADAPTER.validate_json(text)
