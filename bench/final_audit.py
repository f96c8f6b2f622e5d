"""The demo's audit of the events that scenarios sold."""

import asyncio

from bench.world import World
from chaos.checks.audit import Finding
from chaos.checks.evidence import Booking, Evidence, Investigator
from chaos.checks.final_audit import audit_when_settled
from chaos.client import Api


def audit(world: World, answered: int) -> list[str]:
    """The findings. `answered` is the number of bookings that customers received."""
    evidence, findings = asyncio.run(_gather(world))
    return [
        *(f"{finding.fault}: {finding.detail}" for finding in findings),
        *lost(evidence.bookings, answered),
    ]


def lost(bookings: tuple[Booking, ...], answered: int) -> list[str]:
    """The load generator keeps no ids, so lost bookings show in their number only."""
    if len(bookings) >= answered:
        return []
    return [f"{answered} bookings were answered, {len(bookings)} exist"]


async def _gather(world: World) -> tuple[Evidence, list[Finding]]:
    async with Api(world.url) as api:
        investigator = Investigator(api, str(world.admin.token), world.sold)
        return await audit_when_settled(investigator, ())
