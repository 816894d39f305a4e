"""Errors in the form of the OpenAI API: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A request is answered with an error.

    Attributes:
        status: of HTTP.
        message: what was got, what is expected, what to do.
        param: the field of the request.
        code: a short name of the error.
        kind: the API's "type".
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Takes the fields."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind, self.headers = kind, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def unsupported(param: str, expected: str) -> ApiError:
    """Returns the error of a field that asks for what the model cannot do."""
    return ApiError(
        f"{param} is not supported by this server: {expected}", param=param, code="unsupported"
    )


def busy(message: str, *, status: int, code: str, seconds: int) -> ApiError:
    """Returns the error of a request that may be sent again after some seconds."""
    kind = "rate_limit_error" if status == 429 else "server_error"
    headers = {"Retry-After": str(seconds)}
    return ApiError(message, status=status, code=code, kind=kind, headers=headers)
