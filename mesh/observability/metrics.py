"""Prometheus metrics of a process, and the HTTP listener for scrapes and probes.

Modules declare their metrics at the top. Count database effects with `database.on_commit`.
Label values come from small, fixed sets: never an id, a name, an address or a client's text.
"""

import math
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = [
    "SECONDS",
    "SIZES",
    "Counter",
    "Gauge",
    "Histogram",
    "Listener",
    "counter",
    "gauge",
    "histogram",
    "measured",
]

_PREFIX: Final = "boxoffice_"

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Buckets for durations, in seconds; the longest deadline of the contract is 30 s."""

SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Buckets for batch sizes."""

_T = TypeVar("_T")

# Drops the `_created` series, which no dashboard or alert uses.
disable_created_metrics()  # type: ignore[no-untyped-call]


def counter(name: str, meaning: str, *labels: str) -> Counter:
    """A counter: `counter("mails_sent", …)` is exported as `boxoffice_mails_sent_total`."""
    return Counter(_PREFIX + name, meaning, labels)


def gauge(name: str, meaning: str, *labels: str) -> Gauge:
    """A value that the code sets."""
    return Gauge(_PREFIX + name, meaning, labels)


def histogram(
    name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = SECONDS
) -> Histogram:
    """Durations in seconds unless `buckets` differ; the unit comes last in the name."""
    return Histogram(_PREFIX + name, meaning, labels, buckets=(*buckets, math.inf))


def measured(
    name: str,
    meaning: str,
    read: Callable[[_T], Iterable[tuple[str, float]]],
    *,
    label: str,
) -> Callable[[_T], None]:
    """A gauge that is read from objects at each scrape. Returns the function that adds an object.

    `read` returns (label value, number) pairs, which are summed over all live objects. The gauge
    keeps weak references to them.
    """
    source = _Measured(_PREFIX + name, meaning, label, read)
    REGISTRY.register(source)
    return source.add


class _Measured(Collector, Generic[_T]):
    def __init__(
        self,
        name: str,
        meaning: str,
        label: str,
        read: Callable[[_T], Iterable[tuple[str, float]]],
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._label = label
        self._read = read
        self._sources: weakref.WeakSet[_T] = weakref.WeakSet()

    def add(self, source: _T) -> None:
        self._sources.add(source)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        totals: dict[str, float] = {}
        for source in list(self._sources):
            for value, number in self._read(source):
                totals[value] = totals.get(value, 0.0) + number
        family = self._family()
        for value, number in totals.items():
            family.add_metric([value], number)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._meaning, labels=[self._label])


class Listener:
    """Serves GET /metrics, /live and /ready over plain HTTP, from its own thread.

    A thread, so that /live still responds when the event loop is blocked, which it reports.
    `is_live` and `is_ready` run in that thread and must not block.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_live: Callable[[], bool] = lambda: True,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        scrape = make_wsgi_app()
        probes = {"/live": is_live, "/ready": is_ready}

        def serve(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                page: Iterable[bytes] = scrape(environ, start_response)
                return page
            if path not in probes:
                status, text = "404 Not Found", b"try /metrics, /live or /ready\n"
            elif probes[path]():
                status, text = "200 OK", b"yes\n"
            else:
                status, text = "503 Service Unavailable", b"no\n"
            start_response(status, [("Content-Type", "text/plain")])
            return [text]

        self._server = _Server((host, port), _Connection)
        self._server.set_app(serve)
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The bound port, also when the listener was created with port 0."""
        return self._server.server_port

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        # Ends the thread's wait for a connection.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        # Not serve_forever(), which wakes up every half second.
        while not self._is_closing:
            self._server.handle_request()


class _Server(ThreadingMixIn, WSGIServer):
    # An idle client must not keep the process from exiting.
    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer's own server_bind looks up the host's name, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "metrics", self.server_address[1]
        self.setup_environ()


class _Connection(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Does not log scrapes and probes, which come every few seconds."""
