"""Forgeries of a signed webhook."""

import json
import random
from collections.abc import Callable

from mesh.clock import system_clock
from payment_svc.providers import signatures

SECRET = "whsec_the_real_one"
BODY = json.dumps(
    {
        "id": "evt_1",
        "type": "payment_intent.succeeded",
        "event": "payment.captured",
        "created": 1_800_000_000,
        "data": {"object": {"id": "pi_1", "amount_received": 150_000, "currency": "inr"}},
    },
    indent=2,
).encode()

Forgery = tuple[bytes, dict[str, str]]


class Forger:
    """Makes random forgeries of one signed webhook."""

    def __init__(self, header: str, sign: Callable[[bytes, str, int], str], seed: int) -> None:
        self.random = random.Random(seed)
        self.header = header
        self.sign = sign
        self.good = sign(BODY, SECRET, 0)

    def next(self) -> Forgery:
        ways = [
            self.flipped_body,
            self.flipped_header,
            self.other_secret,
            self.rewritten,
            self.cut,
            self.grown,
            self.noise,
            self.no_header,
            self.wrong_case,
        ]
        if self.header != "x-razorpay-signature":
            # Razorpay's signature has no time: a replay is genuine, without a second effect.
            ways += [self.replayed, self.another_time]
        return self.random.choice(ways)()

    def flipped_body(self) -> Forgery:
        changed = bytearray(BODY)
        changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed), {self.header: self.good}

    def flipped_header(self) -> Forgery:
        """Another hex digit somewhere in the signature."""
        start = self.good.rfind("=") + 1
        at = self.random.randrange(start, len(self.good))
        digit = self.random.choice("0123456789abcdef".replace(self.good[at], ""))
        return BODY, {self.header: self.good[:at] + digit + self.good[at + 1 :]}

    def other_secret(self) -> Forgery:
        secret = self.random.choice(["", "whsec_", SECRET[:-1], SECRET + " ", SECRET.upper()])
        return BODY, {self.header: self.sign(BODY, secret, 0)}

    def rewritten(self) -> Forgery:
        style = self.random.choice([{"indent": 1}, {"separators": (",", ":")}, {"sort_keys": True}])
        again = json.dumps(json.loads(BODY), **style)  # type: ignore[arg-type]
        return again.encode(), {self.header: self.good}

    def cut(self) -> Forgery:
        return BODY[: self.random.randrange(len(BODY))], {self.header: self.good}

    def grown(self) -> Forgery:
        extra = self.random.choice([b" ", b"\n", b"\0", b"{}", self.random.randbytes(9)])
        body = self.random.choice([BODY + extra, extra + BODY])
        return body, {self.header: self.good}

    def noise(self) -> Forgery:
        alphabet = "0123456789abcdeft=,v1 \u00e9\u0000"
        text = "".join(self.random.choices(alphabet, k=self.random.randrange(200)))
        return BODY, {self.header: text}

    def no_header(self) -> Forgery:
        return BODY, self.random.choice([{}, {self.header: ""}, {"authorization": self.good}])

    def wrong_case(self) -> Forgery:
        start = self.good.rfind("=") + 1
        return BODY, {self.header: self.good[:start] + self.good[start:].upper()}

    def replayed(self) -> Forgery:
        return BODY, {self.header: self.sign(BODY, SECRET, self.random.randint(302, 10**6))}

    def another_time(self) -> Forgery:
        """The old signature under a new time."""
        at = int(system_clock().timestamp()) + self.random.randint(1, 200)
        return BODY, {self.header: f"t={at},{self.good.partition(',')[2]}"}


def timed(body: bytes, secret: str, age: int) -> str:
    at = system_clock().timestamp() - age
    return signatures.sign(body, secret=secret, now=type(system_clock()).fromtimestamp(at))


def plain(body: bytes, secret: str, age: int) -> str:
    return signatures.plain(body, secret=secret)
