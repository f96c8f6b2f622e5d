"""Webhook endpoints: their URLs, subscribed event types and signing secrets."""

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
    """The validity of a secret, without the secret. The newest one has no `expire_time`."""

    create_time: datetime
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. Without `event_types` it receives all; `new_secret` is set at its creation only."""

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
    secret_box: SecretBox,
    now: datetime,
) -> Endpoint:
    """Adds an endpoint with its first secret. Raises VALIDATION_FAILED."""
    if violations := url_policy.violations(url, rules):
        raise invalid(*violations)
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_COUNT_LOCK)))
    count = await connection.execute(sa.select(sa.func.count()).select_from(webhook_endpoints))
    if count.scalar_one() >= MAX_ENDPOINTS:
        raise invalid(FieldViolation("url", f"at most {MAX_ENDPOINTS} endpoints are allowed"))
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
    secret = await _add_secret(connection, endpoint_id, secret_box, now)
    return replace(await get(connection, endpoint_id=endpoint_id, now=now), new_secret=secret)


async def get(
    connection: AsyncConnection, *, endpoint_id: UUID, now: datetime, lock: bool = False
) -> Endpoint:
    """Raises WEBHOOK_ENDPOINT_NOT_FOUND."""
    query = sa.select(webhook_endpoints).where(webhook_endpoints.c.endpoint_id == endpoint_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise _not_found(endpoint_id)
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
    """Changes the given values; None, or empty `event_types`, keeps a value.

    Raises VALIDATION_FAILED or WEBHOOK_ENDPOINT_NOT_FOUND.
    """
    await get(connection, endpoint_id=endpoint_id, now=now, lock=True)
    changes: dict[str, Any] = {"update_time": now}
    if url is not None:
        if violations := url_policy.violations(url, rules):
            raise invalid(*violations)
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
        raise _not_found(endpoint_id)


async def rotate_secret(
    connection: AsyncConnection,
    *,
    endpoint_id: UUID,
    overlap: timedelta,
    secret_box: SecretBox,
    now: datetime,
) -> Endpoint:
    """Adds a secret. Older ones expire after `overlap`, or at their earlier expiry.

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
    secret = await _add_secret(connection, endpoint_id, secret_box, now)
    newest = (
        sa.select(table.secret_id)
        .where(table.endpoint_id == endpoint_id)
        .where(_is_valid(now))
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
    """Disables an endpoint that reported that it is gone."""
    await connection.execute(
        sa.update(webhook_endpoints)
        .where(webhook_endpoints.c.endpoint_id == endpoint_id)
        .where(webhook_endpoints.c.is_enabled)
        .values(is_enabled=False, disable_reason=reason, update_time=now)
    )


async def subscriptions(connection: AsyncConnection) -> Sequence[tuple[UUID, tuple[str, ...]]]:
    """Each enabled endpoint with its event types; none means all."""
    rows = await connection.execute(
        sa.select(webhook_endpoints.c.endpoint_id, webhook_endpoints.c.event_types).where(
            webhook_endpoints.c.is_enabled
        )
    )
    return [(row.endpoint_id, tuple(row.event_types)) for row in rows]


async def signing_secrets(
    connection: AsyncConnection, *, endpoint_id: UUID, secret_box: SecretBox, now: datetime
) -> Sequence[str]:
    """The valid secrets, newest first. Raises UnknownKeyError."""
    table = webhook_secrets.c
    rows = await connection.execute(
        sa.select(table.secret)
        .where(table.endpoint_id == endpoint_id)
        .where(_is_valid(now))
        .order_by(table.secret_id.desc())
    )
    return [secret_box.decrypt(stored.encode()).decode() for stored in rows.scalars()]


async def encrypt_with_newest_key(connection: AsyncConnection, *, secret_box: SecretBox) -> int:
    """Encrypts secrets that are in plain text or under an older key. Returns how many.

    Raises UnknownKeyError.
    """
    table = webhook_secrets.c
    rows = await connection.execute(
        sa.select(table.secret_id, table.secret).order_by(table.secret_id).with_for_update()
    )
    old = [row for row in rows if not secret_box.has_newest_key(row.secret.encode())]
    for row in old:
        secret = secret_box.decrypt(row.secret.encode())
        await connection.execute(
            sa.update(webhook_secrets)
            .where(table.secret_id == row.secret_id)
            .values(secret=secret_box.encrypt(secret).decode())
        )
    return len(old)


async def _add_secret(
    connection: AsyncConnection, endpoint_id: UUID, secret_box: SecretBox, now: datetime
) -> str:
    secret = signature.new_secret()
    await connection.execute(
        webhook_secrets.insert().values(
            secret_id=new_id(),
            endpoint_id=endpoint_id,
            secret=secret_box.encrypt(secret.encode()).decode(),
            create_time=now,
        )
    )
    return secret


async def _secrets(
    connection: AsyncConnection, endpoint_ids: Sequence[UUID], now: datetime
) -> dict[UUID, tuple[Secret, ...]]:
    """The valid secrets by endpoint, newest first."""
    table = webhook_secrets.c
    rows = await connection.execute(
        sa.select(table.endpoint_id, table.create_time, table.expire_time)
        .where(table.endpoint_id.in_(endpoint_ids))
        .where(_is_valid(now))
        .order_by(table.secret_id.desc())
    )
    secrets: dict[UUID, tuple[Secret, ...]] = {}
    for row in rows:
        newer = secrets.get(row.endpoint_id, ())
        secrets[row.endpoint_id] = (*newer, Secret(row.create_time, row.expire_time))
    return secrets


def _is_valid(now: datetime) -> sa.ColumnElement[bool]:
    expire_time = webhook_secrets.c.expire_time
    return sa.or_(expire_time.is_(None), expire_time > now)


def _not_found(endpoint_id: UUID) -> DomainError:
    return DomainError(
        Reason.WEBHOOK_ENDPOINT_NOT_FOUND,
        "no such webhook endpoint",
        webhook_endpoint_id=endpoint_id,
    )


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
