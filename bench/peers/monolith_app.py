"""The monolith: what a team would write first with FastAPI and SQLAlchemy's async engine.

PlaceBooking is one transaction: it locks the offer's stock row, tests it, and inserts an order. It
checks access tokens as the mesh does, and has neither limits, holds, payments, logs nor metrics.
"""

import os
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import jwt
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mesh.rpc.identity import ALGORITHM, AUDIENCE, ISSUER

_HOLD = timedelta(minutes=10)
_KEYS = jwt.PyJWKSet.from_json(os.environ["MONOLITH_KEY_SET"])

app = FastAPI()
engine = create_async_engine(os.environ["MONOLITH_DATABASE"])
session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"

    offer_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    available: Mapped[int] = mapped_column(BigInteger)
    price_minor: Mapped[int] = mapped_column(BigInteger)


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = (UniqueConstraint("customer_id", "idempotency_key"),)

    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    customer_id: Mapped[uuid.UUID]
    idempotency_key: Mapped[str]
    offer_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("stock.offer_id"))
    quantity: Mapped[int]
    total_minor: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str]
    hold_expire_time: Mapped[datetime]


class PlaceOrder(BaseModel):
    offer_id: uuid.UUID
    quantity: int = Field(ge=1, le=10)


class Placed(BaseModel):
    order_id: uuid.UUID
    status: str
    total_minor: int
    hold_expire_time: datetime


@app.post("/orders", status_code=201)
async def place(
    request: PlaceOrder,
    authorization: Annotated[str, Header()],
    idempotency_key: Annotated[str, Header()],
) -> Placed:
    customer_id = uuid.UUID(_claims(authorization)["sub"])
    async with session.begin() as transaction:
        stock = await transaction.scalar(
            select(Stock).where(Stock.offer_id == request.offer_id).with_for_update()
        )
        if stock is None:
            raise HTTPException(404, "no such offer")
        if stock.available < request.quantity:
            raise HTTPException(409, "sold out")
        stock.available -= request.quantity
        order = Order(
            customer_id=customer_id,
            idempotency_key=idempotency_key,
            offer_id=request.offer_id,
            quantity=request.quantity,
            total_minor=stock.price_minor * request.quantity,
            status="HELD",
            hold_expire_time=datetime.now(UTC).replace(tzinfo=None) + _HOLD,
        )
        transaction.add(order)
    return Placed.model_validate(order, from_attributes=True)


def _claims(authorization: str) -> dict[str, Any]:
    token = authorization.removeprefix("Bearer ")
    try:
        key = _KEYS[jwt.get_unverified_header(token)["kid"]]
        return jwt.decode(token, key, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER)
    except (jwt.PyJWTError, KeyError):
        raise HTTPException(401, "the token is invalid") from None
