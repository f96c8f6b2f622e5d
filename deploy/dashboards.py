"""Generates the Grafana dashboards in deploy/grafana/: `python -m deploy.dashboards`.

Import them into Grafana with a Prometheus data source. A test checks that a running mesh has all
metrics that they use.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana"

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24
_STAT_HEIGHT = 4
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_P = "histogram_quantile({}, sum by (le{}) (rate({}_bucket{}[$__rate_interval])))"


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph. `unit` is Grafana's; `queries` are PromQL expressions with their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Stat:
    """A number of the row at the top; red from `alarm` on, or below `least`."""

    title: str
    unit: str
    query: str
    alarm: float | None = None
    least: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    stats: tuple[Stat, ...]
    panels: tuple[Panel, ...]

    @property
    def queries(self) -> tuple[str, ...]:
        """The PromQL expressions of all panels."""
        return (
            *(stat.query for stat in self.stats),
            *(query for panel in self.panels for query, _ in panel.queries),
        )


def _rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{labels}[$__rate_interval]))"


def _quantile(share: float, metric: str, labels: str = "", by: str = "") -> str:
    return _P.format(share, f", {by}" if by else "", metric, labels)


_SERVED = "boxoffice_rpc_server_seconds"
_FAILED = '{caller="gateway",code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED"}'
_BOOKING = '{rpc="BookingService/PlaceBooking"}'

DASHBOARDS = (
    Dashboard(
        "mesh",
        "Boxoffice: the mesh",
        (
            Stat("Ready processes", "short", "sum(boxoffice_ready)", least=1),
            Stat("Calls per second", "reqps", f'sum(rate({_SERVED}_count{{caller="gateway"}}[$__rate_interval]))'),
            Stat("Failed calls", "percentunit", f'sum(rate({_SERVED}_count{_FAILED}[1h])) / sum(rate({_SERVED}_count{{caller="gateway"}}[1h]))', alarm=0.001),
            Stat("Duration, p99", "s", f"histogram_quantile(0.99, sum by (le) (rate({_SERVED}_bucket[$__rate_interval])))", alarm=1),
            Stat("Oldest queue entry", "s", "max(boxoffice_backlog_age_seconds)", alarm=120),
            Stat("First certificate expires", "s", "min(boxoffice_certificate_remaining_seconds)", least=1_209_600),
        ),
        (
            Panel("Ready processes", "short", (("sum by (job) (boxoffice_ready)", "{{job}}"),)),
            Panel("Calls", "reqps", ((_rate(f"{_SERVED}_count", "job"), "{{job}}"),)),
            Panel(
                "Failed calls",
                "reqps",
                (
                    (
                        _rate(
                            f"{_SERVED}_count",
                            "rpc, code",
                            '{code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED"}',
                        ),
                        "{{rpc}} {{code}}",
                    ),
                ),
                "Bugs and unavailable dependencies; refused calls are not included.",
            ),
            Panel("Duration, p99", "s", ((_quantile(0.99, _SERVED, by="job"), "{{job}}"),)),
            Panel("Calls being served", "short", (("sum by (job) (boxoffice_rpc_server_running)", "{{job}}"),)),
            Panel("Outgoing calls: duration, p99", "s", ((_quantile(0.99, "boxoffice_rpc_client_seconds", by="rpc"), "{{rpc}}"),)),
            Panel("CPU", "percentunit", ((_rate("process_cpu_seconds_total", "job"), "{{job}}"),)),
            Panel("Memory", "bytes", (("sum by (job) (process_resident_memory_bytes)", "{{job}}"),)),
            Panel("Event loop delay, p99", "s", ((_quantile(0.99, "boxoffice_event_loop_delay_seconds", by="job"), "{{job}}"),)),
            Panel("Database: statements", "ops", ((_rate("boxoffice_database_statement_seconds_count", "job, kind"), "{{job}} {{kind}}"),)),
            Panel("Database: free connections", "short", (('min by (job) (boxoffice_database_connections{state="free"})', "{{job}}"),)),
            Panel("Database: wait for a connection, p99", "s", ((_quantile(0.99, "boxoffice_database_wait_seconds", by="job"), "{{job}}"),)),
            Panel("Background loops: failures", "ops", ((_rate("boxoffice_loop_failures_total", "job, loop"), "{{job}} {{loop}}"),)),
            Panel("Streams: age of events when sent, p99", "s", ((_quantile(0.99, "boxoffice_outbox_delay_seconds", by="job"), "{{job}}"),)),
            Panel("Queues: age of the oldest entry", "s", (("max by (queue) (boxoffice_backlog_age_seconds)", "{{queue}}"),)),
            Panel("Gateway: requests by status", "reqps", ((_rate("envoy_http_downstream_rq_xx", "envoy_response_code_class", '{envoy_http_conn_manager_prefix="gateway"}'), "{{envoy_response_code_class}}xx"),)),
            Panel("Gateway: refused because of overload", "reqps", ((_rate("envoy_cluster_upstream_rq_active_overflow", "envoy_cluster_name", '{envoy_cluster_name=~".+_svc"}'), "{{envoy_cluster_name}}"),), "Calls beyond the concurrency limit of a service, answered with 429."),
            Panel("Gateway: healthy replicas", "short", (("min by (envoy_cluster_name) (envoy_cluster_membership_healthy)", "{{envoy_cluster_name}}"),)),
            Panel("Gateway: connections", "short", (('sum(envoy_http_downstream_cx_active{envoy_http_conn_manager_prefix="gateway"})', "open"),)),
        ),
    ),
    Dashboard(
        "on-sale",
        "Boxoffice: a sale",
        (
            Stat("Bookings per minute", "short", 'sum(rate(boxoffice_domain_events_total{job="booking_svc",type="confirmed"}[$__rate_interval])) * 60'),
            Stat("PlaceBooking, p99", "s", f"histogram_quantile(0.99, sum by (le) (rate({_SERVED}_bucket{_BOOKING}[$__rate_interval])))", alarm=1),
            Stat("Watching customers", "short", "sum(boxoffice_availability_watchers)"),
            Stat("Refused by the gateway", "reqps", 'sum(rate(envoy_cluster_upstream_rq_active_overflow{envoy_cluster_name=~".+_svc"}[$__rate_interval]))', alarm=1),
        ),
        (
            Panel("Bookings", "ops", ((_rate("boxoffice_domain_events_total", "type", '{job="booking_svc"}'), "{{type}}"),), "Domain events of bookings, by type."),
            Panel(
                "Conversion",
                "percentunit",
                (
                    (
                        'sum(increase(boxoffice_domain_events_total{job="booking_svc",type="confirmed"}[15m])) / '
                        'sum(increase(boxoffice_domain_events_total{job="booking_svc",type="held"}[15m]))',
                        "confirmed / held",
                    ),
                ),
                "Confirmations per hold in the last 15 minutes; above 1 when a burst of holds is over.",
            ),
            Panel("Booking: refusals", "ops", ((_rate("boxoffice_rpc_server_refusals_total", "reason", _BOOKING), "{{reason}}"),)),
            Panel(
                "Booking: duration",
                "s",
                tuple((_quantile(share, _SERVED, _BOOKING), f"{share:.0%}") for share in (0.5, 0.9, 0.99)),
            ),
            Panel("Booking: calls by code", "reqps", ((_rate(f"{_SERVED}_count", "code", _BOOKING), "{{code}}"),)),
            Panel("stock_svc: duration, p99", "s", ((_quantile(0.99, _SERVED, '{job="stock_svc"}', by="rpc"), "{{rpc}}"),)),
            Panel("Time from booking to confirmation", "s", tuple((_quantile(share, "boxoffice_booking_confirm_seconds"), f"{share:.0%}") for share in (0.5, 0.9))),
            Panel("Cache: reads", "ops", ((_rate("boxoffice_cache_reads_total", "result"), "{{result}}"),)),
            Panel("Database: wait for a connection, p99", "s", ((_quantile(0.99, "boxoffice_database_wait_seconds", by="job"), "{{job}}"),)),
        ),
    ),
    Dashboard(
        "money",
        "Boxoffice: money",
        (
            Stat("Unexplained items", "short", "sum(boxoffice_payments_unexplained)", alarm=1),
            Stat("Stock differences", "short", "max(boxoffice_stock_audit_differences)", alarm=1),
            Stat("Oldest refund", "s", 'max(boxoffice_backlog_age_seconds{queue="refunds"})', alarm=900),
            Stat("Oldest failed refund", "s", 'max(boxoffice_backlog_age_seconds{queue="failed refunds"})', alarm=1),
            Stat("Disputes of the last day", "short", 'sum(increase(boxoffice_booking_disputes_total{status="OPEN"}[24h]))', alarm=1),
        ),
        (
            Panel("Sold, minor units per minute", "short", (('sum by (currency) (rate(boxoffice_booking_money_minor_total{kind="sold"}[$__rate_interval])) * 60', "{{currency}}"),)),
            Panel("Refunded, minor units per minute", "short", (('sum by (currency) (rate(boxoffice_booking_money_minor_total{kind="refunded"}[$__rate_interval])) * 60', "{{currency}}"),)),
            Panel("Captured by providers, minor units per minute", "short", (('sum by (provider, currency) (rate(boxoffice_payment_money_minor_total{kind="captured"}[$__rate_interval])) * 60', "{{provider}} {{currency}}"),)),
            Panel("Domain events of payments", "ops", ((_rate("boxoffice_domain_events_total", "type", '{job="payment_svc"}'), "{{type}}"),)),
            Panel("Webhooks: calls by code", "reqps", ((_rate(f"{_SERVED}_count", "rpc, code", '{rpc=~"WebhookService/.+"}'), "{{rpc}} {{code}}"),)),
            Panel("Refunds: age of the oldest", "s", (('max(boxoffice_backlog_age_seconds{queue="refunds"})', "oldest"),)),
            Panel("Booking steps: age of the oldest", "s", (('max(boxoffice_backlog_age_seconds{queue="booking steps"})', "oldest"),)),
            Panel("Stock audits", "ops", ((_rate("boxoffice_stock_audits_total", "job"), "events"),)),
            Panel("Stock audit: differences", "short", (("max(boxoffice_stock_audit_differences)", "differences"),), "Any value but 0 causes an alert."),
        ),
    ),
    Dashboard(
        "auth",
        "Boxoffice: accounts",
        (
            Stat("Calls per second", "reqps", f'sum(rate({_SERVED}_count{{job="auth_svc"}}[$__rate_interval]))'),
            Stat("Duration, p99", "s", f'histogram_quantile(0.99, sum by (le) (rate({_SERVED}_bucket{{job="auth_svc"}}[$__rate_interval])))'),
            Stat("Age of revocations", "s", "max(boxoffice_revocations_lag_seconds)", alarm=60),
            Stat("Revoked sessions and users", "short", "max(boxoffice_revocations_entries)"),
        ),
        (
            Panel("Calls", "reqps", ((_rate(f"{_SERVED}_count", "rpc", '{job="auth_svc"}'), "{{rpc}}"),)),
            Panel("Duration, p99", "s", ((_quantile(0.99, _SERVED, '{job="auth_svc"}', by="rpc"), "{{rpc}}"),), "Hashing of passwords is slow by design."),
            Panel("Refusals", "ops", ((_rate("boxoffice_rpc_server_refusals_total", "reason", '{job="auth_svc"}'), "{{reason}}"),), "Many INVALID_CREDENTIALS indicate password guessing."),
            Panel("Refused tokens in all services", "ops", ((_rate("boxoffice_rpc_server_refusals_total", "job, reason", '{reason=~"TOKEN_.+"}'), "{{job}} {{reason}}"),)),
            Panel("Domain events of accounts", "ops", ((_rate("boxoffice_domain_events_total", "type", '{job="auth_svc"}'), "{{type}}"),)),
            Panel("Mails", "ops", ((_rate("boxoffice_mails_total", "job, verdict"), "{{job}} {{verdict}}"),)),
        ),
    ),
)  # fmt: skip


def rendered(dashboard: Dashboard) -> str:
    """The dashboard's JSON for import into Grafana."""
    panels = [
        *(_stat(number, len(dashboard.stats), stat) for number, stat in enumerate(dashboard.stats)),
        *(_panel(number, panel) for number, panel in enumerate(dashboard.panels)),
    ]
    for number, panel in enumerate(panels):
        panel["id"] = number + 1
    return (
        json.dumps(
            {
                "uid": f"boxoffice-{dashboard.name}",
                "title": dashboard.title,
                "tags": ["boxoffice"],
                "schemaVersion": 41,
                "refresh": "10s",
                "time": {"from": "now-30m", "to": "now"},
                "templating": {
                    "list": [
                        {
                            "name": "source",
                            "label": "Source",
                            "type": "datasource",
                            "query": "prometheus",
                        }
                    ]
                },
                "panels": panels,
            },
            indent=1,
        )
        + "\n"
    )


def _stat(number: int, of: int, stat: Stat) -> dict[str, Any]:
    width = _COLUMNS // of
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if stat.least is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": stat.least}]
    elif stat.alarm is not None:
        steps.append({"color": "red", "value": stat.alarm})
    return {
        "type": "stat",
        "title": stat.title,
        "datasource": _SOURCE,
        "gridPos": {"x": number * width, "y": 0, "w": width, "h": _STAT_HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": stat.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"colorMode": "background", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "targets": [{"refId": "A", "expr": stat.query, "datasource": _SOURCE}],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    per_row = _COLUMNS // _WIDTH
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {
            "x": number % per_row * _WIDTH,
            "y": number // per_row * _HEIGHT + _STAT_HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": query,
                "legendFormat": legend,
                "datasource": _SOURCE,
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(rendered(dashboard))


if __name__ == "__main__":
    main()
