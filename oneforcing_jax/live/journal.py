"""What a server says of itself: lines of JSON on standard error, and metrics for Prometheus."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Journal:
    """Events and counts. Prompts are in neither."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        made: dict[str, Any] = {"registry": self._registry, "namespace": "oneforcing"}
        self.frames_made = Counter("frames_made", "Frames of all sessions", **made)
        self.frames_sent = Counter("frames_sent", "Frames sent to viewers", **made)
        self.frames_skipped = Counter("frames_skipped", "Frames that slow viewers missed", **made)
        self.refused = Counter("refused", "Requests and messages refused", ["status"], **made)
        self.viewers = Gauge("viewers", "Connections", **made)
        self._first = Histogram(
            "first_frame_seconds", "From a wish to its first frame", buckets=_SECONDS, **made
        )
        self._sessions = Gauge("sessions", "Sessions by state", ["state"], **made)

    def watch(self, states: tuple[str, ...], count: Callable[[str], int]) -> None:
        """Asks for the number of sessions in each state whenever metrics are read."""
        for state in states:
            self._sessions.labels(state).set_function(functools.partial(count, state))

    def made(self, frames: int, meters: Mapping[str, float] | None) -> None:
        """Counts what a session made while it had the device."""
        self.frames_made.inc(frames)
        if frames and meters:
            self._first.observe(meters["first"])

    def said(self, event: str, **fields: Any) -> None:
        """Writes an event."""
        print(
            json.dumps({"time": time.time(), "event": event} | fields), file=sys.stderr, flush=True
        )

    def metrics(self) -> bytes:
        """All counts, as Prometheus reads them."""
        return generate_latest(self._registry)
