"""ApiError: why a request over HTTP has no answer; a dialect gives it its status and shape."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError

ERROR_TYPES = {
    "malformed": 400,
    "empty": 400,
    "invalid": 400,
    "too_large": 400,
    "unauthorized": 401,
    "unknown_model": 404,
    "wrong_task": 400,
    "not_found": 404,
    "not_allowed": 405,
    "slow": 408,
    "body_too_large": 413,
    "media_type": 415,
    "misdirected": 421,
    "overloaded": 429,
    "bodies_full": 429,
    "failed": 500,
    "internal": 500,
    "unhealthy": 503,
    "ending": 503,
    "timeout": 504,
}
"""The types of errors with their status codes; a dialect may have others."""
_PHRASES = {
    "too_short": "is empty",
    "string_too_short": "is empty",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "tuple_type": "must be a list",
}
"""By pydantic's type of a mistake, what is said of it in place of pydantic's words."""
_MOST_MESSAGE = 1000  # characters


class ApiError(Exception):
    """A request that has no answer.

    Args:
        error_type: one of ERROR_TYPES.
        message: the reason; it may quote the request, and is cut off where it is long.
        field: the field of the body that is the reason.
        retry_after_s: when the client may try again, in seconds from now.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
    ):
        if len(message) > _MOST_MESSAGE:
            message = f"{message[:_MOST_MESSAGE]}…"
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


def first_mistake(error: RequestValidationError) -> ApiError:
    """Name the first thing that is wrong with a body by its path in the body."""
    first = error.errors()[0]
    mistake = first["type"]
    # The branches of a union are tagged <so>; the client does not know them.
    parts = [part for part in first["loc"][1:] if not str(part).startswith("<")]
    names = [part for part in parts if isinstance(part, str)]
    field = names[0] if names else None
    path = _path(parts)
    place = path or "the body"
    if mistake == "extra_forbidden":
        message = f"{path[:100]!r} is not a field of this request; /docs lists those it has"
    elif mistake == "missing":
        message = f"{place} is missing"
    elif mistake == "too_long":
        most = first["ctx"]["max_length"]
        message = f"{place} holds more than {most:,} items"
    elif mistake == "string_too_long":
        most = first["ctx"]["max_length"]
        message = f"{place} has more than {most:,} characters"
    else:
        phrase = _PHRASES.get(mistake) or first["msg"].replace("Input should be", "must be")
        message = f"{place} {phrase}"
    error_type = "empty" if mistake == "too_short" else "invalid"
    return ApiError(error_type, message, field=field)


def _path(parts: Sequence[str | int]) -> str:
    """Write a path as clients know it: documents[1].text."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")
