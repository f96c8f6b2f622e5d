"""Optional tokens on public reads: what they add for customers, and which are refused."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from boxoffice.catalogue.v1 import event_service_pb2
from boxoffice.catalogue.v1.event_service_pb2_grpc import EventServiceStub
from mesh.ids import new_id
from testing.running_mesh import Api, RunningMesh, items, reason
from tests.architecture.contract import policies

READS = sorted(
    binding.path
    for policy in policies().values()
    if policy.reads_token and not policy.server_streaming
    for binding in policy.bindings
    if binding.verb == "GET"
)


def path_of(template: str) -> str:
    """A path with ids of nothing; the query that the search requires."""
    path = re.sub(r"\{[a-z_]+\}", str(new_id()), template)
    return f"{path}?query=x" if path.endswith("/search") else path


def in_lists(who: Api, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The event as each public read shows it."""
    event_id, production_id = event["eventId"], event["productionId"]
    yield who.get(f"/api/v1/events/{event_id}").json()
    for query in ("", "&query=monsoon"):
        [listed] = who.get(f"/api/v1/events?productionId={production_id}{query}").json()["events"]
        yield listed
    [upcoming] = who.get(f"/api/v1/productions/{production_id}").json()["upcomingEvents"]
    yield upcoming


def personal(event: dict[str, Any]) -> tuple[bool | None, list[int | None]]:
    remaining = [offer.get("remainingForYou") for offer in event["offers"]]
    return event.get("isFavourite"), remaining


def test_customers_see_their_favourites_and_what_the_purchase_limit_leaves(
    mesh: RunningMesh, api: Api, admin: Api, customer: Api
) -> None:
    event = admin.create_event(productionId=admin.create_production(), perCustomerLimit=5)
    limit = event["offers"][0]["perCustomerLimit"]
    assert limit > 5
    other = api.sign_up()
    favourite = f"/api/v1/favourites/{event['eventId']}"
    assert customer.send("PUT", favourite, None).status_code == 204
    booking = customer.book(items(event, 2)).json()
    for shown in in_lists(customer, event):
        assert personal(shown) == (True, [3])
    for shown in in_lists(other, event):
        assert personal(shown) == (False, [5])
    for who in (api, admin):
        for shown in in_lists(who, event):
            assert personal(shown) == (None, [None])
    [marked] = customer.get("/api/v1/favourites").json()["events"]
    assert personal(marked) == (True, [3])
    # As soon as they change.
    assert customer.delete(favourite).status_code == 204
    cancelled = customer.post(f"/api/v1/bookings/{booking['bookingId']}/cancel", {})
    assert cancelled.status_code == 200
    customer.wait_for_status(booking["bookingId"], "CANCELLED")
    for shown in in_lists(customer, event):
        assert personal(shown)[0] is False
    channel: Any
    with grpc.insecure_channel(mesh.url.removeprefix("http://")) as channel:
        stub: Any = EventServiceStub(channel)
        request = event_service_pb2.GetEventRequest(event_id=event["eventId"])
        answer = stub.GetEvent(request, metadata=[("authorization", f"Bearer {other.token}")])
        assert (answer.is_favourite, answer.offers[0].remaining_for_you) == (False, 5)
        anonymous = stub.GetEvent(request)
        assert not anonymous.HasField("is_favourite")
        assert not anonymous.offers[0].HasField("remaining_for_you")


@pytest.mark.parametrize("template", READS)
def test_a_token_on_a_public_read_must_be_valid(api: Api, customer: Api, template: str) -> None:
    path = path_of(template)
    expected = api.get(path).status_code
    assert expected in (200, 404)
    assert customer.get(path).status_code == expected
    for bad in ("garbage", f"{customer.token}x"):
        refused = Api(api.client, bad).get(path)
        assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")
        assert "invalid_token" in refused.headers["www-authenticate"]
