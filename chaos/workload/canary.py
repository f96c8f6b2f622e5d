"""One customer whose purchases show whether the whole mesh works, through no proxy of its own."""

import ssl
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

from chaos.client import Api

_LIMIT = 1_000_000
_EVENT = {
    "name": "Free entrance",
    "timeZone": "Asia/Kolkata",
    "startTime": "2099-07-04T14:00:00Z",
    "saleStartTime": "2020-01-01T00:00:00Z",
    "offers": [
        {
            "name": "Standing",
            "price": {"currencyCode": "INR", "amountMinor": "0"},
            "capacity": _LIMIT,
            "perCustomerLimit": _LIMIT,
        }
    ],
}
_ACCOUNT = {"password": "Front-Row-2026!"}


@dataclass
class Canary:
    """Buys places that cost nothing, through every gateway, each within `seconds`."""

    urls: list[str]
    headers: dict[str, str]
    body: dict[str, object]
    seconds: float
    purchases: int = 0
    # Loading the certificates takes longer than a purchase.
    _tls: ssl.SSLContext = field(default_factory=httpx.create_ssl_context)

    @classmethod
    async def create(
        cls, api: Api, staff_token: str, urls: list[str], *, seconds: float
    ) -> "Canary":
        event = await api.call("POST", "/api/v1/events", body=_EVENT, token=staff_token)
        account = {**_ACCOUNT, "email": f"canary.{uuid4().hex[:12]}@example.com"}
        await api.call("POST", "/api/v1/auth/register", body={**account, "fullName": "Canary"})
        session = await api.call("POST", "/api/v1/auth/login", body=account)
        item = {"offerId": event["offers"][0]["offerId"], "quantity": 1}
        return cls(
            urls,
            {"authorization": f"Bearer {session['accessToken']}"},
            {
                "eventId": event["eventId"],
                "items": [item],
                "checkout": {"provider": "sandbox"},
            },
            seconds,
        )

    @property
    def event_id(self) -> str:
        return str(self.body["eventId"])

    async def buys(self) -> bool:
        """Whether a purchase through every gateway is confirmed in time."""
        async with httpx.AsyncClient(
            timeout=self.seconds, trust_env=False, verify=self._tls
        ) as client:
            for url in self.urls:
                try:
                    answer = await client.post(
                        f"{url}/api/v1/bookings",
                        json=self.body,
                        headers={**self.headers, "idempotency-key": uuid4().hex},
                    )
                except httpx.HTTPError:
                    return False
                if (
                    answer.status_code != httpx.codes.CREATED
                    or answer.json()["status"] != "CONFIRMED"
                ):
                    return False
        self.purchases += 1
        return True
