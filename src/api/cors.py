"""CORS: which web origins' pages may call the API. None, unless the operator names them."""

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS: Final = ("GET", "HEAD", "POST", "PATCH")
SENT: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "X-Request-Id",
    "traceparent",
)
SHOWN: Final = (
    "ETag",
    "Idempotency-Replayed",
    "Ledger-Position",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
)


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The app, open to pages of these origins; without any it's the app itself.

    Keys stand in a header that a page sets itself. Cookies and the like are never allowed for.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, origins, METHODS, SENT, allow_credentials=False, expose_headers=SHOWN
    )
