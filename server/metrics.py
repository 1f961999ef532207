"""Prometheus metrics: read when they are asked for, from the counts that there are anyway."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from analyzers.baseline import shift
from server.readings import Key, ModelReading, Reading, Tally
from server.scrape import Source
from server.settings import Settings
from server.statistics import BUCKETS, Counts, Histogram

log = logging.getLogger("pellucid.metrics")

PATIENCE_SECONDS = 2.0  # with processes that do not answer; their last counts are shown instead
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MODEL = ("model", "version")
_PROCESS = {
    "process_cpu_seconds": "CPU time of the server processes, user and system.",
    "process_resident_memory_bytes": "Memory that they hold.",
    "process_virtual_memory_bytes": "Memory that they have reserved.",
    "process_start_time_seconds": "When the oldest of them started, since the epoch.",
    "process_open_fds": "Files that they have open.",
    "process_max_fds": "Files that each of them may have open.",
}


class Scrape(Collector):
    """What one scrape shows: the sum over all processes; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tally = Tally()
        self._sources: dict[int, Source] = {}
        self._number = itertools.count()

    def add(self, source: Source) -> None:
        """Ask this process too, from now on until it is gone."""
        with self._lock:
            for number in [number for number, known in self._sources.items() if known.gone]:
                self._leave(number)  # nobody may ever scrape, and each holds a file open
            self._sources[next(self._number)] = source

    def collect(self) -> Iterable[Metric]:
        """Ask every process and add them up."""
        with self._lock:
            self._gather()
            calls, models, processes = self._tally.calls(), self._tally.models(), self._tally.processes
        yield from _of_calls(calls, processes)
        yield from _of_models(models)
        yield from _of_drift(models)

    def _gather(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        asked: dict[int, Source] = {}
        for number, source in list(self._sources.items()):
            try:
                source.ask()
                asked[number] = source
            except OSError:
                self._leave(number)
        for number, source in asked.items():
            try:
                reading = source.answer(until)
            except (EOFError, OSError):
                self._leave(number)
                continue
            if reading is not None:
                self._tally.update(number, reading)

    def _leave(self, number: int) -> None:
        del self._sources[number]
        self._tally.leave(number)


@contextmanager
def metrics_of(settings: Settings) -> Iterator[Scrape | None]:
    """Serve /metrics while the body runs, of the processes that it adds; yield None where no port is set.

    Raises:
        OSError: the port is taken.
    """
    if not settings.metrics_port:
        yield None
        return
    scrape, registry = Scrape(), CollectorRegistry()
    registry.register(scrape)
    host = (settings.metrics_host or settings.host).strip("[]")
    try:
        server, thread = start_http_server(settings.metrics_port, host, registry)
    except OSError:
        where = f"{host}:{settings.metrics_port}"
        text = f"cannot serve metrics on {where}; the port is taken or the address is not this machine's"
        raise OSError(text) from None
    log.info("metrics at http://%s:%d/metrics", host, settings.metrics_port)
    try:
        yield scrape
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _of_calls(calls: Reading, processes: int) -> Iterator[Metric]:
    requests = CounterMetricFamily("pellucid_requests", "Calls that are over.", labels=("method", "code"))
    for (method, code), count in sorted(calls.codes.items()):
        requests.add_metric((method, code), count)
    seconds = HistogramMetricFamily(
        "pellucid_request_seconds", "From a call's bytes to its answer.", labels=("method",)
    )
    for method, histogram in calls.seconds.items():
        _put(seconds, (method,), histogram)
    refused = CounterMetricFamily(
        "pellucid_refused", "Errors that clients got, those in streams included.", labels=("reason",)
    )
    for reason, count in sorted(calls.refused.items()):
        refused.add_metric((reason,), count)
    yield from (requests, seconds, refused)
    yield GaugeMetricFamily("pellucid_running_requests", "Calls under way.", value=calls.running)
    yield GaugeMetricFamily("pellucid_processes", "Server processes that answer.", value=processes)
    for name, value in calls.process.items():
        family = CounterMetricFamily if name == "process_cpu_seconds" else GaugeMetricFamily
        yield family(name, _PROCESS.get(name, name), value=value)


def _of_models(models: dict[Key, ModelReading]) -> Iterator[Metric]:
    ready = GaugeMetricFamily(
        "pellucid_model_ready", "Whether every process answers with it.", labels=(*MODEL, "provider")
    )
    waiting = GaugeMetricFamily("pellucid_waiting_pictures", "Pictures that wait for a run.", labels=MODEL)
    pictures = CounterMetricFamily("pellucid_pictures", "Pictures that were answered.", labels=MODEL)
    stages = HistogramMetricFamily(
        "pellucid_stage_seconds",
        "Decode, queue and encode of a request, run of a batch.",
        labels=(*MODEL, "stage"),
    )
    batches = HistogramMetricFamily("pellucid_batch_pictures", "Pictures in a run.", labels=MODEL)
    for key, model in models.items():
        ready.add_metric((*key, model.provider), int(model.ready))
        if (counts := model.counts) is None:
            continue
        waiting.add_metric(key, model.waiting)
        pictures.add_metric(key, counts.pictures)
        stage = {"decode": counts.decode, "queue": counts.queue, "run": counts.infer, "encode": counts.encode}
        for name, histogram in stage.items():
            _put(stages, (*key, name), histogram)
        batches.add_metric(key, *_batches(counts))
    return iter((ready, waiting, pictures, stages, batches))


def _of_drift(models: dict[Key, ModelReading]) -> Iterator[Metric]:
    labels = (*MODEL, "what")
    drift = GaugeMetricFamily(
        "pellucid_drift", "Jensen-Shannon divergence of lately from the baseline, in bits.", labels=labels
    )
    chance = GaugeMetricFamily(
        "pellucid_drift_by_chance", "What to expect of it where nothing has changed.", labels=labels
    )
    pictures = GaugeMetricFamily("pellucid_drift_pictures", "Pictures that it is about.", labels=labels)
    for key, model in models.items():
        if model.window is None:
            continue
        for what, recent in model.window.recent.items():
            found = shift(model.window.baseline[what], recent)
            drift.add_metric((*key, what), found.found)
            chance.add_metric((*key, what), found.by_chance)
            pictures.add_metric((*key, what), int(recent[0].sum()))
    return iter((drift, chance, pictures))


def _put(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    sums = itertools.accumulate(histogram.buckets)
    bounds = (*map(str, BUCKETS), "+Inf")
    family.add_metric(labels, list(zip(bounds, sums, strict=True)), histogram.seconds)


def _batches(counts: Counts) -> tuple[list[tuple[str, float]], float]:
    sizes = {size: infer.count for size, (infer, _) in counts.batches.items()}
    buckets = [(str(float(most)), float(sum(n for size, n in sizes.items() if size <= most))) for most in BATCHES]
    return [*buckets, ("+Inf", float(sum(sizes.values())))], float(sum(size * n for size, n in sizes.items()))
