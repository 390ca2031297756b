"""The examples of docs/telemetry.md run as they stand, with only the port changed, and do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry
from servers import Server, free_port

from pooled_pymysql.metrics import PrometheusCollector

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

USE = """
import pooled_pymysql as used
with used.connect({dsn!r}, pool={{"name": "shop"}}) as used_connection, used_connection.cursor() as used_cursor:
    used_cursor.execute("SELECT 42")
"""
TRACING = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
tracing = TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(tracing)
"""
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=20).read().decode())
"""


def run(server: Server, before: str, example: str, after: str = "") -> str:
    """Run an example in a process of its own, with a statement behind it; return what it printed."""
    program = before + example + USE.format(dsn=server.dsn()) + after
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == 4


def test_prometheus(server: Server) -> None:
    port = free_port()
    example = EXAMPLES[0].replace("9100", str(port))
    assert example != EXAMPLES[0]
    assert 'mysqlpool_leases_total{pool="shop"} 1.0' in run(server, "", example, SCRAPE.format(port=port))


def test_metrics_of_opentelemetry(server: Server) -> None:
    text = run(server, "", EXAMPLES[1], "provider.shutdown()")
    assert '"db.client.connection.use_time"' in text and '"db.client.connection.pool.name": "shop"' in text


def test_tracing(server: Server) -> None:
    text = run(server, TRACING, EXAMPLES[2])
    assert text.count('"db.statement": "SELECT 42"') == 1


def test_observer(server: Server) -> None:
    example = EXAMPLES[3].replace("seconds > 0.1", "seconds > 0")
    assert example != EXAMPLES[3]
    assert re.match(r"shop: waited \d\.\d{3} s, PoolStats\(name='shop', idle=0, in_use=1,", run(server, "", example))


def test_page_names_every_metric_for_prometheus() -> None:
    collector = PrometheusCollector(CollectorRegistry())
    names = {family.name + "_total" * (family.type == "counter") for family in collector.describe()}
    collector.close()
    assert set(re.findall(r"`(mysqlpool_\w+)`", PAGE)) == names
