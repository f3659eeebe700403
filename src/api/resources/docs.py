"""/docs and /problems: the documentation that the API serves. It needs no internet access."""

import asyncio
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from msgspec import Struct
from starlette.responses import Response

from api import schemas
from api.context import Context
from api.http.middleware import accepts_gzip, compress
from api.http.parameters import IF_NONE_MATCH, Call, Form, path
from api.http.problems import KINDS, Problem
from api.http.responses import reply
from api.operation import Operation

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


def _existing(names: Mapping[str, object], what: str) -> Form[str]:
    """The part of a path that is one of these names; any other path does not exist."""

    def parse(name: str, text: str) -> str:
        if text not in names:
            raise Problem("no-such-path", f"{what} {text[:100]}")
        return text

    return Form({"enum": list(names)}, parse)


ASSET: Final = path("asset", _existing(ASSETS, "the page has no file"), "a file")
KIND: Final = path("kind", _existing(KINDS, "there is no kind of problem"), "a kind of problem")
# The page loads nothing from other sites, and tells them nothing.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class StaticDocument(Struct, frozen=True):
    """A document that does not change while the process runs, ready in gzip as well."""

    media_type: str
    body: bytes
    compressed: bytes
    etag: str

    def response(self, call: Call[Any]) -> Response:
        """The document, in gzip if the client accepts that."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache", "Vary": "accept-encoding"}
        headers["Content-Security-Policy"] = POLICY
        if accepts_gzip(call.request.scope):
            headers["Content-Encoding"] = "gzip"
            return Response(self.compressed, 200, headers, self.media_type)
        return Response(self.body, 200, headers, self.media_type)


def static_document(media_type: str, body: bytes) -> StaticDocument:
    """A document with its ETag, which is weak because body and gzip share it."""
    return StaticDocument(
        media_type, body, compress(body, 9), f'W/"{sha256(body).hexdigest()[:32]}"'
    )


@cache
def _file(name: str) -> StaticDocument:
    # Packing takes a while, so a file is read and compressed at its first request, in a thread.
    file, media_type = ASSETS[name] if name in ASSETS else (_OURS / name, HTML)
    return static_document(media_type, file.read_bytes())


@Operation(
    None,
    "The API's documentation, to try out",
    {200: HTML, 304: None},
    (IF_NONE_MATCH,),
    id="getDocsPage",
)
async def show_page(context: Context, call: Call[None]) -> Response:
    """Show the documentation of the API, to read and to try out."""
    return (await asyncio.to_thread(_file, "docs.html")).response(call)


@Operation(
    None,
    "A file of the documentation page",
    {200: f"{_CSS}, {_JAVASCRIPT}", 304: None},
    (ASSET, IF_NONE_MATCH),
    problems=("no-such-path",),
    id="getDocsFile",
)
async def show_asset(context: Context, call: Call[None]) -> Response:
    """Send a file that the documentation page is made of."""
    return (await asyncio.to_thread(_file, call[ASSET])).response(call)


@Operation(
    None,
    "Explain a kind of problem",
    {200: schemas.ProblemExplanation},
    (KIND,),
    problems=("no-such-path",),
    id="explainProblem",
)
async def explain(context: Context, call: Call[None]) -> Response:
    """Explain what a kind of problem means, and what to do about it."""
    kind = call[KIND]
    status, title, remedy, _ = KINDS[kind]
    explained = schemas.ProblemExplanation(f"/problems/{kind}", title, status, remedy)
    return reply(200, explained, {"Cache-Control": "max-age=3600"})
