"""API keys of machines, through the gateway."""

from datetime import UTC, datetime, timedelta

from testing.running_mesh import Api, an_event, items, reason

KEYS = "/api/v1/api-keys"


def create(admin: Api, role: str) -> tuple[str, Api]:
    """A new key's id, and a client that uses the key."""
    end = datetime.now(UTC) + timedelta(days=30)
    made = admin.post(KEYS, {"name": "Till 3", "role": role, "expireTime": end.isoformat()})
    assert made.status_code == 201
    key = made.json()
    assert key["key"].startswith(key["keyStart"])
    assert key["creatorId"] == admin.user_id
    return key["apiKeyId"], Api(admin.client, key["key"])


def test_machines_sell_and_manage_with_keys_until_they_are_revoked(
    admin: Api, customer: Api
) -> None:
    staff_id, staff = create(admin, "STAFF")
    till_id, till = create(admin, "CUSTOMER")
    event = staff.post("/api/v1/events", an_event()).json()
    placed = till.book({**items(event), "checkout": {"provider": "sandbox"}})
    assert placed.status_code == 201, placed.text
    booking = placed.json()
    assert booking["customerId"] == till_id
    assert till.get(f"/api/v1/bookings/{booking['bookingId']}").json() == booking
    assert staff.get(f"/api/v1/bookings/{booking['bookingId']}").status_code == 200
    assert customer.get(f"/api/v1/bookings/{booking['bookingId']}").status_code == 404
    # Its role decides, as a user's does.
    refused = till.post("/api/v1/events", an_event())
    assert (refused.status_code, reason(refused)) == (403, "STAFF_REQUIRED")

    listed = admin.get(f"{KEYS}?page_size=2").json()["apiKeys"]
    assert [key["apiKeyId"] for key in listed] == [till_id, staff_id]
    assert all(not key["key"] and "lastUseTime" in key for key in listed)
    for _ in range(2):
        assert admin.delete(f"{KEYS}/{till_id}").status_code == 204
    refused = till.get("/api/v1/bookings")
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")
    assert staff.get("/api/v1/bookings").status_code == 200


def test_a_key_manages_neither_keys_nor_accounts_of_people(admin: Api, customer: Api) -> None:
    _, machine = create(admin, "ADMIN")
    assert machine.get("/api/v1/users?page_size=1").status_code == 200
    for path in (KEYS, "/api/v1/auth/me", "/api/v1/auth/sessions"):
        refused = machine.get(path)
        assert (refused.status_code, reason(refused)) == (403, "CALLER_NOT_ALLOWED")
    refused = customer.get(KEYS)
    assert (refused.status_code, reason(refused)) == (403, "ADMIN_REQUIRED")
