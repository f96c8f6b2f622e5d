"""Grafana's dashboards, written from the table below: `python -m deploy.dashboards`.

Import the files of deploy/grafana/ into Grafana, with a Prometheus data source that scrapes
as deploy/prometheus/prometheus.yaml does. A test asks a running mesh for every metric named.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana"

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24
_P = "histogram_quantile({}, sum by (le{}) (rate({}_bucket{}[$__rate_interval])))"


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph. `unit` is Grafana's; `queries` are PromQL with the legend of their lines."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{labels}[$__rate_interval]))"


def _quantile(share: float, metric: str, labels: str = "", by: str = "") -> str:
    return _P.format(share, f", {by}" if by else "", metric, labels)


_SERVED = "boxoffice_rpc_server_seconds"
_BOOKING = '{rpc="BookingService/PlaceBooking"}'

DASHBOARDS = (
    Dashboard(
        "mesh",
        "Boxoffice: the mesh",
        (
            Panel("Processes that are ready", "short", (("sum by (job) (boxoffice_ready)", "{{job}}"),)),
            Panel("Calls", "reqps", ((_rate(f"{_SERVED}_count", "job"), "{{job}}"),)),
            Panel(
                "Calls that failed",
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
                "By us or by what we depend on; refusals are answers and not here.",
            ),
            Panel("Duration, 99 of 100", "s", ((_quantile(0.99, _SERVED, by="job"), "{{job}}"),)),
            Panel("Calls being served", "short", (("sum by (job) (boxoffice_rpc_server_running)", "{{job}}"),)),
            Panel("Outgoing calls, 99 of 100", "s", ((_quantile(0.99, "boxoffice_rpc_client_seconds", by="rpc"), "{{rpc}}"),)),
            Panel("Processor", "percentunit", ((_rate("process_cpu_seconds_total", "job"), "{{job}}"),)),
            Panel("Memory", "bytes", (("sum by (job) (process_resident_memory_bytes)", "{{job}}"),)),
            Panel("Event loop late, 99 of 100", "s", ((_quantile(0.99, "boxoffice_event_loop_delay_seconds", by="job"), "{{job}}"),)),
            Panel("Database: statements", "ops", ((_rate("boxoffice_database_statement_seconds_count", "job, kind"), "{{job}} {{kind}}"),)),
            Panel("Database: free connections", "short", (('min by (job) (boxoffice_database_connections{state="free"})', "{{job}}"),)),
            Panel("Database: wait for a connection, 99 of 100", "s", ((_quantile(0.99, "boxoffice_database_wait_seconds", by="job"), "{{job}}"),)),
            Panel("Loops that fail", "ops", ((_rate("boxoffice_loop_failures_total", "job, loop"), "{{job}} {{loop}}"),)),
            Panel("Streams: age of events when sent, 99 of 100", "s", ((_quantile(0.99, "boxoffice_outbox_delay_seconds", by="job"), "{{job}}"),)),
            Panel("Queues: the oldest waits", "s", (("max by (queue) (boxoffice_backlog_age_seconds)", "{{queue}}"),)),
            Panel("Gateway: requests by status", "reqps", ((_rate("envoy_http_downstream_rq_xx", "envoy_response_code_class", '{envoy_http_conn_manager_prefix="gateway"}'), "{{envoy_response_code_class}}xx"),)),
            Panel("Gateway: turned away", "reqps", ((_rate("envoy_cluster_upstream_rq_active_overflow", "envoy_cluster_name", '{envoy_cluster_name=~".+_svc"}'), "{{envoy_cluster_name}}"),), "More than the replicas get done in time: answered with 429 at once."),
            Panel("Gateway: healthy replicas", "short", (("min by (envoy_cluster_name) (envoy_cluster_membership_healthy)", "{{envoy_cluster_name}}"),)),
            Panel("Gateway: connections", "short", (('sum(envoy_http_downstream_cx_active{envoy_http_conn_manager_prefix="gateway"})', "open"),)),
        ),
    ),
    Dashboard(
        "on-sale",
        "Boxoffice: a sale, live",
        (
            Panel("Bookings", "ops", ((_rate("boxoffice_domain_events_total", "type", '{job="booking_svc"}'), "{{type}}"),), "What happens to bookings, by event."),
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
                "Of the holds of the last quarter of an hour; above 1 when the rush is over.",
            ),
            Panel("Refusals of bookings", "ops", ((_rate("boxoffice_rpc_server_refusals_total", "reason", _BOOKING), "{{reason}}"),)),
            Panel(
                "Booking: duration",
                "s",
                tuple((_quantile(share, _SERVED, _BOOKING), f"{share:.0%}") for share in (0.5, 0.9, 0.99)),
            ),
            Panel("Booking: answers", "reqps", ((_rate(f"{_SERVED}_count", "code", _BOOKING), "{{code}}"),)),
            Panel("Reserving in stock_svc, 99 of 100", "s", ((_quantile(0.99, _SERVED, '{job="stock_svc"}', by="rpc"), "{{rpc}}"),)),
            Panel("From booking to confirmation", "s", tuple((_quantile(share, "boxoffice_booking_confirm_seconds"), f"{share:.0%}") for share in (0.5, 0.9))),
            Panel("Cache: reads", "ops", ((_rate("boxoffice_cache_reads_total", "result"), "{{result}}"),)),
            Panel("Waiting for a database connection, 99 of 100", "s", ((_quantile(0.99, "boxoffice_database_wait_seconds", by="job"), "{{job}}"),)),
        ),
    ),
    Dashboard(
        "money",
        "Boxoffice: money",
        (
            Panel("Sold, minor units a minute", "short", (('sum by (currency) (rate(boxoffice_booking_money_minor_total{kind="sold"}[$__rate_interval])) * 60', "{{currency}}"),)),
            Panel("Refunded, minor units a minute", "short", (('sum by (currency) (rate(boxoffice_booking_money_minor_total{kind="refunded"}[$__rate_interval])) * 60', "{{currency}}"),)),
            Panel("Taken by providers, minor units a minute", "short", (('sum by (provider, currency) (rate(boxoffice_payment_money_minor_total{kind="captured"}[$__rate_interval])) * 60', "{{provider}} {{currency}}"),)),
            Panel("What happens to payments", "ops", ((_rate("boxoffice_domain_events_total", "type", '{job="payment_svc"}'), "{{type}}"),)),
            Panel("Webhooks: answers", "reqps", ((_rate(f"{_SERVED}_count", "rpc, code", '{rpc=~"WebhookService/.+"}'), "{{rpc}} {{code}}"),)),
            Panel("Refunds: the oldest waits", "s", (('max(boxoffice_backlog_age_seconds{queue="refunds"})', "oldest"),)),
            Panel("Steps of bookings: the oldest waits", "s", (('max(boxoffice_backlog_age_seconds{queue="booking steps"})', "oldest"),)),
            Panel("Stock audits", "ops", ((_rate("boxoffice_stock_audits_total", "job"), "events"),)),
            Panel("Stock audit: differences", "short", (("max(boxoffice_stock_audit_differences)", "differences"),), "Anything but 0 wakes somebody."),
        ),
    ),
    Dashboard(
        "auth",
        "Boxoffice: accounts",
        (
            Panel("Calls", "reqps", ((_rate(f"{_SERVED}_count", "rpc", '{job="auth_svc"}'), "{{rpc}}"),)),
            Panel("Duration, 99 of 100", "s", ((_quantile(0.99, _SERVED, '{job="auth_svc"}', by="rpc"), "{{rpc}}"),), "Passwords are slow on purpose."),
            Panel("Refusals", "ops", ((_rate("boxoffice_rpc_server_refusals_total", "reason", '{job="auth_svc"}'), "{{reason}}"),), "Many INVALID_CREDENTIALS: somebody tries passwords."),
            Panel("Tokens refused anywhere", "ops", ((_rate("boxoffice_rpc_server_refusals_total", "job, reason", '{reason=~"TOKEN_.+"}'), "{{job}} {{reason}}"),)),
            Panel("What happens to accounts", "ops", ((_rate("boxoffice_domain_events_total", "type", '{job="auth_svc"}'), "{{type}}"),)),
            Panel("Mails", "ops", ((_rate("boxoffice_mails_total", "job, verdict"), "{{job}} {{verdict}}"),)),
        ),
    ),
)  # fmt: skip


def rendered(dashboard: Dashboard) -> str:
    """The dashboard as Grafana imports it."""
    panels = [_panel(number, panel) for number, panel in enumerate(dashboard.panels)]
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


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    per_row = _COLUMNS // _WIDTH
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": source,
        "gridPos": {
            "x": number % per_row * _WIDTH,
            "y": number // per_row * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + each),
                "expr": query,
                "legendFormat": legend,
                "datasource": source,
            }
            for each, (query, legend) in enumerate(panel.queries)
        ],
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(rendered(dashboard))


if __name__ == "__main__":
    main()
