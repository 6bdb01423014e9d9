"""Writes the dashboards beside it: `python dashboards/grafana/make.py`. The tests hold them to what /metrics tells."""

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import Dashboard, DataSourceRef, DataTransformerConfig, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE = Path(__file__).parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OURS = "and on (instance) trimtab_controller_up"  # other targets tell of processes too
HALF, WIDE = 12, 24
HEIGHT = 8

Query = tuple[str, str]  # PromQL, and what its series are called


def dashboards() -> dict[str, str]:
    """The JSON of each dashboard, by its file's name."""
    made = {"trimtab.json": overview(), "run.json": run()}
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {name: encoder.encode(one) + "\n" for name, one in made.items()}


def overview() -> Dashboard:
    """Trimtab and its cluster."""
    late = "Time from accepted to applied on all ranks"
    board = _board(
        "Trimtab", "trimtab", "Trimtab and its cluster: what runs, how quickly decisions reach it, what it costs."
    )
    for row, panels in {
        "Now": [
            _figure("Controller", "trimtab_controller_up", "short", "1 where the controller answers."),
            _figure("Running", 'trimtab_runs{state="running"}', "short", "Runs that make steps."),
            _figure("Failed", 'trimtab_runs{state="failed"}', "short", "Runs that an error ended."),
            _figure("Lost", 'trimtab_runs{state="lost"}', "short", "Runs whose driver went silent."),
            _figure(
                "Overhead",
                _per_second("trimtab_rank_control_seconds_total", over="trimtab_rank_step_seconds_total"),
                "percentunit",
                "Share of step time that ranks spend in Trimtab's own work.",
            ),
            _figure("Journal's disk", "trimtab_home_free_bytes / trimtab_home_size_bytes", "percentunit", "Free."),
        ],
        "Decisions": [
            _chart(
                "Decision to applied",
                "s",
                f"{late}, as the controller heard of it.",
                *_quantiles("trimtab_decision_to_applied_seconds"),
            ),
            _chart(
                "Versions and faults",
                "ops",
                "Versions made, and decisions that a policy failed to make.",
                (_per_second("trimtab_versions_total"), "versions"),
                (_per_second("trimtab_policy_faults_total"), "policy faults"),
            ),
            _chart("Time of a tick", "s", "Policies, guard rails and journal.", *_quantiles("trimtab_tick_seconds")),
            _chart("Controller's lag", "s", "How late its loop ran.", *_quantiles("trimtab_controller_lag_seconds")),
        ],
        "Records": [
            _chart(
                "Records",
                "ops",
                "Steps and logged values of ranks. What is dropped steers nothing and is lost.",
                *((_per_second(f"trimtab_records_{name}_total"), name) for name in ("produced", "stored", "dropped")),
            ),
            _chart(
                "Events",
                "ops",
                "Published to the event stream.",
                ("sum by (topic) (rate(trimtab_feed_events_total[$__rate_interval]))", "{{topic}}"),
            ),
            _chart(
                "Processor",
                "percentunit",
                "Of one core.",
                (_per_second("trimtab_controller_cpu_seconds_total"), "controller"),
                (f"rate(process_cpu_seconds_total[$__rate_interval]) {OURS}", "API"),
                (_per_second("trimtab_ingest_seconds_total"), "taking in records"),
            ),
            _chart(
                "Memory and journal",
                "bytes",
                "",
                ("trimtab_controller_memory_peak_bytes", "controller, at most"),
                (f"process_resident_memory_bytes {OURS}", "API"),
                ("trimtab_journal_size_bytes", "journal"),
            ),
        ],
        "Cluster": [
            _chart("Runs", "short", "By state.", ("trimtab_runs > 0", "{{state}}")),
            _chart(
                "In use",
                "percentunit",
                "Of what each node has.",
                (
                    '1 - trimtab_node_resource_free{resource=~"CPU|GPU"} / trimtab_node_resource_capacity',
                    "{{node}} {{resource}}",
                ),
            ),
            _chart(
                "Draining",
                "short",
                "1 on a node that is about to be taken away.",
                ("trimtab_node_draining", "{{node}}"),
            ),
            _chart("Event streams", "short", "Clients that listen.", ("trimtab_event_stream_clients", "clients")),
        ],
        "Live runs": [_table()],
    }.items():
        _add(board, row, panels)
    return board.build()


def run() -> Dashboard:
    """One run."""
    board = _board("Trimtab run", "trimtab-run", "One run: what it learns, with which values, on how many ranks.")
    board = board.with_variable(
        dashboard.QueryVariable("run")
        .label("Run")
        .datasource(SOURCE)
        .query("label_values(trimtab_run_step, run)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    _add(
        board,
        "Training",
        [
            _chart("Loss", "short", "", *_of_run("loss")),
            _chart("Steps", "ops", "Steps a second.", *_of_run("steps_per_second")),
            _chart("Samples", "short", "Consumed.", *_of_run("samples")),
            _chart("Step", "short", "Steps made; it falls where the run goes back to a checkpoint.", *_of_run("step")),
        ],
    )
    _add(
        board,
        "Values in force",
        [
            _chart(
                "Batch and noise scale",
                "short",
                "Samples. Above the noise scale a larger batch gains little.",
                *_of_run("batch_size", "noise_scale"),
            ),
            _chart("Learning rate", "short", "", *_of_run("learning_rate")),
            _chart("Ranks", "short", "That train together.", *_of_run("world_size")),
            _chart(
                "Versions",
                "short",
                "The newest, and the newest that a rank runs with.",
                *_of_run("version", "applied_version"),
            ),
        ],
    )
    _add(
        board,
        "Trimtab itself",
        [
            _chart(
                "Overhead",
                "percentunit",
                "Share of step time that ranks spend in Trimtab's own work.",
                *_of_run("overhead_ratio"),
            ),
            _chart(
                "Dropped records",
                "ops",
                "",
                ('rate(trimtab_run_records_dropped_total{run="$run"}[$__rate_interval])', "dropped"),
            ),
        ],
    )
    return board.build()


def _board(title: str, uid: str, told: str) -> dashboard.Dashboard:
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    board = dashboard.Dashboard(title).uid(uid).description(told).tags(["trimtab"]).refresh("10s")
    return board.time("now-1h", "now").timezone("browser").editable().with_variable(source)


def _add(board: dashboard.Dashboard, title: str, panels: list) -> None:  # type: ignore[type-arg]
    board.with_row(dashboard.Row(title).id(_next(board)))
    for panel in panels:
        board.with_panel(panel.id(_next(board)))


def _next(board: dashboard.Dashboard) -> int:
    """The id of the panel that comes next: Grafana wants each its own."""
    return len(board.build().panels or []) + 1


def _per_second(counter: str, over: str = "") -> str:
    rate = f"sum(rate({counter}[$__rate_interval]))"
    return f"{rate} / sum(rate({over}[$__rate_interval]))" if over else rate


def _quantiles(histogram: str) -> list[Query]:
    rate = f"sum by (le) (rate({histogram}_bucket[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{name}") for q, name in ((0.5, "median"), (0.95, "95 %"))]


def _of_run(*names: str) -> list[Query]:
    return [(f'trimtab_run_{name}{{run="$run"}}', name.replace("_", " ")) for name in names]


def _query(query: Query) -> prometheus.Dataquery:
    promql, name = query
    return prometheus.Dataquery().expr(promql).legend_format(name).datasource(SOURCE)


def _chart(title: str, unit: str, told: str, *queries: Query) -> timeseries.Panel:
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    panel = timeseries.Panel().title(title).description(told).unit(unit).datasource(SOURCE).legend(legend)
    panel = panel.min(0).span(HALF).height(HEIGHT) if title != "Loss" else panel.span(HALF).height(HEIGHT)
    for number, query in enumerate(queries):
        panel = panel.with_target(_query(query).ref_id(chr(ord("A") + number)))
    return panel


def _figure(title: str, promql: str, unit: str, told: str) -> stat.Panel:
    last = ReduceDataOptions().calcs(["lastNotNull"])
    panel = stat.Panel().title(title).description(told).unit(unit).datasource(SOURCE).reduce_options(last)
    return panel.span(WIDE // 6).height(4).with_target(_query((promql, "")).ref_id("A"))


def _table() -> table.Panel:
    panel = table.Panel().title("Runs that go on").datasource(SOURCE).span(WIDE).height(HEIGHT)
    for number, name in enumerate(("step", "steps_per_second", "loss", "batch_size", "learning_rate", "world_size")):
        query = _query((f"trimtab_run_{name}", name)).instant().format(PromQueryFormat.TABLE)
        panel = panel.with_target(query.ref_id(chr(ord("A") + number)))
    merge = DataTransformerConfig(id_val="merge", options={})  # one row a run
    hide = DataTransformerConfig(
        id_val="organize", options={"excludeByName": dict.fromkeys(("Time", "__name__", "instance", "job"), True)}
    )
    return panel.with_transformation(merge).with_transformation(hide)


if __name__ == "__main__":
    for name, text in dashboards().items():
        (HERE / name).write_text(text)
        sys.stdout.write(f"{HERE / name}\n")
