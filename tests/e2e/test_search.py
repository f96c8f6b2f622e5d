"""The search of the catalogue through the gateway."""

from typing import Any

import grpc
import httpx
import pytest

from boxoffice.catalogue.v1 import search_service_pb2
from boxoffice.catalogue.v1.search_service_pb2_grpc import SearchServiceStub
from testing.running_mesh import Api, RunningMesh, violated_fields


def search(api: Api, **parameters: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {api.token}"} if api.token else {}
    return api.client.get("/api/v1/search", params=parameters, headers=headers)


def test_anyone_finds_events_productions_and_venues_by_relevance(
    mesh: RunningMesh, api: Api, admin: Api
) -> None:
    production = {"title": "Quetzalcoatl", "durationMinutes": 90, "language": "es"}
    created = admin.post("/api/v1/productions", production).json()
    other = admin.post("/api/v1/productions", {"title": "Quetzalcoatlus"}).json()
    venue = {"name": "Hall of the Quetzalcoatl", "timeZone": "America/Mexico_City"}
    venue_id = admin.post("/api/v1/venues", venue).json()["venueId"]
    event = admin.create_event(
        name="Feathered", description="With quetzalcoatl", productionId=created["productionId"]
    )
    draft = admin.create_event(name="Quetzalcoatl", status="DRAFT")
    expected = [
        {"venue": {"venueId": venue_id, "address": "", **venue}},
        {
            "production": {
                "productionId": created["productionId"],
                "posterUrl": "",
                "ageRating": "",
                **production,
            }
        },
        {
            "production": {
                "productionId": other["productionId"],
                "title": "Quetzalcoatlus",
                "posterUrl": "",
                "ageRating": "",
                "language": "",
            }
        },
        {
            "event": {
                name: event[name]
                for name in (
                    "eventId",
                    "name",
                    "productionId",
                    "venueName",
                    "timeZone",
                    "startTime",
                    "endTime",
                    "status",
                )
                if name in event
            }
        },
    ]
    for who in (api, admin):
        response = search(who, query="quetzalcoatl")
        assert response.status_code == 200, response.text
        assert response.json() == {"results": expected, "nextPageToken": "", "totalSize": 4}
    # Misspelt, in pages.
    results, token = [], ""
    for _ in range(2):
        page = search(api, query="quetzalcaotl", pageSize=2, pageToken=token).json()
        assert page["totalSize"] == 4
        results += page["results"]
        token = page["nextPageToken"]
    assert (results, token) == (expected, "")
    # What changes is found by its new words only.
    path = f"/api/v1/productions/{other['productionId']}"
    assert admin.send("PATCH", path, {"title": "Pterosaurs"}).status_code == 200
    assert search(api, query="pterosaurs").json()["totalSize"] == 1
    assert search(api, query="quetzalcoatl").json()["totalSize"] == 3
    assert admin.delete(f"/api/v1/venues/{venue_id}").status_code == 204
    assert admin.delete(f"/api/v1/events/{draft['eventId']}").status_code == 204
    channel: Any
    with grpc.insecure_channel(mesh.url.removeprefix("http://")) as channel:
        stub: Any = SearchServiceStub(channel)
        answer = stub.Search(search_service_pb2.SearchRequest(query="Quetzalcoatl"))
    assert [result.WhichOneof("item") for result in answer.results] == ["production", "event"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "query"),
        ({"query": " "}, "query"),
        ({"query": "x" * 201}, "query"),
        ({"query": "x", "pageSize": 101}, "pageSize"),
        ({"query": "x", "pageToken": "forged"}, "pageToken"),
    ],
)
def test_a_search_names_the_invalid_field(api: Api, parameters: dict[str, Any], field: str) -> None:
    answer = search(api, **parameters)
    assert (answer.status_code, violated_fields(answer)) == (400, {field})
