"""Webhook endpoints and their secrets: who is told what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.webhooks import signature, url_policy
from booking_svc.webhooks.encryption import SecretBox
from booking_svc.webhooks.tables import webhook_endpoints, webhook_secrets
from booking_svc.webhooks.url_policy import Rules
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.paging import id_from_token, to_token

MAX_ENDPOINTS = 100
MAX_SECRETS = 4
EVERYTHING = "*"

_COUNT_LOCK = 0x77656268  # "webh"


@dataclass(frozen=True, slots=True)
class Secret:
    """How long a secret holds, not what it is. `expire_time` None: the newest one."""

    create_time: datetime
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`event_types` empty: everything. `new_secret` is set where one has just been made."""

    endpoint_id: UUID
    url: str
    description: str
    event_types: tuple[str, ...]
    is_enabled: bool
    disable_reason: str
    secrets: tuple[Secret, ...]
    create_time: datetime
    update_time: datetime
    new_secret: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    endpoints: tuple[Endpoint, ...]
    next_page_token: str
    total_size: int


async def create(
    connection: AsyncConnection,
    *,
    url: str,
    description: str,
    event_types: Sequence[str],
    rules: Rules,
    seal: SecretBox,
    now: datetime,
) -> Endpoint:
    """Adds an endpoint with its first secret. Raises VALIDATION_FAILED."""
    if faults := url_policy.violations(url, rules):
        raise invalid(*faults)
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_COUNT_LOCK)))
    count = await connection.execute(sa.select(sa.func.count()).select_from(webhook_endpoints))
    if count.scalar_one() >= MAX_ENDPOINTS:
        raise invalid(FieldViolation("url", f"there are {MAX_ENDPOINTS} endpoints already"))
    endpoint_id = new_id()
    await connection.execute(
        webhook_endpoints.insert().values(
            endpoint_id=endpoint_id,
            url=url,
            description=description,
            event_types=_normal(event_types),
            is_enabled=True,
            disable_reason="",
            create_time=now,
            update_time=now,
        )
    )
    secret = await _add_secret(connection, endpoint_id, seal, now)
    return replace(await get(connection, endpoint_id=endpoint_id, now=now), new_secret=secret)


async def get(
    connection: AsyncConnection, *, endpoint_id: UUID, now: datetime, lock: bool = False
) -> Endpoint:
    """Raises WEBHOOK_ENDPOINT_NOT_FOUND."""
    query = sa.select(webhook_endpoints).where(webhook_endpoints.c.endpoint_id == endpoint_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise DomainError(
            Reason.WEBHOOK_ENDPOINT_NOT_FOUND,
            "no such webhook endpoint",
            webhook_endpoint_id=endpoint_id,
        )
    secrets = await _secrets(connection, [endpoint_id], now)
    return _endpoint(row, secrets.get(endpoint_id, ()))


async def list_page(
    connection: AsyncConnection, *, page_size: int, page_token: str, now: datetime
) -> Page:
    """A page of endpoints, newest first."""
    after = id_from_token(page_token)
    query = sa.select(webhook_endpoints).order_by(webhook_endpoints.c.endpoint_id.desc())
    if after is not None:
        query = query.where(webhook_endpoints.c.endpoint_id < after)
    rows = (await connection.execute(query.limit(page_size + 1))).all()
    count = await connection.execute(sa.select(sa.func.count()).select_from(webhook_endpoints))
    shown = rows[:page_size]
    secrets = await _secrets(connection, [row.endpoint_id for row in shown], now)
    return Page(
        tuple(_endpoint(row, secrets.get(row.endpoint_id, ())) for row in shown),
        to_token(str(shown[-1].endpoint_id)) if len(rows) > page_size else "",
        count.scalar_one(),
    )


async def update(
    connection: AsyncConnection,
    *,
    endpoint_id: UUID,
    url: str | None,
    description: str | None,
    event_types: Sequence[str],
    is_enabled: bool | None,
    rules: Rules,
    now: datetime,
) -> Endpoint:
    """Changes what is given; None, or no event types, leaves it.

    Raises VALIDATION_FAILED or WEBHOOK_ENDPOINT_NOT_FOUND.
    """
    await get(connection, endpoint_id=endpoint_id, now=now, lock=True)
    changes: dict[str, Any] = {"update_time": now}
    if url is not None:
        if faults := url_policy.violations(url, rules):
            raise invalid(*faults)
        changes["url"] = url
    if description is not None:
        changes["description"] = description
    if event_types:
        changes["event_types"] = _normal(event_types)
    if is_enabled is not None:
        changes |= {"is_enabled": is_enabled, "disable_reason": ""}
    await connection.execute(
        sa.update(webhook_endpoints)
        .where(webhook_endpoints.c.endpoint_id == endpoint_id)
        .values(**changes)
    )
    return await get(connection, endpoint_id=endpoint_id, now=now)


async def delete(connection: AsyncConnection, *, endpoint_id: UUID) -> None:
    """Raises WEBHOOK_ENDPOINT_NOT_FOUND."""
    deleted = await connection.execute(
        sa.delete(webhook_endpoints).where(webhook_endpoints.c.endpoint_id == endpoint_id)
    )
    if deleted.rowcount == 0:
        raise DomainError(
            Reason.WEBHOOK_ENDPOINT_NOT_FOUND,
            "no such webhook endpoint",
            webhook_endpoint_id=endpoint_id,
        )


async def rotate_secret(
    connection: AsyncConnection,
    *,
    endpoint_id: UUID,
    overlap: timedelta,
    seal: SecretBox,
    now: datetime,
) -> Endpoint:
    """Makes a new secret; those of before end after `overlap`, or earlier if they would anyway.

    Raises WEBHOOK_ENDPOINT_NOT_FOUND.
    """
    await get(connection, endpoint_id=endpoint_id, now=now, lock=True)
    table = webhook_secrets.c
    end = now + overlap
    await connection.execute(
        sa.update(webhook_secrets)
        .where(table.endpoint_id == endpoint_id)
        .values(expire_time=sa.func.least(table.expire_time, end))
    )
    secret = await _add_secret(connection, endpoint_id, seal, now)
    newest = (
        sa.select(table.secret_id)
        .where(table.endpoint_id == endpoint_id)
        .where(sa.or_(table.expire_time.is_(None), table.expire_time > now))
        .order_by(table.secret_id.desc())
        .limit(MAX_SECRETS)
    )
    await connection.execute(
        sa.delete(webhook_secrets)
        .where(table.endpoint_id == endpoint_id)
        .where(table.secret_id.not_in(newest))
    )
    return replace(await get(connection, endpoint_id=endpoint_id, now=now), new_secret=secret)


async def disable(
    connection: AsyncConnection, *, endpoint_id: UUID, reason: str, now: datetime
) -> None:
    """The endpoint has said that it wants nothing any more."""
    await connection.execute(
        sa.update(webhook_endpoints)
        .where(webhook_endpoints.c.endpoint_id == endpoint_id)
        .where(webhook_endpoints.c.is_enabled)
        .values(is_enabled=False, disable_reason=reason, update_time=now)
    )


async def enabled(connection: AsyncConnection) -> Sequence[tuple[UUID, tuple[str, ...]]]:
    """Everybody who is told something, and what."""
    rows = await connection.execute(
        sa.select(webhook_endpoints.c.endpoint_id, webhook_endpoints.c.event_types).where(
            webhook_endpoints.c.is_enabled
        )
    )
    return [(row.endpoint_id, tuple(row.event_types)) for row in rows]


async def signing_secrets(
    connection: AsyncConnection, *, endpoint_id: UUID, seal: SecretBox, now: datetime
) -> Sequence[str]:
    """The secrets in force, newest first."""
    table = webhook_secrets.c
    found = await connection.execute(
        sa.select(table.secret)
        .where(table.endpoint_id == endpoint_id)
        .where(sa.or_(table.expire_time.is_(None), table.expire_time > now))
        .order_by(table.secret_id.desc())
    )
    return [seal.open(sealed.encode()).decode() for sealed in found.scalars()]


async def reseal(connection: AsyncConnection, *, seal: SecretBox) -> int:
    """Seals with the newest key what is not: of older keys, or of before there were any.

    Returns how many. Raises UnknownKeyError.
    """
    table = webhook_secrets.c
    found = await connection.execute(
        sa.select(table.secret_id, table.secret).order_by(table.secret_id).with_for_update()
    )
    old = [row for row in found if not seal.is_newest(row.secret.encode())]
    for row in old:
        sealed = seal.seal(seal.open(row.secret.encode())).decode()
        await connection.execute(
            sa.update(webhook_secrets).where(table.secret_id == row.secret_id).values(secret=sealed)
        )
    return len(old)


async def _add_secret(
    connection: AsyncConnection, endpoint_id: UUID, seal: SecretBox, now: datetime
) -> str:
    secret = signature.new_secret()
    await connection.execute(
        webhook_secrets.insert().values(
            secret_id=new_id(),
            endpoint_id=endpoint_id,
            secret=seal.seal(secret.encode()).decode(),
            create_time=now,
        )
    )
    return secret


async def _secrets(
    connection: AsyncConnection, endpoint_ids: Sequence[UUID], now: datetime
) -> dict[UUID, tuple[Secret, ...]]:
    """The secrets in force, newest first."""
    table = webhook_secrets.c
    rows = await connection.execute(
        sa.select(table.endpoint_id, table.create_time, table.expire_time)
        .where(table.endpoint_id.in_(endpoint_ids))
        .where(sa.or_(table.expire_time.is_(None), table.expire_time > now))
        .order_by(table.secret_id.desc())
    )
    found: dict[UUID, tuple[Secret, ...]] = {}
    for row in rows:
        known = found.get(row.endpoint_id, ())
        found[row.endpoint_id] = (*known, Secret(row.create_time, row.expire_time))
    return found


def _normal(event_types: Sequence[str]) -> list[str]:
    return [] if EVERYTHING in event_types else sorted(event_types)


def _endpoint(row: sa.Row[Any], secrets: tuple[Secret, ...]) -> Endpoint:
    return Endpoint(
        row.endpoint_id,
        row.url,
        row.description,
        tuple(row.event_types),
        row.is_enabled,
        row.disable_reason,
        secrets,
        row.create_time,
        row.update_time,
    )
