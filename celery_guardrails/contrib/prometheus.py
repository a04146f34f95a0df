"""Prometheus: what the worker shows at ``/metrics``, and the same for processes that are no workers.

Needs the extra: ``pip install 'celery-guardrails[prometheus]'``. The worker loads this by name where ``guardrails_http`` is set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from celery_guardrails.integration.app import Guardrails
from celery_guardrails.integration.counting import Counting, Source
from celery_guardrails.integration.metrics import COUNTER, GAUGE, HISTOGRAM, METRICS, SUM, Key, Metric

__all__ = ["Exposition", "install"]

_PREFIX = "celery_guardrails_"


class GuardrailsCollector(Collector):
    """Hands the numbers of one or several apps to a registry of ``prometheus_client``."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def describe(self) -> Iterator[Any]:
        """Yield every metric that may come, without numbers: a registry then knows which names are taken."""
        return (_family(name, metric) for name, metric in METRICS.items())

    def collect(self) -> Iterator[Any]:
        """Yield the metrics with their numbers."""
        found = [(source.namespace, _by_metric(source)) for source in self.sources]
        for name, metric in METRICS.items():
            family = _family(name, metric)
            for namespace, numbers in found:
                _fill(family, metric, namespace, numbers[name])
            if family.samples or metric.kind != GAUGE:
                yield family


class Exposition:
    """What ``/metrics`` answers.

    Args:
        source: of the numbers.
    """

    def __init__(self, source: Source) -> None:
        collector = GuardrailsCollector()
        collector.sources.append(source)
        self._registry = CollectorRegistry()
        self._registry.register(collector)

    def __call__(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body, in the format that the header ``Accept`` asks for: OpenMetrics, or Prometheus' own text."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # a version that is no number (prometheus_client 0.26)
            encode, content_type = choose_encoder("")
        return content_type, encode(self._registry)


_installed: WeakKeyDictionary[CollectorRegistry, GuardrailsCollector] = WeakKeyDictionary()


def install(guardrails: Guardrails, registry: CollectorRegistry = REGISTRY) -> None:
    """Count the events of this process into a registry of ``prometheus_client``.

    For processes that are no workers and have metrics of their own: a web application with eager tasks, a test, a script. Workers
    have ``guardrails_http``, which knows their pool processes as well. Called again for the same app it does nothing.

    Args:
        guardrails: whose events are counted.
        registry: by default the one that ``prometheus_client`` shows.
    """
    collector = _installed.get(registry)
    if collector is None:
        collector = GuardrailsCollector()
        registry.register(collector)
        _installed[registry] = collector
    if all(source.namespace != guardrails.namespace for source in collector.sources):
        counting = Counting(guardrails)
        guardrails.listen(counting)
        collector.sources.append(Source(guardrails.namespace, counting.values))


def _family(name: str, metric: Metric) -> Any:
    cls = {COUNTER: CounterMetricFamily, GAUGE: GaugeMetricFamily, HISTOGRAM: HistogramMetricFamily}[metric.kind]
    return cls(_PREFIX + name, metric.help, labels=("namespace", *metric.labels))


def _by_metric(source: Source) -> Mapping[str, dict[Key, float]]:
    """Return the numbers of a source by metric; what can be named before it happens is there from the beginning."""
    numbers: dict[str, dict[Key, float]] = defaultdict(dict)
    tasks = list(source.tasks())
    for name, metric in METRICS.items():
        if metric.kind == COUNTER:
            labels: list[tuple[str, ...]] = [(task,) for task in tasks] if metric.labels == ("task",) else [] if metric.labels else [()]
            numbers[name] = {Key(name, some): 0.0 for some in labels}
    for key, value in {**source.counts(), **source.now()}.items():
        numbers[key.metric][key] = value
    return numbers


def _fill(family: Any, metric: Metric, namespace: str, numbers: Mapping[Key, float]) -> None:
    if metric.kind != HISTOGRAM:
        for key, value in numbers.items():
            family.add_metric((namespace, *key.labels), value)
        return
    for labels in sorted({key.labels for key in numbers}):
        key = Key(next(iter(numbers)).metric, labels)
        total, buckets = 0.0, []
        for number, bound in enumerate((*map(str, metric.buckets), "+Inf")):
            total += numbers.get(key._replace(part=str(number)), 0.0)
            buckets.append((bound, total))
        family.add_metric((namespace, *labels), buckets, numbers.get(key._replace(part=SUM), 0.0))
