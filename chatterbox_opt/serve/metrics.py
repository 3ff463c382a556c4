"""The engine's own figures and the server's, as Prometheus reads them: taken when they are asked for, kept nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .service import Service

GAUGES = {
    "live": "Utterances being spoken", "waiting": "Utterances that wait", "rows": "Rows of the running batch",
    "tokens_per_second": "Speech tokens a second while tokens are drawn, since the model was loaded",
}
COUNTERS = {
    "steps": "Steps in which the engine had something to do", "tokens": "Speech tokens made",
    "underruns": "Streams that fell behind", "cancelled": "Speeches ended before their end",
    "failed": "Speeches ended by an error", "finished": "Speeches made to their end",
}
HISTOGRAMS = {
    "first_sound": ("first_sound_seconds", "From the request to its first sound"),
    "real_time_factor": ("real_time_factor", "Seconds from the request to its end for a second of speech"),
}


class Figures:
    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Any]:
        service = self.service
        yield GaugeMetricFamily("chatterbox_ready", "1 when it speaks", float(service.model is not None))
        yield GaugeMetricFamily("chatterbox_queue", "Speeches let in and not begun", service.waiting())
        yield GaugeMetricFamily("chatterbox_open", "Speeches let in and not ended", len(service.live))
        yield CounterMetricFamily("chatterbox_refused", "Requests answered with 429", service.refused)
        yield CounterMetricFamily("chatterbox_clients_left", "Clients gone before the end", service.left)
        if service.model is not None:
            yield from _engine(service.model.stats())


def _engine(stats: dict[str, Any]) -> Iterator[Any]:
    for name, meaning in GAUGES.items():
        yield GaugeMetricFamily(f"chatterbox_engine_{name}", meaning, stats[name])
    for name, meaning in COUNTERS.items():
        yield CounterMetricFamily(f"chatterbox_engine_{name}", meaning, stats[name])
    for key, (name, meaning) in HISTOGRAMS.items():
        shape = stats[key]
        edges, counts = map(str, shape["buckets"]), accumulate(shape["counts"])
        buckets = [*zip(edges, counts), ("+Inf", shape["count"])]
        yield HistogramMetricFamily(f"chatterbox_engine_{name}", meaning, buckets, shape["sum"])
