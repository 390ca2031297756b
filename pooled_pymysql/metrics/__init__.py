"""Metrics of all pools of the process: for OpenTelemetry, and for Prometheus.

Counts come from `Pool.stats()` when they are asked for; durations are told by the pools, to whoever is made from here.
The tools are imported when they are used: extras `otel` and `prometheus`.
"""

from .otel import OpenTelemetryMetrics
from .prometheus import PrometheusCollector

__all__ = ["OpenTelemetryMetrics", "PrometheusCollector"]
