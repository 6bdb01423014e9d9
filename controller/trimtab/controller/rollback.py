"""A roll back: what a checkpoint brings back of a run's values, and what of the present stays.

The bases and factors return as they were at the checkpoint, and with them what policies remember and the noise
estimator's sums: all of it was learnt on the branch that is left. What people have asked for stays as it is now: pins,
declarations, which policies there are and in which mode, pause, the wish to decay. So does what a policy that outlasts
roll backs has written; else it could not count them. What a policy that is active by now had set in shadow at the
checkpoint is in force after the roll back, for its memory counts on that.
"""

from collections.abc import Mapping
from dataclasses import replace

from trimtab.controller import hosted
from trimtab.controller.errors import Refused
from trimtab.controller.hyperparameters import COUPLED, Parameter, Version, folded
from trimtab.controller.run import Checkpoint, Run
from trimtab.controller.shadow import Held
from trimtab.controller.trajectory import Progress


def target(run: Run, step: int | None) -> Checkpoint:
    """The checkpoint of `step` (None: the newest). Raises Refused where the run cannot go back to it now."""
    if run.version.stopped:
        raise Refused("run-stopping", "the run is stopping; resume it first")
    if run.rolling_back is not None:
        raise Refused("rolling-back", f"the run is already going back to step {run.rolling_back.step:,}")
    return kept(run, step)


def kept(run: Run, step: int | None) -> Checkpoint:
    """The checkpoint of `step` (None: the newest). Raises Refused where none is kept."""
    hosted.check(run.spec, hosted.ROLLBACK)
    if not run.checkpoints:
        raise Refused("no-checkpoint", "the run has kept no checkpoint yet: there is nothing to go back to")
    found = {one.step: one for one in run.checkpoints}
    if step is None:
        return run.checkpoints[-1]
    if step not in found:
        message = f"no checkpoint of step {step:,} is kept; there are those of {', '.join(f'{s:,}' for s in found)}"
        raise Refused("checkpoint-not-kept", message, {"step": message})
    return found[step]


def restored(run: Run, now: Version, to: Checkpoint) -> Mapping[str, Parameter]:
    """The parameters of `now` with the values that they had at the checkpoint."""
    return {name: _restored(run, one, to) for name, one in now.parameters.items()}


def _restored(run: Run, now: Parameter, to: Checkpoint) -> Parameter:
    name = now.spec.name
    then = to.version.parameters.get(name)
    if then is None:  # declared since
        return now
    lasting = {policy for policy, entry in run.policies.items() if entry.policy.lasting}
    factors = {policy: factor for policy, factor in then.factors.items() if policy not in lasting}
    factors |= {policy: factor for policy, factor in now.factors.items() if policy in lasting}
    parameter = replace(now, base=now.base if run.owner(name) in lasting else then.base, factors=factors)
    for policy in factors.keys() - lasting - {COUPLED}:
        if not run.remembers(policy, to):  # gone since, or another kind: nobody would own the factor
            parameter = folded(parameter, policy, Progress(to.step, to.samples))
    for policy, held in adopted(run, name, to).items():
        parameter = held.over(parameter, policy)
    return parameter


def adopted(run: Run, param: str, to: Checkpoint) -> Mapping[str, Held]:
    """What policies that are active by now had made of a parameter in shadow, by their name."""
    return {
        name: to.policies[name].overlay.held[param]
        for name, entry in run.policies.items()
        if entry.mode == "active" and not entry.policy.lasting and run.remembers(name, to)
        if param in to.policies[name].overlay.held
    }
