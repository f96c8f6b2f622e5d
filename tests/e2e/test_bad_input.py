"""Refused requests: their errors, and that they change nothing."""

from typing import Any

import grpc
import httpx
import pytest

from boxoffice.catalogue.v1 import event_pb2, event_service_pb2
from boxoffice.types.v1 import money_pb2
from mesh.ids import new_id
from testing.running_mesh import PASSWORD, Api, an_event, items, reason, violated_fields


@pytest.fixture(scope="module")
def sale(mesh: Any) -> Any:
    """An admin, a customer whose requests are refused, and an event whose state must not change."""
    with httpx.Client(base_url=mesh.url, timeout=60) as client:
        from testing.running_mesh import ADMIN_SECRET

        api = Api(client)
        admin, customer = api.sign_up(admin_secret=ADMIN_SECRET), api.sign_up()
        event = admin.create_event()
        yield admin, customer, event


@pytest.fixture(autouse=True)
def unchanged(sale: Any) -> Any:
    """Checks that stock, bookings and money are the same after each test."""
    admin, _, event = sale

    def state() -> Any:
        path = f"/api/v1/events/{event['eventId']}"
        return (
            admin.get(f"{path}/stock/audit").json(),
            admin.get(f"{path}/stock/movements").json()["totalSize"],
            admin.get(f"{path}/bookings").json()["totalSize"],
            len(admin.get("/sandbox/ledger?page_size=1000").json()["entries"]),
        )

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("quantity", [0, -1, 11, 1001, 2_147_483_648, "two", 1.5])
def test_invalid_quantities(sale: Any, quantity: Any) -> None:
    _, customer, event = sale
    refused = customer.book(items(event, quantity))
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert "quantity" in refused.json()["message"]


def test_an_invalid_field_is_named_in_the_violations(sale: Any) -> None:
    _, customer, event = sale
    assert violated_fields(customer.book(items(event, 0))) == {"items[0].quantity"}
    assert violated_fields(customer.book(items(event, 11))) == {"items[0].quantity"}


def test_unknown_event_and_offer(sale: Any) -> None:
    _, customer, event = sale
    unknown = customer.book({**items(event), "eventId": str(new_id())})
    assert (unknown.status_code, reason(unknown)) == (404, "EVENT_NOT_FOUND")
    offer = {"offerId": str(new_id()), "quantity": 1}
    unknown = customer.book({**items(event), "items": [offer]})
    assert (unknown.status_code, reason(unknown)) == (404, "OFFER_NOT_FOUND")
    unknown = customer.get(f"/api/v1/events/{new_id()}")
    assert (unknown.status_code, reason(unknown)) == (404, "EVENT_NOT_FOUND")


def test_the_idempotency_key_is_required(sale: Any) -> None:
    _, customer, event = sale
    refused = customer.post("/api/v1/bookings", items(event))
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"Idempotency-Key"}


def test_the_sale_is_not_open(sale: Any) -> None:
    admin, customer, _ = sale
    event = admin.create_event(saleStartTime="2098-01-01T00:00:00Z")
    assert event["status"] == "UPCOMING"
    refused = customer.book(items(event))
    assert (refused.status_code, reason(refused)) == (409, "SALE_NOT_ACTIVE")
    metadata = refused.json()["details"][0]["metadata"]
    assert metadata["starts"] == "2098-01-01T00:00:00Z"
    assert metadata["ends"] == "2099-07-04T14:00:00Z"


def test_sold_out(sale: Any) -> None:
    admin, customer, _ = sale
    event = admin.create_event()
    assert customer.book(items(event, 8)).status_code == 201
    refused = customer.sign_up().book(items(event, 3))
    assert (refused.status_code, reason(refused)) == (409, "SOLD_OUT")
    metadata = refused.json()["details"][0]["metadata"]
    assert (metadata["requested"], metadata["available"]) == ("3", "2")


def test_the_purchase_limit_of_a_customer(sale: Any) -> None:
    admin, customer, _ = sale
    event = admin.create_event()
    event = admin.create_event(offers=[{**event["offers"][0], "perCustomerLimit": 3, "poolId": ""}])
    assert customer.book(items(event, 2)).status_code == 201
    refused = customer.book(items(event, 2))
    assert (refused.status_code, reason(refused)) == (409, "PURCHASE_LIMIT_EXCEEDED")


def test_a_key_used_for_another_request(sale: Any) -> None:
    admin, customer, _ = sale
    event = admin.create_event()
    assert customer.book(items(event), key="mine").status_code == 201
    refused = customer.book(items(event, 2), key="mine")
    assert (refused.status_code, reason(refused)) == (409, "IDEMPOTENCY_KEY_REUSED")


def test_another_customers_booking(sale: Any) -> None:
    admin, customer, _ = sale
    booking = customer.book(items(admin.create_event())).json()
    path = f"/api/v1/bookings/{booking['bookingId']}"
    stranger = customer.sign_up()
    for refused in (
        stranger.get(path),
        stranger.post(f"{path}/cancel", {}),
        stranger.post(f"{path}/checkout", {"provider": "sandbox"}),
    ):
        assert (refused.status_code, reason(refused)) == (404, "BOOKING_NOT_FOUND")
    assert admin.get(path).status_code == 200


def test_methods_for_staff_refuse_customers(sale: Any) -> None:
    _, customer, event = sale
    for refused in (
        customer.post("/api/v1/events", {}),
        customer.get(f"/api/v1/events/{event['eventId']}/bookings"),
        customer.get(f"/api/v1/events/{event['eventId']}/stock/audit"),
    ):
        assert (refused.status_code, reason(refused)) == (403, "STAFF_REQUIRED")


def test_invalid_tokens(sale: Any) -> None:
    _, customer, event = sale
    head, payload, signature = customer.token.split(".")
    forged = f"{head}.{payload}.{signature[:-4]}AAAA"
    for token in (None, "nonsense", forged, f"{head}.{payload}."):
        refused = Api(customer.client, token).book(items(event))
        assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")
        assert refused.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("body", [b"", b"{", b"not json", b"[]", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_not_a_json_object(sale: Any, body: bytes) -> None:
    _, customer, _ = sale
    refused = customer.client.post(
        "/api/v1/bookings",
        content=body,
        headers={
            "authorization": f"Bearer {customer.token}",
            "content-type": "application/json",
            "idempotency-key": "k",
        },
    )
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")


def test_a_body_that_is_too_large(sale: Any) -> None:
    _, customer, _ = sale
    refused = customer.book({"padding": "x" * 1_100_000})
    assert (refused.status_code, reason(refused)) == (413, "REQUEST_TOO_LARGE")


def test_long_urls_and_headers(sale: Any) -> None:
    """Up to the gateway's limit each is answered as a short one would be; none shows headers."""
    _, customer, event = sale
    path = f"/api/v1/events/{event['eventId']}"
    for length in (9_000, 14_000, 25_000):
        searched = customer.get(f"/api/v1/search?query={'y' * length}")
        assert reason(searched) == "VALIDATION_FAILED", searched.text
        assert violated_fields(searched) == {"query"}
        unknown = customer.get(f"/api/v1/events/{'y' * length}")
        assert unknown.status_code == 400, unknown.text
        read = customer.client.get(path, headers={"cookie": "y" * length})
        assert read.status_code == 200, read.text
    refused = customer.client.get(path, headers={"cookie": "y" * 40_000})
    assert (refused.status_code, reason(refused)) == (431, "REQUEST_TOO_LARGE")
    assert "x-" not in refused.text


def test_unknown_paths(sale: Any) -> None:
    _, customer, _ = sale
    for path in ("/api/v1/nothing", "/api/v2/bookings", "/boxoffice.bookings.v1.Nothing/Do"):
        refused = customer.get(path)
        assert (refused.status_code, reason(refused)) == (404, "ROUTE_NOT_FOUND")


def test_invalid_events(sale: Any) -> None:
    admin, _, event = sale
    faulty = {"name": "", "saleStartTime": "2020-01-01T00:00:00Z", "offers": []}
    refused = admin.post("/api/v1/events", faulty)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"name", "offers"}
    offer = {**event["offers"][0], "price": {"currencyCode": "rupees", "amountMinor": "-1"}}
    refused = admin.post(
        "/api/v1/events",
        {"name": "x", "saleStartTime": "2020-01-01T00:00:00Z", "offers": [offer]},
    )
    assert violated_fields(refused) == {
        "offers[0].price.currencyCode",
        "offers[0].price.amountMinor",
    }


def test_a_webhook_without_a_signature(sale: Any) -> None:
    _, customer, _ = sale
    refused = customer.client.post("/webhooks/sandbox", content=b'{"type": "payment.captured"}')
    assert (refused.status_code, reason(refused)) == (401, "WEBHOOK_SIGNATURE_INVALID")


AN_ACCOUNT = {"password": PASSWORD, "fullName": "Mira Rao", "phone": "+919876543210"}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"email": "mira"}, {"email"}),
        ({"email": f"{'m' * 250}@example.com"}, {"email"}),
        ({"email": "mi\x00ra@example.com"}, {"email"}),
        ({"fullName": "Mira\x00Rao"}, {"fullName"}),
        ({"fullName": "Mira\x1b[31mRao"}, {"fullName"}),
        ({"fullName": "M" * 101}, {"fullName"}),
        ({"phone": "0123"}, {"phone"}),
        ({"phone": "+91987654321\x00"}, {"phone"}),
        ({"phone": "+9198765432101234567"}, {"phone"}),
        ({"password": "Aa1!" * 257}, {"password"}),
        ({"email": "@", "fullName": "-", "phone": "+0"}, {"email", "fullName", "phone"}),
    ],
)
def test_invalid_accounts(sale: Any, changes: Any, fields: set[str]) -> None:
    _, customer, _ = sale
    account = {"email": f"{new_id()}@example.com", **AN_ACCOUNT, **changes}
    refused = customer.post("/api/v1/auth/register", account)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == fields


@pytest.mark.parametrize("path", ["register", "login", "refresh", "reset-password"])
def test_a_text_that_is_not_utf_8(sale: Any, path: str) -> None:
    _, customer, _ = sale
    texts = b'{"email": "%b", "password": "%b", "fullName": "%b", "refreshToken": "%b"}'
    refused = customer.client.post(
        f"/api/v1/auth/{path}",
        content=texts % ((b"\xc3\x28\xff",) * 4),
        headers={"content-type": "application/json"},
    )
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")


def test_all_unmet_rules_of_a_password_are_reported(sale: Any) -> None:
    _, customer, _ = sale
    account = {"email": f"{new_id()}@example.com", **AN_ACCOUNT, "password": "\x01"}
    refused = customer.post("/api/v1/auth/register", account)
    assert (refused.status_code, reason(refused)) == (400, "PASSWORD_TOO_WEAK")
    assert violated_fields(refused) == {"password"}
    [violations] = [
        detail["fieldViolations"]
        for detail in refused.json()["details"]
        if "BadRequest" in detail["@type"]
    ]
    unmet = [violation["description"] for violation in violations]
    for word in ("characters", "upper-case", "lower-case", "digit", "special", "control"):
        assert len([rule for rule in unmet if word in rule]) >= 1, (word, unmet)
    assert len(unmet) == 6, unmet
    # Signs around a common password or the own name do not help.
    for password in ("Password-123!", "Mira-Rao-2026!"):
        refused = customer.post("/api/v1/auth/register", {**account, "password": password})
        assert (refused.status_code, reason(refused)) == (400, "PASSWORD_TOO_WEAK"), password


@pytest.mark.parametrize("password", ["Aa1!" * 25, "Ää1!" * 20], ids=["ascii", "utf-8"])
def test_bytes_after_the_72nd_of_a_password_are_significant(sale: Any, password: str) -> None:
    """bcrypt itself reads 72 bytes at most."""
    _, customer, _ = sale
    email = f"{new_id()}@example.com"
    created = customer.post(
        "/api/v1/auth/register", {**AN_ACCOUNT, "email": email, "password": password}
    )
    assert created.status_code == 201, created.text
    prefix = password.encode()[:72].decode()
    for wrong in (prefix, password[:-1], password + "x"):
        refused = customer.post("/api/v1/auth/login", {"email": email, "password": wrong})
        assert (refused.status_code, reason(refused)) == (401, "INVALID_CREDENTIALS")
    customer.sign_in(email, password)


def test_a_refused_sign_in_does_not_reveal_whether_an_account_exists(sale: Any) -> None:
    _, customer, _ = sale
    answers = [
        customer.post("/api/v1/auth/login", {"email": email, "password": "Wrong-Door-58"})
        for email in (customer.session["user"]["email"], f"{new_id()}@example.com")
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    known, unknown = (answer.json() for answer in answers)
    for body in (known, unknown):
        # RequestInfo differs between requests.
        body["details"] = [
            detail for detail in body["details"] if "RequestInfo" not in detail["@type"]
        ]
    assert known == unknown
    assert answers[0].headers.keys() == answers[1].headers.keys()


@pytest.mark.parametrize(
    "price",
    [
        {"currencyCode": "INR"},
        {"currencyCode": "INR", "amount": "150000"},
        {"currencyCode": "INR", "amountMinor": None},
    ],
)
def test_an_amount_that_is_not_written_is_not_0(sale: Any, price: Any) -> None:
    admin, customer, event = sale
    field = "amount" if "amount" in price else "amountMinor"
    offer = event["offers"][0]["offerId"]
    path = f"/api/v1/events/{event['eventId']}"
    booking = customer.book(items(admin.create_event())).json()
    requests = (
        (
            "offers[0].price",
            "POST",
            "/api/v1/events",
            an_event(offers=[{"name": "Floor", "price": price, "capacity": 1}]),
        ),
        ("offers[0].price", "PATCH", path, {"offers": [{"offerId": offer, "price": price}]}),
        (
            "amount",
            "POST",
            f"/api/v1/payments/{booking['bookingId']}/refund",
            {"amount": price, "reason": "x"},
        ),
    )
    for prefix, verb, target, body in requests:
        refused = admin.client.request(
            verb,
            target,
            json=body,
            headers={"authorization": f"Bearer {admin.token}", "idempotency-key": str(new_id())},
        )
        assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED"), refused.text
        assert violated_fields(refused) == {f"{prefix}.{field}"}
        assert "amountMinor" in refused.json()["message"]
    assert admin.get(path).json()["offers"] == event["offers"]


def test_a_percentage_that_is_not_written_is_not_0(sale: Any) -> None:
    admin, _, _ = sale
    tiers = [{"beforeStart": "86400s"}]
    refused = admin.post(
        "/api/v1/events", an_event(cancellationPolicy={"tiered": {"tiers": tiers}})
    )
    assert violated_fields(refused) == {"cancellationPolicy.tiered.tiers[0].percent"}


def test_a_price_of_0_is_written(sale: Any) -> None:
    admin, _, _ = sale
    price = {"currencyCode": "INR", "amountMinor": "0"}
    event = admin.create_event(offers=[{"name": "Floor", "price": price, "capacity": 1}])
    assert event["offers"][0]["price"] == price


def test_an_amount_is_required_over_grpc_too(mesh: Any, sale: Any) -> None:
    admin, _, _ = sale
    change = event_pb2.EventChange(
        offers=[event_pb2.OfferChange(price=money_pb2.Money(currency_code="INR"))]
    )
    with grpc.insecure_channel(mesh.url.removeprefix("http://")) as channel:
        update = channel.unary_unary(
            "/boxoffice.catalogue.v1.EventService/UpdateEvent",
            event_service_pb2.UpdateEventRequest.SerializeToString,
            event_pb2.Event.FromString,
        )
        with pytest.raises(grpc.RpcError) as refusal:
            update(
                event_service_pb2.UpdateEventRequest(event_id=str(new_id()), event=change),
                metadata=(("authorization", f"Bearer {admin.token}"),),
            )
    assert "event.offers[0].price.amount_minor" in str(refusal.value)


def test_unknown_input_changes_nothing(sale: Any) -> None:
    admin, customer, event = sale
    path = f"/api/v1/events/{event['eventId']}"
    for refused, field in (
        (admin.send("PUT", path, {"status": "PAUSED"}), "status"),
        (customer.send("PATCH", "/api/v1/auth/profile", {"email": "x@example.com"}), "email"),
        (customer.post("/api/v1/auth/logout", {"Scope": "CURRENT_SESSION"}), "Scope"),
        (customer.get("/api/v1/bookings?stat=HELD"), "stat"),
    ):
        assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
        assert violated_fields(refused) == {field}
    assert customer.get("/api/v1/auth/me").status_code == 200
    assert admin.get(path).json()["status"] == "ON_SALE"
