"""API keys and their exchange for access tokens, on a real database."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from auth_svc import api_keys, tables, tokens
from auth_svc.accounts import Role
from auth_svc.api_keys import MAX_LIFETIME, ApiKey
from auth_svc.servicers.authorization import ApiKeyExchange
from auth_svc.tokens import SigningKey
from boxoffice.authorization.v1 import authorization_service_pb2 as pb
from mesh.db.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import NOW, Accounts, a_sign_up, refusal_of, rows

END = NOW + timedelta(days=30)


@pytest.fixture
async def admin_id(accounts: Accounts) -> UUID:
    return (await accounts.register(**a_sign_up())).user_id


async def create(database: Database, creator_id: UUID, **changes: Any) -> tuple[ApiKey, str]:
    values: dict[str, Any] = {"name": "Till 3", "role": Role.STAFF, "expire_time": END, **changes}
    async with database.transaction() as connection:
        return await api_keys.create(connection, creator_id=creator_id, now=NOW, **values)


async def revoke(database: Database, api_key_id: UUID, *, days: int = 0) -> None:
    async with database.transaction() as connection:
        now = NOW + timedelta(days=days)
        await api_keys.revoke(connection, api_key_id=api_key_id, now=now)


async def test_the_text_of_a_key_is_not_stored(database: Database, admin_id: UUID) -> None:
    key, text = await create(database, admin_id)
    assert len(text) == len("boxoffice_") + 43
    [row] = await rows(database, tables.api_keys)
    assert text.startswith(row.key_start)
    assert text.removeprefix(key.key_start) not in str(row)
    assert row.key_hash != text.encode()


async def test_a_key_ends_at_its_time_or_when_it_is_revoked(
    database: Database, admin_id: UUID
) -> None:
    key, text = await create(database, admin_id)
    _, other = await create(database, admin_id)
    last = END - timedelta(microseconds=1)
    used = await api_keys.authenticate(database, text=text, now=last)
    assert (used.api_key_id, used.role) == (key.api_key_id, Role.STAFF)
    refusal = await refusal_of(api_keys.authenticate(database, text=text, now=END))
    assert refusal.reason is Reason.TOKEN_EXPIRED
    await revoke(database, key.api_key_id, days=1)
    await revoke(database, key.api_key_id, days=2)
    assert {row.revoke_time for row in await rows(database, tables.api_keys)} == {
        NOW + timedelta(days=1),
        None,
    }
    for unusable in (text, text[:-1], "boxoffice_", ""):
        refusal = await refusal_of(api_keys.authenticate(database, text=unusable, now=NOW))
        assert refusal.reason is Reason.TOKEN_INVALID
    await api_keys.authenticate(database, text=other, now=NOW)
    assert (await refusal_of(revoke(database, uuid4()))).reason is Reason.API_KEY_NOT_FOUND


@pytest.mark.parametrize("after", [timedelta(0), timedelta(days=-1), MAX_LIFETIME * 2])
async def test_a_key_expires_within_a_year(
    database: Database, admin_id: UUID, after: timedelta
) -> None:
    refusal = await refusal_of(create(database, admin_id, expire_time=NOW + after))
    assert [violation.field for violation in refusal.violations] == ["expire_time"]
    assert await rows(database, tables.api_keys) == []


async def test_the_list_shows_all_keys_and_the_hour_of_their_last_use(
    database: Database, admin_id: UUID
) -> None:
    made = [await create(database, admin_id, name=f"Till {number}") for number in range(3)]
    for minutes in (0, 59):
        now = NOW + timedelta(minutes=minutes)
        await api_keys.authenticate(database, text=made[2][1], now=now)
    await revoke(database, made[0][0].api_key_id)
    async with database.snapshot() as connection:
        first = await api_keys.list_page(connection, page_size=2, page_token="")
        rest = await api_keys.list_page(connection, page_size=2, page_token=first.next_page_token)
    listed = [*first.api_keys, *rest.api_keys]
    assert [key.name for key in listed] == ["Till 2", "Till 1", "Till 0"]
    assert [key.last_use_time for key in listed] == [NOW, None, None]
    assert [key.revoke_time for key in listed] == [None, None, NOW]
    assert (first.total_size, rest.next_page_token) == (3, "")


async def test_the_calls_of_a_key_share_a_token_until_it_is_revoked(
    database: Database, admin_id: UUID, key: SigningKey
) -> None:
    api_key, text = await create(database, admin_id)
    clock = SimpleNamespace(now=NOW)
    servicer = ApiKeyExchange(database=database, clock=lambda: clock.now, signing_key=lambda: key)
    request = pb.CheckRequest()
    request.attributes.request.http.headers["authorization"] = f"Bearer {text}"

    async def check() -> pb.CheckResponse:
        return await servicer.Check(request, None)  # type: ignore[arg-type]

    first = await check()
    [header] = first.ok_response.headers
    token = header.header.value.removeprefix("Bearer ")
    published = tokens.key_set((key.public,))
    claims = jwt.decode(
        token,
        published[key.public.kid],
        algorithms=["RS256"],
        audience="boxoffice-api",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert (claims["sub"], claims["role"], claims["api_key"]) == (
        str(api_key.api_key_id),
        "STAFF",
        True,
    )
    assert "sid" not in claims
    assert claims["exp"] - claims["iat"] == 60
    clock.now += timedelta(seconds=29)
    assert await check() == first
    clock.now += timedelta(seconds=1)
    assert await check() != first
    await revoke(database, api_key.api_key_id)
    assert (await check()).denied_response.status.code == 401
    clock.now = END
    _, text = await create(database, admin_id)
    request.attributes.request.http.headers["authorization"] = f"Bearer {text}"
    assert (await check()).denied_response.status.code == 410
