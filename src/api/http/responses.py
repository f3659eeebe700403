"""Answers: structs to JSON, problems to JSON, and the headers that say where, when and which."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode
from uuid import UUID

from msgspec import Struct
from msgspec.json import Encoder
from starlette.responses import Response

from api.http.parameters import TEXT_SCHEMA, Call, Json
from api.http.problems import KINDS, Problem, ProblemDetails

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1

# Every header that an answer can have besides those of HTTP itself, as the documentation says it.
ANSWER_HEADERS: Final[Mapping[str, Json]] = {
    name: {"description": description, "schema": schema}
    for name, schema, description in (
        ("X-Request-Id", TEXT_SCHEMA, "the request's id, as it came or a new one"),
        ("Ledger-Position", {"type": "integer", "minimum": 0}, "the answer holds at this position"),
        ("Location", {**TEXT_SCHEMA, "format": "uri-reference"}, "where it can be followed"),
        ("Preference-Applied", TEXT_SCHEMA, "which preference was honoured, if one came"),
        ("Idempotency-Replayed", {"const": "true"}, "the same key came before"),
        ("Link", TEXT_SCHEMA, 'the next page, `rel="next"` (RFC 8288); none on the last one'),
        ("ETag", TEXT_SCHEMA, "the version of the body"),
        ("Retry-After", {"type": "integer", "minimum": 1}, "seconds to wait before a retry"),
        ("WWW-Authenticate", TEXT_SCHEMA, "what was wrong with the key (RFC 6750)"),
    )
}

_NOT_IN_PATHS: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^%/A-Za-z0-9._~!$&'()*+,;=:@-]")
_UNFINISHED: Final = re.compile(rb"%.?\Z")

encode: Final = Encoder(decimal_format="number").encode


def reply(status: int, content: Struct, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON body."""
    return Response(encode(content), status, headers, JSON)


def path_reference(raw_path: bytes) -> str:
    """The path of a request as a URI reference (RFC 3986, 4.1), its first 200 bytes.

    Clients send bytes that no URI may have, and these are percent-encoded.
    """
    path = _UNFINISHED.sub(b"", raw_path[:200]) if len(raw_path) > 200 else raw_path  # noqa: PLR2004
    reference = _NOT_IN_PATHS.sub(lambda found: b"%%%02X" % ord(found[0]), path).decode()
    # What begins with two slashes would name a host (RFC 3986, 4.2).
    return f"/.{reference}" if reference.startswith("//") else reference


def problem_response(problem: Problem, instance: str) -> Response:
    """The answer to the request for the path `instance` that failed with this problem."""
    status, title, _, accepted = KINDS[problem.kind]
    details = ProblemDetails(
        f"/problems/{problem.kind}",
        title,
        status,
        problem.detail,
        instance,
        problem.errors,
        accepted=accepted,
        **problem.members,  # type: ignore[arg-type]  # the names are those of ProblemDetails
    )
    headers = {"Content-Type": PROBLEM_JSON, "Cache-Control": "no-store", **problem.headers}
    if status == 503:  # noqa: PLR2004
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    if problem.kind == "not-json":
        headers["Accept"] = JSON  # RFC 9110, 15.5.16
    return Response(encode(details), status, headers)


def position_header(position: int) -> dict[str, str]:
    """The header that says up to where of the ledger the answer holds."""
    return {"Ledger-Position": str(position)}


def page_headers(call: Call[Any], position: int, next_after: UUID | int | None) -> dict[str, str]:
    """The headers of a page; without the `Link` to the next one (RFC 8288) it is the last."""
    headers = position_header(position)
    if next_after is not None:
        # The next page is as new as this one without waiting again.
        filters = {name: value for name, value in call.query.items() if name != "min_position"}
        after = urlencode({**filters, "after": str(next_after)})
        headers["Link"] = f'<{quote(call.request.scope["path"])}?{after}>; rel="next"'
    return headers
