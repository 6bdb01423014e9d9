"""The states of a run."""

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands.

    pending     created, its workers not yet asked for
    starting    workers are being placed and the process group is forming
    running     steps are being made
    paused      workers hold at one step, ready to go on
    stopping    a stop was accepted; workers have yet to reach its step
    recovering  a worker was lost; the group is being formed again from the last checkpoint
    finished    ended at its horizon, or because the train function returned
    stopped     ended by a person or a policy
    failed      ended by an error, which `state_reason` tells
    lost        its driver stopped calling; it may be resumed from its last checkpoint
    """

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    RECOVERING = "recovering"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset({RunState.FINISHED, RunState.STOPPED, RunState.FAILED, RunState.LOST})
