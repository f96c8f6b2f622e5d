"""REST calls of the command-line tools."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx

_ATTEMPTS = 5


class RefusedError(Exception):
    """The API refused a call. The text is its message, `reason` e.g. `TOKEN_EXPIRED`."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Api:
    def __init__(self, url: str, token: str = "") -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        if token:
            self._use(token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def sign_in(self, email: str, password: str) -> dict[str, Any]:
        """Later calls are the user's. Returns the answer of Login."""
        answer = self.post("/api/v1/auth/login", {"email": email, "password": password})
        self._use(answer["accessToken"])
        return answer

    def create(self, path: str, body: Any, *, key: str) -> dict[str, Any]:
        """Creates a resource, once per key."""
        return self._call("POST", path, json=body, headers={"idempotency-key": key})

    def post(self, path: str, body: Any) -> dict[str, Any]:
        return self._call("POST", path, json=body)

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)

    def all(self, path: str, field: str, **query: str) -> Iterator[dict[str, Any]]:
        """The entries of all pages of a list."""
        token = ""
        while True:
            page = self._call("GET", path, params={**query, "pageSize": 100, "pageToken": token})
            yield from page[field]
            token = page["nextPageToken"]
            if not token:
                return

    def _use(self, token: str) -> None:
        self._client.headers["authorization"] = f"Bearer {token}"

    def _call(self, verb: str, path: str, **request: Any) -> dict[str, Any]:
        for attempt in range(_ATTEMPTS):
            answer = self._client.request(verb, path, **request)
            if answer.status_code not in (429, 503, 504) or attempt == _ATTEMPTS - 1:
                break
            # At a rate limit the server sends the time to wait.
            time.sleep(min(float(answer.headers.get("retry-after", 1)), 60))
        if answer.is_error:
            raise RefusedError(_message(answer), _reason(answer))
        content: dict[str, Any] = answer.json() if answer.content else {}
        return content


def _message(answer: httpx.Response) -> str:
    try:
        error = answer.json()
        fields = [
            f"{violation['field']}: {violation['description']}"
            for detail in error["details"]
            for violation in detail.get("fieldViolations", [])
        ]
        return "; ".join(fields) or str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["details"][0]["reason"])
    except (ValueError, LookupError, TypeError):
        return ""
