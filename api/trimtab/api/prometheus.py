"""The health of everything in the words of Prometheus: base units, counters that end in `_total`, HELP and TYPE."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from trimtab.api.answers import NodeHealth, SystemHealth
from trimtab.controller.health import ControllerHealth, HomeHealth, RunHealth, TimingsView


def render(health: SystemHealth, accept: str) -> tuple[bytes, str]:
    """The text, as the scraper asks for it in `accept`, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Collected(health))
    ProcessCollector(registry=registry)  # process_…: the API's own
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collected(Collector):
    def __init__(self, health: SystemHealth) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        health, controller = self._health, self._health.controller
        yield InfoMetricFamily("trimtab_build", "What runs here.", value=health.software.model_dump())
        yield gauge("trimtab_controller_up", "1 where the controller answers.", controller is not None)
        yield gauge("trimtab_api_uptime_seconds", "Since the API was started.", health.api.uptime_s)
        yield gauge("trimtab_event_stream_clients", "Open event streams.", health.api.stream_clients)
        if controller is not None:
            yield from _controller(controller)
            yield from _runs(controller.live)
        if health.home is not None:
            yield from _home(health.home)
        if health.nodes is not None:
            yield from _nodes(health.nodes)


def _controller(of: ControllerHealth) -> Iterator[Metric]:
    yield gauge("trimtab_controller_term", "Raised at every start of a controller.", of.term)
    yield gauge("trimtab_controller_uptime_seconds", "Since the controller was started.", of.uptime_s)
    yield counter("trimtab_controller_cpu_seconds", "Processor time of the controller.", of.cpu_s)
    yield histogram("trimtab_controller_lag_seconds", "How late the controller's loop ran, once a second.", of.lag)
    yield histogram(
        "trimtab_decision_to_applied_seconds",
        "From accepted to applied on all ranks, as the controller heard of it; ranks tell every 0.25 s.",
        of.decision_to_applied,
    )
    yield histogram("trimtab_tick_seconds", "A control tick: policies, guard rails, journal.", of.tick)
    yield counter("trimtab_ingest_seconds", "Time spent taking in records.", of.ingest_s)
    what = "Steps and logged values of ranks"
    yield counter("trimtab_records_produced", f"{what}.", of.records.produced)
    yield counter("trimtab_records_stored", f"{what} that were taken in.", of.records.stored)
    yield counter("trimtab_records_dropped", f"{what} that were let go, or came too late.", of.records.dropped)
    yield counter("trimtab_points", "Values of metrics made of the records.", of.points)
    yield counter("trimtab_rank_step_seconds", "Step time, added up over ranks.", of.training_s)
    yield counter("trimtab_rank_control_seconds", "Step time spent in Trimtab's own work, over ranks.", of.control_s)
    events = CounterMetricFamily("trimtab_feed_events", "Events published, by topic.", labels=["topic"])
    for topic, count in of.events.items():
        events.add_metric([topic], count)
    yield events
    runs = GaugeMetricFamily("trimtab_runs", "Runs, by state.", labels=["state"])
    for state, count in of.runs.items():
        runs.add_metric([state], count)
    yield runs
    yield counter("trimtab_versions", "Versions of all runs since the journal began.", of.versions)
    yield counter("trimtab_policy_faults", "Decisions that a policy failed to make.", of.policy_faults)
    yield gauge("trimtab_runs_omitted", "Live runs beyond those that are told of one by one.", of.live_omitted)


def _runs(live: list[RunHealth]) -> Iterator[Metric]:
    """The runs that have not ended, one series each."""
    figures: Mapping[str, tuple[str, Sequence[float | None]]] = {
        "step": ("Steps made.", [run.step for run in live]),
        "samples": ("Samples consumed.", [run.samples for run in live]),
        "steps_per_second": ("Over the last ten seconds.", [run.steps_per_s for run in live]),
        "loss": ("The newest.", [run.loss for run in live]),
        "batch_size": ("Global batch, in samples.", [run.batch_size for run in live]),
        "learning_rate": ("In force.", [run.lr for run in live]),
        "world_size": ("Ranks that train together.", [run.world_size for run in live]),
        "noise_scale": ("Gradient noise scale, in samples.", [run.noise_scale for run in live]),
        "overhead_ratio": ("Share of step time spent in Trimtab's own work.", [run.overhead for run in live]),
        "version": ("The newest version.", [run.version for run in live]),
        "applied_version": ("The newest version that a rank runs with.", [run.applied_version for run in live]),
        "policies_disabled": ("Policies that have failed too often to be asked.", [run.disabled for run in live]),
    }
    for name, (told, values) in figures.items():
        family = GaugeMetricFamily(f"trimtab_run_{name}", told, labels=["run"])
        for run, value in zip(live, values, strict=True):
            if value is not None:
                family.add_metric([run.id], value)
        yield family
    counted = {
        "records_dropped": ("Records let go, or too late.", [run.dropped for run in live]),
        "proposals_refused": ("Proposals that the guard rails did not let through.", [run.refused for run in live]),
    }
    for name, (told, counts) in counted.items():
        counters = CounterMetricFamily(f"trimtab_run_{name}", told, labels=["run"])
        for run, count in zip(live, counts, strict=True):
            counters.add_metric([run.id], count)
        yield counters


def _home(of: HomeHealth) -> Iterator[Metric]:
    yield gauge(
        "trimtab_controller_memory_peak_bytes", "Largest resident memory of the controller.", of.memory_peak_bytes
    )
    yield gauge("trimtab_journal_size_bytes", "The journal on disk.", of.journal_bytes)
    yield gauge("trimtab_home_free_bytes", "Free on the disk that holds the home.", of.disk_free_bytes)
    yield gauge("trimtab_home_size_bytes", "Size of the disk that holds the home.", of.disk_total_bytes)


def _nodes(nodes: Iterable[NodeHealth]) -> Iterator[Metric]:
    up = GaugeMetricFamily("trimtab_node_draining", "1 on a node that is about to be taken away.", labels=["node"])
    total = GaugeMetricFamily("trimtab_node_resource_capacity", "As Ray counts it.", labels=["node", "resource"])
    free = GaugeMetricFamily("trimtab_node_resource_free", "As Ray counts it.", labels=["node", "resource"])
    for node in nodes:
        name = f"{node.host}/{node.id[:8]}"
        up.add_metric([name], node.draining)
        for resource, amount in node.resources.items():
            total.add_metric([name, resource], amount.total)
            free.add_metric([name, resource], amount.free)
    yield from (up, total, free)


def gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)


def counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(name, told, value=value)


def histogram(name: str, told: str, of: TimingsView) -> Metric:
    buckets = [*((one.le, one.count) for one in of.buckets), (math.inf, of.count)]
    return HistogramMetricFamily(name, told, [(_bound(le), count) for le, count in buckets], of.sum_s)


def _bound(le: float) -> str:
    return "+Inf" if math.isinf(le) else f"{le:g}"
