"""Guesses of strangers do not lock a customer out."""

from contextlib import ExitStack
from typing import Any

import httpx

from testing.running_mesh import PASSWORD, Api, RunningMesh, reason, until

LOGIN = "/api/v1/auth/login"


def at(mesh: RunningMesh, address: str, stack: ExitStack) -> Api:
    """A client with another address of this machine."""
    transport = httpx.HTTPTransport(local_address=address)
    return Api(
        stack.enter_context(httpx.Client(base_url=mesh.url, transport=transport, timeout=60))
    )


def test_the_owner_signs_in_while_a_stranger_guesses(mesh: RunningMesh, customer: Api) -> None:
    email = customer.session["user"]["email"]
    with ExitStack() as stack:
        stranger, elsewhere = (at(mesh, f"127.0.0.{n}", stack) for n in (7, 8))

        def throttled() -> Any:
            answer = stranger.post(LOGIN, {"email": email, "password": "a guess"})
            return answer if answer.status_code == 429 else None

        # The pauses double, so one of them is longer than a call.
        refused = until(throttled, "no guess was refused")
        assert reason(refused) == "LOGIN_THROTTLED"
        assert int(refused.headers["retry-after"]) >= 1
        # The address of the sign-up, and the device of a sign-in at any address.
        customer.sign_in(email)
        body = {
            "email": email,
            "password": PASSWORD,
            "deviceToken": customer.session["deviceToken"],
        }
        signed_in = elsewhere.post(LOGIN, body)
        assert signed_in.status_code == 200, signed_in.text
        assert signed_in.json()["deviceToken"] == customer.session["deviceToken"]
