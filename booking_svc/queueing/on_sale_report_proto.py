"""Conversion of the on-sale report to the contract's message."""

from collections.abc import Mapping

from booking_svc.bookings.bookings import Status
from booking_svc.queueing import durations
from booking_svc.queueing.on_sale_report import Histogram, Interval, OnSaleReport
from booking_svc.queueing.waiting_list_entries import State
from boxoffice.queueing.v1 import on_sale_report_pb2, waiting_room_pb2
from mesh.conversions import time_to_proto


def report(value: OnSaleReport) -> on_sale_report_pb2.OnSaleReport:
    visitors, booked, listed = value.visitors, value.bookings, value.waiting_list
    return on_sale_report_pb2.OnSaleReport(
        event_id=str(value.event.event_id),
        event_name=value.event.name,
        report_time=time_to_proto(value.report_time),
        sale_start_time=time_to_proto(value.event.sale_start_time),
        sale_end_time=time_to_proto(value.event.sale_end_time),
        interval_seconds=int(value.interval.total_seconds()),
        intervals=map(_interval, value.intervals),
        visitors=(
            None
            if visitors is None
            else on_sale_report_pb2.OnSaleVisitors(
                joined=visitors.joined,
                participants=visitors.participants,
                admitted=visitors.admitted,
                claimed=visitors.claimed,
                booked=visitors.booked,
                bought=visitors.bought,
            )
        ),
        refusals=[
            waiting_room_pb2.QueueRefusals(cause=cause, count=count)
            for cause, count in value.refusals.items()
        ],
        durations=_durations(value.histograms),
        bookings=on_sale_report_pb2.OnSaleBookings(
            placed=sum(booked.values()),
            confirmed=booked.get(Status.CONFIRMED, 0) + booked.get(Status.COMPLETED, 0),
            open=booked.get(Status.HELD, 0) + booked.get(Status.PENDING_PAYMENT, 0),
            expired=booked.get(Status.EXPIRED, 0),
            failed=booked.get(Status.FAILED, 0),
            cancelled=booked.get(Status.CANCELLED, 0),
        ),
        pools=[
            on_sale_report_pb2.OnSalePool(
                pool_id=str(pool.pool_id),
                offer_names=pool.offer_names,
                sold=pool.sold,
                held=pool.held,
            )
            for pool in value.pools
        ],
        money=on_sale_report_pb2.OnSaleMoney(
            currency_code=value.event.currency_code,
            confirmed_minor=value.money.confirmed_minor,
            captured_minor=value.money.captured_minor,
            refunded_minor=value.money.refunded_minor,
            rescheduled=value.money.rescheduled,
        ),
        waiting_list=on_sale_report_pb2.OnSaleWaitingList(
            joined=sum(listed.values()),
            waiting=listed.get(State.WAITING, 0),
            offered=listed.get(State.OFFERED, 0),
            claimed=listed.get(State.CLAIMED, 0),
            expired=listed.get(State.EXPIRED, 0),
            left=listed.get(State.LEFT, 0),
        ),
        admissions=[
            on_sale_report_pb2.OnSaleAdmission(number=number, place=place)
            for number, place in value.admissions
        ],
        open_steps=value.open_steps,
    )


def _interval(value: Interval) -> on_sale_report_pb2.OnSaleInterval:
    return on_sale_report_pb2.OnSaleInterval(
        start_time=time_to_proto(value.start_time),
        **value.counts,
        durations=_durations(value.histograms),
    )


def _durations(
    histograms: Mapping[str, Histogram],
) -> list[on_sale_report_pb2.OnSaleDurations]:
    return [
        on_sale_report_pb2.OnSaleDurations(
            call=call,
            count=sum(histogram.values()),
            p50_ms=durations.percentile(histogram, 50),
            p95_ms=durations.percentile(histogram, 95),
            p99_ms=durations.percentile(histogram, 99),
        )
        for call, histogram in sorted(histograms.items())
    ]
