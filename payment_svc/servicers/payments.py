"""PaymentService: message → plain values → one domain call → message."""

from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.payments.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import money_from_proto, time_from_proto
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, key_of_call
from mesh.db.jobs import Wakeup
from mesh.rpc.call import caller
from mesh.tasks import shielded
from payment_svc import captures, declines, disputes, payments, refunds
from payment_svc.proto import payment_to_proto, provider_to_proto, refund_to_proto
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import Order

# A step that moves money continues when its caller disconnects, for at most this long.
_PROVIDER_STEP_SECONDS = 12.0
_DATABASE_STEP_SECONDS = 8.0
_DEFAULT_PAGE_SIZE = 100

_Context = grpc.aio.ServicerContext[Any, Any]


class PaymentServicer(payment_service_pb2_grpc.PaymentServiceServicer):
    def __init__(
        self,
        database: Database,
        writes: IdempotentWrites,
        calls: ProviderCalls,
        clock: Clock,
        refund_requested: Wakeup,
    ) -> None:
        self._database = database
        self._writes = writes
        self._calls = calls
        self._clock = clock
        self._refund_requested = refund_requested

    async def CreatePayment(
        self, request: payment_service_pb2.CreatePaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        order = Order(
            payment_id=UUID(request.payment_id),
            booking_id=UUID(request.booking_id),
            customer_id=UUID(request.customer_id),
            provider=request.provider,
            amount=money_from_proto(request.amount),
            description=request.description,
            success_url=request.success_url,
            cancel_url=request.cancel_url,
            event_id=UUID(request.event_id) if request.event_id else None,
            is_embedded=request.embedded,
            email=request.email,
            phone=request.phone,
            expire_time=time_from_proto(request.expire_time, "expire_time")
            if request.HasField("expire_time")
            else None,
        )
        return payment_to_proto(
            await shielded(self._calls.open(order), seconds=_PROVIDER_STEP_SECONDS)
        )

    async def CapturePayment(
        self, request: payment_service_pb2.CapturePaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        step = self._calls.capture(UUID(request.payment_id))
        return payment_to_proto(await shielded(step, seconds=_PROVIDER_STEP_SECONDS))

    async def VoidPayment(
        self, request: payment_service_pb2.VoidPaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        step = self._calls.void(UUID(request.payment_id))
        return payment_to_proto(await shielded(step, seconds=_PROVIDER_STEP_SECONDS))

    async def RefundPayment(
        self, request: payment_service_pb2.RefundPaymentRequest, context: _Context
    ) -> payment_pb2.Refund:
        # Services choose the id: they store a refund before they request it.
        has_id = request.HasField("refund_id") and caller().user_id is None

        async def create(connection: AsyncConnection) -> tuple[UUID, bytes]:
            refund = await refunds.request(
                connection,
                payment_id=UUID(request.payment_id),
                amount=money_from_proto(request.amount) if request.HasField("amount") else None,
                reason=request.reason,
                refund_id=UUID(request.refund_id) if has_id else None,
                step_minor=self._calls.step_minor,
                now=self._clock(),
            )
            return refund.refund_id, refund_to_proto(refund).SerializeToString()

        write = self._writes.run_once(key_of_call("RefundPayment", request), create)
        answer = await shielded(write, seconds=_DATABASE_STEP_SECONDS)
        self._refund_requested.ring()
        return payment_pb2.Refund.FromString(answer)

    async def ListProviders(
        self, request: payment_service_pb2.ListProvidersRequest, context: _Context
    ) -> payment_service_pb2.ListProvidersResponse:
        return payment_service_pb2.ListProvidersResponse(
            providers=[
                provider_to_proto(
                    name, limits, has_embedded=self._calls.provider(name).has_embedded
                )
                for name, limits in self._calls.limits(request.currency_code).items()
            ]
        )

    async def GetPayment(
        self, request: payment_service_pb2.GetPaymentRequest, context: _Context
    ) -> payment_pb2.Payment:
        owner = caller().owner_scope
        async with self._database.reading() as connection:
            payment = await payments.find(
                connection, payment_id=UUID(request.payment_id), owner=owner
            )
            # Customers do not see disputes.
            payment_disputes = (
                await disputes.of_payment(connection, payment_id=payment.payment_id)
                if owner is None
                else ()
            )
            declined = await declines.of_payment(connection, payment_id=payment.payment_id)
            capture = await captures.find_accepted(connection, payment_id=payment.payment_id)
        return payment_to_proto(
            payment, payment_disputes, declined, None if capture is None else capture.refundable
        )

    async def GetRefund(
        self, request: payment_service_pb2.GetRefundRequest, context: _Context
    ) -> payment_pb2.Refund:
        owner = caller().owner_scope
        async with self._database.reading() as connection:
            refund = await refunds.find(connection, refund_id=UUID(request.refund_id), owner=owner)
        return refund_to_proto(refund, with_note=owner is None)

    async def ListFailedRefunds(
        self, request: payment_service_pb2.ListFailedRefundsRequest, context: _Context
    ) -> payment_service_pb2.ListFailedRefundsResponse:
        limit = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        async with self._database.reading() as connection:
            failed = await refunds.list_failed(
                connection, after=paging.id_from_token(request.page_token), limit=limit + 1
            )
        response = payment_service_pb2.ListFailedRefundsResponse(
            refunds=[refund_to_proto(refund, with_note=True) for refund in failed[:limit]]
        )
        if len(failed) > limit:
            response.next_page_token = paging.to_token(str(failed[limit - 1].refund_id))
        return response

    async def RetryRefund(
        self, request: payment_service_pb2.RetryRefundRequest, context: _Context
    ) -> payment_pb2.Refund:
        async with self._database.transaction() as connection:
            refund = await refunds.retry(
                connection, refund_id=UUID(request.refund_id), now=self._clock()
            )
        self._refund_requested.ring()
        return refund_to_proto(refund, with_note=True)

    async def SettleRefund(
        self, request: payment_service_pb2.SettleRefundRequest, context: _Context
    ) -> payment_pb2.Refund:
        async with self._database.transaction() as connection:
            refund = await refunds.settle(
                connection,
                refund_id=UUID(request.refund_id),
                note=request.note.strip(),
                now=self._clock(),
            )
        return refund_to_proto(refund, with_note=True)
