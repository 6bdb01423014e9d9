"""The guard rails around policies: ownership, pins, cool-down, oscillation, bounds, largest ratio."""

import math
from dataclasses import replace

from trimtab.controller.draft import Draft
from trimtab.controller.errors import Refused
from trimtab.controller.hyperparameters import HyperParameter, Parameter, Version, factor_at
from trimtab.controller.observation import Command, Notice, Proposal, Scale, Set, topic
from trimtab.controller.rollback import target
from trimtab.controller.run import PolicyEntry
from trimtab.controller.shadow import Overlay
from trimtab.controller.trajectory import LARGEST, Constant, Coupling, Curve, Progress, Scalar, Trajectory, product
from trimtab.controller.turning import TURNS, WINDOW, wanted

OSCILLATES = "oscillates"  # the code of the refusal that is a fault of the policy as well
REST = 20  # [observations] between two times that a policy gives the same command or notice
CLOSE = 1e-9  # relative; a change by just the largest ratio is not refused for a rounding


def admit(draft: Draft, name: str, entry: PolicyEntry, proposal: Proposal) -> None:
    """Put a policy's proposal into the draft, within the guard rails, or raise Refused."""
    _admit(draft, name, entry, proposal)
    draft.said.add((name, topic(proposal)))


def _admit(draft: Draft, name: str, entry: PolicyEntry, proposal: Proposal) -> None:
    if (name, topic(proposal)) in draft.said:
        raise Refused("said-twice", f"the policy has already had its say on {topic(proposal)}")
    if isinstance(proposal, Command | Notice):
        _check_rest(draft, name, proposal)
    if isinstance(proposal, Command):
        if proposal.command == "rollback" and not entry.active:  # in shadow: nobody knows the branch not taken
            target(draft.run, proposal.step)
        else:
            draft.command(proposal, name)
        return
    if isinstance(proposal, Notice):
        return
    part = "base" if isinstance(proposal, Set) else "factor"
    if entry.policy.writes().get(proposal.param) != part:
        raise Refused("not-declared", f"{name} does not declare that it writes the {part} of {proposal.param}")
    if draft.back is not None and not entry.policy.lasting:
        raise Refused("rolling-back", f"the run goes back to step {draft.back.steps:,}, and {name} with it")
    old = find(draft.version, proposal.param)
    if old.pin is not None:
        raise Refused("pinned", f"{proposal.param} is pinned by {old.pin.by}")
    _check_cooldown(draft, name, old.spec)
    _check_turning(draft, name, proposal)
    new = _set(draft, old, proposal.to) if isinstance(proposal, Set) else _scaled(draft, name, old, proposal.by)
    draft.put(new, name, proposal.reason, proposal.lr_rule)


def adopt(draft: Draft, name: str, overlay: Overlay, by: str) -> None:
    """Put what a policy has set in shadow into force, or raise Refused; under a pin it waits for the pin's end."""
    version = overlay.over(draft.version, name)
    settings, now = version.at(draft.progress), draft.version.at(draft.progress)
    for param in (param for param in overlay.held if param in version.parameters):
        then, before, spec = settings.values[param], now.values[param], version.parameters[param].spec
        if draft.progress.steps and not _within(spec, before, then):
            raise Refused(
                "too-large",
                f"policy {name} would move {param} from {before} to {then} at once, more than {spec.max_ratio:g} times;"
                " delete it and put it anew",
            )
        draft.notes[param] = (by, f"what policy {name} set in shadow comes into force")
    draft.version = replace(draft.version, parameters=version.parameters)


def _within(spec: HyperParameter, before: Scalar, then: Scalar) -> bool:
    if spec.max_ratio is None or isinstance(before, str) or isinstance(then, str) or before == 0:
        return True
    low, high = sorted((before / spec.max_ratio, before * spec.max_ratio))
    return low <= then <= high or any(math.isclose(then, bound, rel_tol=CLOSE) for bound in (low, high))


def _check_cooldown(draft: Draft, name: str, spec: HyperParameter) -> None:
    last = draft.run.changed_at.get(f"{name}/{spec.name}")
    if last is not None and draft.progress.samples - last < spec.cooldown:
        raise Refused("cooling-down", f"{spec.name} rests until sample {last + spec.cooldown:,}")


def _check_rest(draft: Draft, name: str, proposal: Command | Notice) -> None:
    last = draft.run.told_at.get(f"{name}/{topic(proposal)}")
    if last is not None and draft.run.observations - last < REST:
        raise Refused("cooling-down", f"a policy may ask for {topic(proposal)} once in {REST} observations")


def _check_turning(draft: Draft, name: str, proposal: Set | Scale) -> None:
    known, value = draft.run.turnings.get(f"{name}/{proposal.param}"), wanted(proposal)
    if known is not None and value is not None and known.too_often(value, draft.run.observations):
        message = f"{proposal.param} has turned {TURNS} times within {WINDOW} observations: the policy oscillates"
        raise Refused(OSCILLATES, message)


def _set(draft: Draft, old: Parameter, to: Trajectory) -> Parameter:
    spec = old.spec
    if spec.kind == "choice":
        if not isinstance(to, Constant):
            raise Refused("not-a-number", f"{spec.name} is a choice and has no ramps")
        return replace(old, base=Constant(checked(spec, to.value)))
    factors = {name: factor_at(f, draft.progress, draft.batch_size) for name, f in old.factors.items()}
    if isinstance(to, Curve):
        return replace(old, base=_limited(draft, spec, to, product(factors.values())))
    still = product(worth for name, worth in factors.items() if not _moving(old.factors[name], draft.progress))
    if still == 0:
        raise Refused("no-effect", f"a factor of {spec.name} is 0: no base changes its value")
    low, high = spec.bounds
    wanted = Constant(_quotient(min(max(_number(spec, to), low), high), still))
    return replace(old, base=_limited(draft, spec, wanted, product(factors.values())))


def _moving(factor: Trajectory | Coupling, progress: Progress) -> bool:
    return isinstance(factor, Curve) and factor.moving(progress)


def _scaled(draft: Draft, name: str, old: Parameter, by: Trajectory | Coupling) -> Parameter:
    if old.spec.kind == "choice":
        raise Refused("not-a-number", f"{old.spec.name} is a choice and has no factors")
    if isinstance(by, Coupling):
        raise Refused("not-declared", "the coupling to the batch belongs to the run, not to a policy")
    others = [factor_at(f, draft.progress, draft.batch_size) for other, f in old.factors.items() if other != name]
    rest = product([float(old.base.at(draft.progress)), *others])
    return replace(old, factors={**old.factors, name: _limited(draft, old.spec, by, rest)})


def _limited(draft: Draft, spec: HyperParameter, to: Trajectory, rest: float) -> Trajectory:
    """`to`, drawn back so that `to` x `rest` moves the value by at most `max_ratio` in one version.

    There is no limit before the first step, and none for a value that is 0.
    """
    if isinstance(to, Constant):
        to = Constant(_number(spec, to))
    now = float(draft.start.parameters[spec.name].at(draft.progress, draft.start.at(draft.progress).plan.batch_size))
    if spec.max_ratio is None or draft.progress.steps == 0 or now == 0 or rest == 0:
        return to
    low, high = sorted((now / spec.max_ratio, now * spec.max_ratio))
    then = product([float(to.at(draft.progress)), rest])
    if low <= then <= high or any(math.isclose(then, bound, rel_tol=CLOSE) for bound in (low, high)):
        return to
    if isinstance(to, Curve):
        raise Refused("too-large", f"{spec.name} would change more than {spec.max_ratio:g} times at once")
    return Constant(_quotient(min(max(then, low), high), rest))


def _quotient(a: float, b: float) -> float:
    return min(max(a / b, -LARGEST), LARGEST)


def _number(spec: HyperParameter, constant: Constant) -> float:
    if isinstance(constant.value, str):
        raise Refused("not-a-number", f"{spec.name} is a number, got {constant.value}")
    return float(constant.value)


def find(version: Version, param: str) -> Parameter:
    if param not in version.parameters:
        known = ", ".join(version.parameters)
        raise Refused(
            "unknown-parameter", f"no hyper-parameter {param}; there are {known}", {"param": f"there are {known}"}
        )
    return version.parameters[param]


def checked(spec: HyperParameter, value: Scalar) -> Scalar:
    try:
        return spec.check(value)
    except ValueError as error:
        raise Refused("out-of-bounds", str(error), {"value": str(error)}) from None
