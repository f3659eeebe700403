"""Pages of lists: how many at most, and where the next one is."""

from typing import Final
from urllib.parse import quote, urlencode
from uuid import UUID

from starlette.requests import Request

from api.requests import whole

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500


def limit_of(found: dict[str, str]) -> int:
    """How many a page may hold."""
    text = found.get("limit")
    return whole("limit", text, 1, MAX_LIMIT) if text is not None else DEFAULT_LIMIT


def follow(
    request: Request, found: dict[str, str], next_after: UUID | int | None
) -> dict[str, str]:
    """The `Link` to the next page (RFC 8288), with the same filters; none on the last one."""
    if next_after is None:
        return {}
    kept = {name: value for name, value in found.items() if name != "min_position"}
    query = urlencode({**kept, "after": str(next_after)})
    return {"Link": f'<{quote(request.scope["path"])}?{query}>; rel="next"'}
