"""Accounts as admins list and change them, through the gateway."""

from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import PASSWORD, Api, reason, violated_fields

USERS = "/api/v1/users"


def test_an_admin_reads_an_account_and_lists_by_role(admin: Api, customer: Api) -> None:
    user = customer.session["user"]
    assert admin.get(f"{USERS}/{customer.user_id}").json() == user
    newest = admin.get(f"{USERS}?page_size=1&role=CUSTOMER&is_active=true").json()
    assert newest["users"] == [user]
    assert newest["totalSize"] >= 1
    admins = admin.get(f"{USERS}?role=ADMIN&page_size=100").json()["users"]
    assert {user["role"] for user in admins} == {"ADMIN"}


def test_a_new_role_applies_with_the_next_token(admin: Api, customer: Api) -> None:
    path = f"{USERS}/{customer.user_id}"
    assert customer.post("/api/v1/events", {}).status_code == 403
    changed = admin.send("PATCH", path, {"role": "STAFF"})
    assert (changed.status_code, changed.json()["role"]) == (200, "STAFF")
    refresh = {"refreshToken": customer.session["refreshToken"]}
    token = customer.post("/api/v1/auth/refresh", refresh).json()["accessToken"]
    # The caller is allowed: now the empty body is refused.
    assert Api(customer.client, token).post("/api/v1/events", {}).status_code == 400


def test_a_deactivated_account_is_refused_until_reactivated(admin: Api, customer: Api) -> None:
    path, email = f"{USERS}/{customer.user_id}", customer.session["user"]["email"]
    changed = admin.send("PATCH", path, {"isActive": False}).json()
    assert (changed["isActive"], changed["role"]) == (False, "CUSTOMER")
    refused = customer.post(
        "/api/v1/auth/refresh", {"refreshToken": customer.session["refreshToken"]}
    )
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")
    refused = customer.post("/api/v1/auth/login", {"email": email, "password": PASSWORD})
    assert (refused.status_code, reason(refused)) == (403, "ACCOUNT_DEACTIVATED")
    admin.send("PATCH", path, {"is_active": True})
    customer.sign_in(email)


@pytest.mark.parametrize("body", [{"role": "OWNER"}, {"role": 0}, {"role": 9}])
def test_an_unknown_role_is_refused(admin: Api, customer: Api, body: Any) -> None:
    refused = admin.send("PATCH", f"{USERS}/{customer.user_id}", body)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert admin.get(f"{USERS}/{customer.user_id}").json() == customer.session["user"]


def test_a_deleted_account_is_hidden_and_kept(admin: Api, customer: Api) -> None:
    path = f"{USERS}/{customer.user_id}"
    for _ in range(2):
        assert admin.delete(path).status_code == 204
    kept = admin.get(path).json()
    assert kept == {
        **customer.session["user"],
        "isActive": False,
        "deleteTime": kept["deleteTime"],
        "updateTime": kept["updateTime"],
    }
    newest = f"{USERS}?page_size=1&role=CUSTOMER"
    assert admin.get(newest).json()["users"] != [kept]
    assert admin.get(f"{newest}&show_deleted=true").json()["users"] == [kept]
    erased = admin.post(f"{path}/erase", {}).json()
    assert erased["deleteTime"] == kept["deleteTime"]
    assert erased["eraseTime"] >= kept["deleteTime"]
    assert erased["fullName"] == "Erased user"


def test_an_unknown_account_is_not_found(admin: Api) -> None:
    path = f"{USERS}/{new_id()}"
    for refused in (admin.get(path), admin.send("PATCH", path, {"isActive": False})):
        assert (refused.status_code, reason(refused)) == (404, "USER_NOT_FOUND")
    refused = admin.get(f"{USERS}/mira")
    assert (refused.status_code, violated_fields(refused)) == (400, {"userId"})


def test_customers_are_not_admins(customer: Api) -> None:
    path = f"{USERS}/{customer.user_id}"
    for refused in (
        customer.get(USERS),
        customer.get(path),
        customer.send("PATCH", path, {"role": "ADMIN"}),
    ):
        assert (refused.status_code, reason(refused)) == (403, "ADMIN_REQUIRED")
