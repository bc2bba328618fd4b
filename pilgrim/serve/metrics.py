"""What the server counts, for Prometheus to fetch at /metrics.

Requests by endpoint and status, tokens, how long a first token took and how fast the others came, and how
full queue and cache are just now. Nothing of what anybody says.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pilgrim.serve.driver import Job

if TYPE_CHECKING:  # the catalog counts by this file
    from pilgrim.serve.catalog import Loaded

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class Metrics:
    """The counters of one server."""

    def __init__(self, models: "Callable[[], Sequence[Loaded]]") -> None:
        """`models`: whose queues and caches are shown."""
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pilgrim_requests", "Requests answered", ["endpoint", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "pilgrim_prompt_tokens", "Tokens of prompts", ["model"], registry=registry
        )
        self.reply_tokens = Counter("pilgrim_reply_tokens", "Tokens of replies", ["model"], registry=registry)
        self.first_token = Histogram(
            "pilgrim_first_token_seconds",
            "From a request's submission to its first token",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.speed = Histogram(
            "pilgrim_reply_tokens_per_second",
            "Speed of one reply, its waiting included",
            ["model"],
            buckets=TOKENS_PER_S,
            registry=registry,
        )
        registry.register(_Now(models))

    def watch(self, model: str) -> "Watch":
        """Who counts what this model does."""
        return Watch(self, model)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Watch:
    """Counts for one model; see `driver.Watcher`."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model

    def began(self, waited_s: float) -> None:
        self._metrics.first_token.labels(self._model).observe(waited_s)

    def ended(self, job: Job, tokens: int, elapsed_s: float) -> None:
        self._metrics.prompt_tokens.labels(self._model).inc(len(job.prompt))
        self._metrics.reply_tokens.labels(self._model).inc(tokens)
        if tokens and elapsed_s > 0:
            self._metrics.speed.labels(self._model).observe(tokens / elapsed_s)


class _Now(Collector):
    """Asked at the moment when somebody fetches."""

    def __init__(self, models: "Callable[[], Sequence[Loaded]]") -> None:
        self._models = models

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # or registering would collect

    def collect(self) -> Iterator[GaugeMetricFamily]:
        asked = GaugeMetricFamily("pilgrim_replies_open", "Replies written or waiting", labels=["model"])
        used = GaugeMetricFamily(
            "pilgrim_cache_used", "Share of the key-value cache in use", labels=["model"]
        )
        for model in self._models():
            asked.add_metric([model.entry.id], model.driver.taken)
            used.add_metric([model.entry.id], model.engine.cache_used)
        yield asked
        yield used
