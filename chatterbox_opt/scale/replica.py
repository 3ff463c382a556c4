"""A replica of the server on a Ray cluster: an engine, its voices, and the application of the plain server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.metrics import Gauge

from ..serve.app import create_app
from ..serve.metrics import Figures
from ..serve.service import Service
from ..serve.settings import ServeSettings
from ..serve.voice_files.place import absolute
from .arrival import Arrival
from .cluster import Share
from .watch import PATIENCE, Silence, progress

NAME = "speech"
AT_ONCE = 32  # requests that a replica has at once: 16 for the slots of its engine, and 16 that wait for a slot
HEALTH_SECONDS = 5


@serve.ingress()
class Replica:
    def __init__(self, settings: ServeSettings, load: Callable[[], Any]) -> None:
        self.service = Service(settings)
        self.service.opened(load())
        self.gauges: dict[str, Gauge] = {}
        self.silence = Silence()

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self.service)
        app.add_middleware(Arrival)
        return app

    async def check_health(self) -> None:
        """Raises if the engine hangs; does not return if the event loop hangs. Also gives the replica's metrics to Ray,
        since GET /metrics shows those of one replica only."""
        self.check_engine()
        for family in Figures(self.service).collect():
            for sample in family.samples:
                if not sample.labels:  # buckets of histograms have some
                    gauge = self.gauges.get(sample.name) or Gauge(sample.name, family.documentation)
                    self.gauges[sample.name] = gauge
                    gauge.set(sample.value)

    def check_engine(self) -> None:
        model = self.service.model
        if self.silence.check(model.stats()["calls"] > 0, progress(model)) * HEALTH_SECONDS >= PATIENCE:
            raise RuntimeError(f"the engine has done nothing for {PATIENCE:g} s, though it has calls")


def application(settings: ServeSettings, load: Callable[[], Any], share: Share, **more: Any) -> serve.Application:
    """Returns what serve.run() takes. `load` is called in each replica. `more`: options of serve.deployment()."""
    if settings.wyoming_port is not None:
        raise ValueError("the Wyoming protocol is the plain server's: leave out --wyoming")
    settings = replace(settings, voices_dir=absolute(settings.voices_dir))
    scaling = {
        "min_replicas": share.fewest, "max_replicas": share.most, "target_ongoing_requests": AT_ONCE / 2,
        "upscale_delay_s": 10, "downscale_delay_s": 300,
    }
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": share.cpus, "num_gpus": share.gpus},
        "max_ongoing_requests": AT_ONCE,
        "max_queued_requests": settings.max_waiting,  # in each proxy
        "backpressure_config": {"status_code": 429, "retry_after_s": 5},
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_SECONDS,
        **({"num_replicas": share.most} if share.fewest == share.most else {"autoscaling_config": scaling}),
    }
    return serve.deployment(name=NAME, **(options | more))(Replica).bind(settings, load)
