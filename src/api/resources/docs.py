"""/openapi.json, /docs and /problems: what the API says of itself. Nothing comes from elsewhere."""

import asyncio
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context
from api.etags import has
from api.problems import KINDS, Problem
from api.requests import parameters
from api.response_headers import pack, takes_gzip
from api.responses import reply

HTML: Final = "text/html; charset=utf-8"
_JAVASCRIPT: Final = "text/javascript; charset=utf-8"
_CSS: Final = "text/css; charset=utf-8"
_OURS: Final = files("api") / "pages"
_SWAGGER_UI: Final = files("mkdocs_swagger_ui_tag") / "swagger-ui"
ASSETS: Final = {
    "start.js": (_OURS / "start.js", _JAVASCRIPT),
    "swagger-ui.css": (_SWAGGER_UI / "stylesheets" / "swagger-ui.css", _CSS),
    "swagger-ui-bundle.js": (_SWAGGER_UI / "javascripts" / "swagger-ui-bundle.js", _JAVASCRIPT),
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing of others is loaded or told."""


class Fixed(Struct, frozen=True):
    """A body that stays as it is while the process runs, also in gzip."""

    media_type: str
    body: bytes
    packed: bytes
    etag: str

    def response(self, request: Request) -> Response:
        """The body as the client takes it, or 304 if it has it already; without parameters."""
        parameters(request)
        headers = {"ETag": self.etag, "Cache-Control": "no-cache", "Vary": "accept-encoding"}
        if has(request, self.etag.encode()):
            return Response(None, 304, headers)
        headers["Content-Security-Policy"] = POLICY
        if takes_gzip(request.scope):
            headers["Content-Encoding"] = "gzip"
            return Response(self.packed, 200, headers, self.media_type)
        return Response(self.body, 200, headers, self.media_type)


def fixed(media_type: str, body: bytes) -> Fixed:
    """The body with its gzip and its ETag, which is weak, as both forms have it."""
    return Fixed(media_type, body, pack(body, 9), f'W/"{sha256(body).hexdigest()[:32]}"')


async def show_page(context: Context, request: Request) -> Response:
    """The API to read and to try out."""
    return (await asyncio.to_thread(_page)).response(request)


async def show_asset(context: Context, request: Request) -> Response:
    """A file that the page is made of."""
    name = request.path_params["asset"]
    if name not in ASSETS:
        raise Problem("no-such-path", f"the page has no file {name[:100]}")
    return (await asyncio.to_thread(_asset, name)).response(request)


@cache
def _page() -> Fixed:
    return fixed(HTML, (_OURS / "docs.html").read_bytes())


@cache
def _asset(name: str) -> Fixed:
    file, media_type = ASSETS[name]
    return fixed(media_type, file.read_bytes())


class Explained(Struct, frozen=True):
    """What a problem's `type` leads to."""

    type: str
    title: str
    status: int
    remedy: str


async def explain(context: Context, request: Request) -> Response:
    """What a kind of problem means, and what to do about it."""
    parameters(request)
    name = request.path_params["kind"]
    if name not in KINDS:
        raise Problem("no-such-path", f"there is no kind of problem {name[:100]}")
    status, title, remedy = KINDS[name]
    explained = Explained(f"/problems/{name}", title, status, remedy)
    return reply(200, explained, {"Cache-Control": "max-age=3600"})
