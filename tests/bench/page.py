"""How quick the page is, in real Chromium, and how quick MLflow's and TensorBoard's are on the same points.

The page is served over recorded runs by the real app and reader, without Ray, from a process of its own.

* `open_ms`: from the start of the navigation until the charts in the window of a run of 1,000,000 steps × 20 metrics
  look as they will; median of `--repeats`, each in a browser context that has nothing cached.
* `frame_p95_ms`: the time between two frames while a run of 100,000 steps, all of them in the window of every chart,
  grows by 25 steps four times a second; `frame_max_ms` the longest, `task_max_ms` the longest task meanwhile.
* `many_open_ms`, `many_task_max_ms`: a run with 2,000 metrics is opened, scrolled and filtered: until its first charts
  are drawn, and the longest task of all that.
* `bundle_gzip_kb`: what any view needs (script, what it preloads, styles); `run_gzip_kb`: what the run's view adds.
* `peers`: until the charts of a finished run of 100,000 steps × 5 metrics look as they will, in this page (`trimtab`),
  in MLflow's (SQLite behind it) and in TensorBoard's time series. MLflow and TensorBoard are installed from PyPI into a
  virtual environment beside the temporary files, once.

"Look as they will" is seen from outside, the same for all: the browser's frames are recorded while the page loads, and
the first that hardly differs from the last counts. Frames come at most every 16 ms, later where the browser is busy.

    python tests/bench/page.py [--repeats 5] [--no-peers] [--seed 0]
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from stats import report, say

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
sys.path.insert(0, str(Path(__file__).parents[1] / "dashboards"))

from chromium import launch
from plain import LocalGateway, PlainJobServer

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.serving import Server, bind
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens
from trimtab.controller.controller import Controller
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import MemoryJournal
from trimtab.controller.metrics import Block, MetricWriter
from trimtab.controller.records import COLUMNS, Records
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress
from trimtab.dashboards import STATIC

LARGE, LONG, MANY, SAME = "large-0001", "long-0001", "many-0001", "same-0001"
ROWS = 256  # as the controller's writer gathers them
BATCH = 64
STEP_S = 0.02
GROWS, GROWS_S = 25, 0.25
WATCHED_S = 15.0
WIDTH, HEIGHT = 720, 450  # of the pictures taken
QUIET_S = 2.5  # nothing changes for so long: the page is done
GIVE_UP_S = 60.0
START_S = 180.0  # MLflow brings much along
ALIKE = 0.002  # mean difference of two frames, of what white and black differ by
TARGETS = {"open_ms": 1500.0, "frame_p95_ms": 20.0, "bundle_gzip_kb": 60.0}
PEERS = Path(tempfile.gettempdir()) / "trimtab-bench-page"
NAMES = ("loss", "val_loss", "step_time", "grad_norm", "data_time", "reduce_time", "hp/lr", "hp/batch_size")


def main() -> None:
    options = parse()
    if options.serve:
        asyncio.run(serve(options.serve, options.seed))
        return
    with (
        tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder,
        trimtab(Path(folder), options.seed) as door,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        figures = measure(browser, door, options)
        figures["peers"] = {"trimtab": drawn_ms(browser, door, f"/runs/{SAME}", options.repeats)}
        if not options.no_peers:
            figures["peers"] |= peers(browser, Path(folder), options)
        browser.close()
    met = all(figures[name] <= target for name, target in TARGETS.items())
    report("page", **figures, target_met=met, seed=options.seed)


def measure(browser: Browser, door: str, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"open_ms": drawn_ms(browser, door, f"/runs/{LARGE}", options.repeats)}
    say(f"a run of 1,000,000 steps × 20 metrics: {figures['open_ms']:.0f} ms")
    figures |= frames(browser, door)
    say(f"growing: frames {figures['frame_p95_ms']:.1f} ms at p95, {figures['frame_max_ms']:.1f} ms at most")
    figures |= many(browser, door)
    say(f"2,000 metrics: {figures['many_open_ms']:.0f} ms, longest task {figures['many_task_max_ms']:.0f} ms")
    return figures | bundle()


# ---- until a page looks as it will -------------------------------------------------------------------------------


def drawn_ms(browser: Browser, door: str, path: str, repeats: int) -> float:
    """Of a view of Trimtab's page, signed in, with an empty cache."""
    url = door.partition("/#")[0]

    def once() -> float:
        with signed_in(browser, door) as context:
            return watch(context, url + path)

    return median(once, repeats, path)


def median(once: Callable[[], float], repeats: int, what: str) -> float:
    found = [once() for _ in range(repeats)]
    say(f"{what}: {', '.join(f'{one:.0f}' for one in found)} ms")
    return float(np.median(found))


@contextmanager
def signed_in(browser: Browser, door: str) -> Iterator[BrowserContext]:
    """A context with the session's cookie and nothing in its cache."""
    url, _, token = door.partition("/#token=")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.request.post(f"{url}/api/v1/session", data={"token": token})
    yield context
    context.close()


def watch(context: BrowserContext, url: str, ready: str = "canvas, svg") -> float:
    """From the start of the navigation to `url` until the window looks as it will [ms]."""
    page = context.new_page()
    frames: list[tuple[float, str]] = []
    cdp = context.new_cdp_session(page)

    def keep(frame: dict[str, Any]) -> None:
        frames.append((frame["metadata"]["timestamp"], frame["data"]))
        cdp.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    cdp.on("Page.screencastFrame", keep)
    # Small pictures: to take them must not hold up what they are of.
    cdp.send("Page.startScreencast", {"format": "jpeg", "quality": 60, "maxWidth": WIDTH, "maxHeight": HEIGHT})
    page.goto(url, wait_until="commit")
    start = float(page.evaluate("performance.timeOrigin")) / 1e3
    page.wait_for_selector(ready, state="attached", timeout=GIVE_UP_S * 1e3)
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        seen = len(frames)
        page.wait_for_timeout(QUIET_S * 1e3)
        if len(frames) == seen:
            break
    cdp.send("Page.stopScreencast")
    page.goto("about:blank")
    differences = page.evaluate(DIFFERENCES, [[picture for _, picture in frames], WIDTH, HEIGHT])
    page.close()
    different = [i for i, one in enumerate(differences) if one > ALIKE]
    return 1e3 * (frames[different[-1] + 1 if different else 0][0] - start)


# How much each picture differs from the last: the mean over pixels and colours, 1 where one is white and one black.
DIFFERENCES = """
async ([pictures, width, height]) => {
  const pixels = async (jpeg) => {
    const image = await createImageBitmap(await (await fetch(`data:image/jpeg;base64,${jpeg}`)).blob());
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
  const last = await pixels(pictures.at(-1));
  const all = [];
  for (const one of pictures) {
    const these = await pixels(one);
    let sum = 0;
    for (let i = 0; i < last.length; i++) sum += Math.abs(these[i] - last[i]);
    all.push(sum / (last.length * 0.75) / 255);
  }
  return all;
}
"""


# ---- frames, tasks, sizes ----------------------------------------------------------------------------------------

TASKS = """
window.tasks = []; window.gaps = [];
new PerformanceObserver((all) => tasks.push(...all.getEntries().map((one) => one.duration)))
  .observe({ type: "longtask", buffered: true });
let before = 0;
const frame = (now) => { if (before) gaps.push(now - before); before = now; requestAnimationFrame(frame); };
requestAnimationFrame(frame);
"""


def open_counted(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.add_init_script(TASKS)
    page.goto(url)
    page.locator("[data-chart] .legend b").filter(has_not_text="–").first.wait_for(timeout=GIVE_UP_S * 1e3)
    return page


def frames(browser: Browser, door: str) -> dict[str, float]:
    """While a run of 100,000 steps grows."""
    with signed_in(browser, door) as context:
        page = open_counted(context, f"{door.partition('/#')[0]}/runs/{LONG}")
        page.wait_for_timeout(3000)
        page.evaluate("gaps.length = tasks.length = 0")
        page.wait_for_timeout(WATCHED_S * 1e3)
        gaps, tasks = page.evaluate("[gaps, tasks]")
        charts = page.locator("[data-chart]").count()
    say(f"{len(gaps)} frames, {charts} charts, {len(tasks)} tasks above 50 ms")
    return {
        "frame_p95_ms": float(np.percentile(gaps, 95)),
        "frame_p50_ms": float(np.median(gaps)),
        "frame_max_ms": max(gaps),
        "task_max_ms": max(tasks, default=0.0),
        "charts": charts,
    }


def many(browser: Browser, door: str) -> dict[str, float]:
    """A run with 2,000 metrics: opened, scrolled through, filtered."""
    with signed_in(browser, door) as context:
        page = open_counted(context, f"{door.partition('/#')[0]}/runs/{MANY}")
        opened = float(page.evaluate("performance.now()"))
        for _ in range(20):
            page.mouse.move(500, 500)
            page.mouse.wheel(0, 3000)
            page.wait_for_timeout(50)
        page.get_by_test_id("metric-filter").fill("metric_19")
        page.wait_for_timeout(1000)
        tasks, nodes = page.evaluate("[tasks, document.querySelectorAll('*').length]")
    return {"many_open_ms": opened, "many_task_max_ms": max(tasks, default=0.0), "many_nodes": nodes}


def bundle() -> dict[str, float]:
    """Sizes as a server sends them."""
    index = (STATIC / "index.html").read_text()
    first = set(re.findall(r'(?:src|href)="/(assets/[^"]+\.(?:js|css))"', index))
    run = next(path for path in (STATIC / "assets").glob("page-*.js") if "run-header" in path.read_text())
    adds = {f"assets/{name}" for name in re.findall(r'"?\./([\w-]+\.js)"?', run.read_text())} | {f"assets/{run.name}"}
    kb = {name: len(gzip.compress((STATIC / name).read_bytes(), 9)) / 1000 for name in first | adds}
    return {
        "bundle_gzip_kb": sum(kb[name] for name in first),
        "run_gzip_kb": sum(kb[name] for name in adds - first),
    }


# ---- Trimtab -----------------------------------------------------------------------------------------------------


@contextmanager
def trimtab(home: Path, seed: int) -> Iterator[str]:
    """The address that signs in."""
    command = [sys.executable, __file__, "--serve", str(home), "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def serve(home: Path, seed: int) -> None:
    metrics = home / "metrics"
    metrics.mkdir()
    rng = np.random.default_rng(seed)
    write(metrics, LARGE, 1_000_000, names(20), rng)
    write(metrics, LONG, 100_000, names(20), rng)
    write(metrics, MANY, 100, names(2000), rng)
    write(metrics, SAME, 100_000, names(5), rng)
    controller = Controller(MemoryJournal(), metrics, job_server=PlainJobServer())
    for run, steps in ((LARGE, 1_000_000), (LONG, 100_000), (MANY, 100), (SAME, 100_000)):
        begin(controller, run, steps)
        if run != LONG:
            controller.set_state(run, RunState.FINISHED)
    gateway = LocalGateway(controller, metrics)
    tokens = Tokens(home / "tokens.json")
    hub = Hub(gateway)
    listening = bind("127.0.0.1", 0)

    async def grow() -> None:
        step = 100_000
        while True:
            await asyncio.sleep(GROWS_S)
            controller.heartbeat(LONG)
            controller.ingest(message(step, rng))
            step += GROWS

    growing = asyncio.create_task(grow())
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/#token={tokens.new('admin', Role.ADMIN)}", flush=True)
    await Server(create_app(gateway, tokens, hub, STATIC, Hosts("127.0.0.1")), hub).serve([listening])
    growing.cancel()


def names(n: int) -> list[str]:
    return [*NAMES, *(f"metric_{i:04}" for i in range(n))][:n]


def curve(steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (2 * np.exp(-steps / 2e4) + 1 + 0.1 * rng.standard_normal(len(steps))).astype(np.float32)


def write(folder: Path, run: str, steps: int, keys: list[str], rng: np.random.Generator) -> None:
    """What the controller would have written, in chunks as it makes them."""
    writer = MetricWriter(folder / f"{run}.metrics")
    for start in range(0, steps, ROWS):
        numbers = np.arange(start + 1, min(start + ROWS, steps) + 1, dtype=np.int64)
        columns = {key: curve(numbers, rng) for key in keys}
        writer.append(Block(numbers, numbers * BATCH, time.time() + (numbers - steps) * STEP_S, columns))
    writer.close()


def begin(controller: Controller, run: str, steps: int) -> None:
    parameters = (
        HyperParameter(name="batch_size", kind="integer", default=BATCH, min=1, max=4096),
        HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
    )
    spec = RunSpec(name=run, world_size=1, parameters=parameters, micro_batch=BATCH, max_micro_batch=BATCH)
    controller.create_run(run, spec)
    controller.start_formation(run, 1, Progress(steps, steps * BATCH))
    controller.register(run, 1, parameters, "none", 50_000)


def message(step: int, rng: np.random.Generator) -> Records:
    """The next steps of LONG, with all its metrics."""
    numbers = np.arange(step + 1, step + GROWS + 1, dtype=np.int64)
    own = {name: curve(numbers, rng) for name in (*COLUMNS, "hp/lr", "hp/batch_size")}
    logged = {name: (numbers, curve(numbers, rng)) for name in names(20) if name not in own}
    times = time.time() - (GROWS - np.arange(GROWS)) * STEP_S * 0.5
    last = int(numbers[-1])
    return replace(Records(LONG, 0, 1, numbers, numbers * BATCH, times, own, logged), held=1, produced=last, applied=())


# ---- the others --------------------------------------------------------------------------------------------------

FILL = """
import math, random, sqlite3, sys, time
folder, keys, steps = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
curve = lambda step: 2 * math.exp(-step / 2e4) + 1 + 0.1 * random.gauss(0, 1)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
writer = EventFileWriter(folder + "/tensorboard")
now = time.time()
for step in range(1, steps + 1):
    values = [Summary.Value(tag=key, simple_value=curve(step)) for key in keys]
    writer.add_event(Event(wall_time=now + step * 0.02, step=step, summary=Summary(value=values)))
writer.close()
import mlflow
from mlflow.entities import Metric
database = folder + "/mlflow.db"
mlflow.set_tracking_uri("sqlite:///" + database)
with mlflow.start_run() as run:
    id = run.info.run_id
    client = mlflow.MlflowClient()
    client.log_batch(id, [Metric(key, curve(steps), int(now * 1000) + steps, steps) for key in keys])
    # By its own client this takes minutes; what is read is the same.
    with sqlite3.connect(database) as connection:
        connection.executemany(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)",
            ((key, curve(step), int(now * 1000) + step, id, step) for key in keys for step in range(1, steps)),
        )
print(run.info.experiment_id, id)
"""


def peers(browser: Browser, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    python = PEERS / "bin" / "python"
    if not python.exists():
        say(f"installing MLflow and TensorBoard into {PEERS}")
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *quiet, "mlflow", "tensorboard"], check=True)
    keys = ",".join(name.replace("/", "_") for name in names(5))
    filled = subprocess.run(
        [str(python), "-c", FILL, str(folder), keys, "100000"], check=True, capture_output=True, text=True
    )
    experiment, run = filled.stdout.split()[-2:]
    say("MLflow and TensorBoard have the same points")
    ui = ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1", "--port"]
    board = ["tensorboard", "--logdir", f"{folder}/tensorboard", "--samples_per_plugin", "scalars=0", "--port"]
    with running(ui) as url:
        path = f"/#/experiments/{experiment}/runs/{run}/model-metrics"
        mlflow = peer(browser, url + path, ".js-plotly-plot", options.repeats)
    with running(board) as url:
        wait_for_data(url)
        tensorboard = peer(browser, f"{url}/#timeseries", "line-chart, .line-chart", options.repeats)
    return {"mlflow": mlflow, "tensorboard": tensorboard}


def peer(browser: Browser, url: str, ready: str, repeats: int) -> float:
    def once() -> float:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        try:
            return watch(context, url, ready)
        finally:
            context.close()

    return median(once, repeats, url)


@contextmanager
def running(command: list[str]) -> Iterator[str]:
    """A server of the environment's, on a free port, as soon as it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    full = [str(PEERS / "bin" / command[0]), *command[1:], str(port)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(full, start_new_session=True, **quiet) as process:
        try:
            wait_until(lambda: bool(urlopen(url, timeout=5).status == 200))
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # with the processes that it has started


def wait_for_data(url: str) -> None:
    """TensorBoard reads its files in the background; it is asked when it has them all."""
    wait_until(lambda: bool(json.load(urlopen(f"{url}/data/plugin/timeseries/tags", timeout=5)).get("scalars")))
    time.sleep(15)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise TimeoutError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="without MLflow and TensorBoard")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
