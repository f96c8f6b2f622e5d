"""Runs the monolith: two workers of uvicorn, its own database on the mesh's PostgreSQL."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psycopg

from bench.peers.process import Peer, running
from mesh.ids import new_id
from testing.ports import free_ports

PATH = "/orders"
CAPACITY = 10_000_000
_DATABASE = "monolith"
_TABLES = """
CREATE TABLE stock (
    offer_id uuid PRIMARY KEY, available bigint NOT NULL CHECK (available >= 0),
    price_minor bigint NOT NULL
);
CREATE TABLE orders (
    order_id uuid PRIMARY KEY, customer_id uuid NOT NULL, idempotency_key text NOT NULL,
    offer_id uuid NOT NULL REFERENCES stock, quantity integer NOT NULL,
    total_minor bigint NOT NULL, status text NOT NULL, hold_expire_time timestamp NOT NULL,
    UNIQUE (customer_id, idempotency_key)
);
"""


@contextmanager
def running_monolith(mesh_url: str, sockets: str) -> Iterator[tuple[Peer, str]]:
    """Starts the monolith with one hot offer; yields it and the offer's id.

    `sockets` is the folder of PostgreSQL's socket. It connects as the superuser, which has no time
    limits for waiting on the hot row.
    """
    offer_id = str(new_id())
    with psycopg.connect(
        host=sockets, user="postgres", dbname="postgres", autocommit=True
    ) as server:
        server.execute(f"CREATE DATABASE {_DATABASE}")
    with psycopg.connect(host=sockets, user="postgres", dbname=_DATABASE) as database:
        database.execute(_TABLES)
        database.execute("INSERT INTO stock VALUES (%s, %s, 150000)", (offer_id, CAPACITY))
    os.environ["MONOLITH_DATABASE"] = f"postgresql+asyncpg://postgres@/{_DATABASE}?host={sockets}"
    os.environ["MONOLITH_KEY_SET"] = httpx.get(f"{mesh_url}/.well-known/jwks.json").text
    port = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "bench.peers.monolith_app:app"]
    command += ["--port", str(port), "--workers", "2", "--log-level", "warning", "--no-access-log"]
    with running("monolith", f"http://127.0.0.1:{port}", {"uvicorn": command}) as peer:
        yield peer, offer_id
