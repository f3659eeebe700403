"""/docs and /problems: what the API says of itself. Nothing comes from elsewhere."""

import asyncio
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.context import Context
from api.middleware import pack, takes_gzip
from api.operation import operation
from api.parameters import IF_NONE_MATCH, Call, Form, path
from api.problems import KINDS, Problem
from api.responses import etag_matches, reply

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


def _existing(names: Iterable[str], what: str) -> Form[str]:
    """The part of a path that is one of these names; any other path does not exist."""
    known = frozenset(names)

    def parse(name: str, text: str) -> str:
        if text not in known:
            raise Problem("no-such-path", f"{what} {text[:100]}")
        return text

    return Form({"enum": list(names)}, parse)


ASSET: Final = path("asset", _existing(ASSETS, "the page has no file"), "a file")
KIND: Final = path("kind", _existing(KINDS, "there is no kind of problem"), "a kind of problem")
# Nothing of others is loaded or told.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Fixed(Struct, frozen=True):
    """A body that stays as it is while the process runs, also in gzip."""

    media_type: str
    body: bytes
    packed: bytes
    etag: str

    def response(self, request: Request) -> Response:
        """The body as the client takes it, or 304 if it has it already."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache", "Vary": "accept-encoding"}
        if etag_matches(request, self.etag.encode()):
            return Response(None, 304, headers)
        headers["Content-Security-Policy"] = POLICY
        if takes_gzip(request.scope):
            headers["Content-Encoding"] = "gzip"
            return Response(self.packed, 200, headers, self.media_type)
        return Response(self.body, 200, headers, self.media_type)


def fixed(media_type: str, body: bytes) -> Fixed:
    """The body with its gzip and its ETag, which is weak, as both forms have it."""
    return Fixed(media_type, body, pack(body, 9), f'W/"{sha256(body).hexdigest()[:32]}"')


@cache
def _file(name: str) -> Fixed:
    # Packing takes a while, so a file is read and packed at its first request, in a thread.
    file, media_type = ASSETS[name] if name in ASSETS else (_OURS / name, HTML)
    return fixed(media_type, file.read_bytes())


@operation(None, "The API to try out", {200: HTML, 304: None}, IF_NONE_MATCH)
async def show_page(context: Context, call: Call[None]) -> Response:
    """The API to read and to try out."""
    return (await asyncio.to_thread(_file, "docs.html")).response(call.request)


@operation(
    None,
    "What the page is made of",
    {200: "*/*", 304: None, 404: ("no-such-path",)},
    ASSET,
    IF_NONE_MATCH,
)
async def show_asset(context: Context, call: Call[None]) -> Response:
    """A file that the page is made of."""
    return (await asyncio.to_thread(_file, call[ASSET])).response(call.request)


@operation(None, "Explain a problem", {200: schemas.Explained, 404: ("no-such-path",)}, KIND)
async def explain(context: Context, call: Call[None]) -> Response:
    """What a kind of problem means, and what to do about it."""
    kind = call[KIND]
    status, title, remedy = KINDS[kind]
    explained = schemas.Explained(f"/problems/{kind}", title, status, remedy)
    return reply(200, explained, {"Cache-Control": "max-age=3600"})
