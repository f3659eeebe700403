"""docs/reference/rest.md and problems.md say what the route table and the table of problems say."""

import re
from collections.abc import Iterator

import pytest

from api import schemas
from api.app import ROUTES
from api.http import connection, parameters, requests
from api.http.problems import KINDS
from api.operation import PREFIX, Operation
from api.reads import consistent_reads, event_stream, slow_reads
from api.resources.orders import MAX_BATCH_BODY

from .test_reference import ROOT, rows

PAGE = (ROOT / "docs/reference/rest.md").read_text()
CALLS = {
    f"{method} {path.removeprefix(PREFIX)}": operation
    for path, operations in ROUTES.items()
    for method, operation in operations.items()
}
NO_OPERATION = {
    "no-such-path",
    "method-not-allowed",
    "unknown-method",
    "unknown-coding",
}
"""What requests are answered with that reach no operation."""
FOLD_ONLY = {"duplicate"}
"""What reasons of the fold become, but not by REST: it makes new ids."""


def section(call: str) -> str:
    """What the page says of a call."""
    return PAGE.split(f"\n### {call}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]


def request_lines(operation: Operation) -> Iterator[str]:
    """The lines that say what an operation takes."""
    if operation.scope:
        own = ", also of a key bound to one customer" if operation.own else ""
        yield f"- scope: `{operation.scope}`{own}"
    if operation.body and operation.body.model_fields:
        yield f"- body: {names(operation.body.model_fields)}"
    if operation.query:
        yield f"- parameters: {names(operation.query)}"
    if operation.headers:
        yield f"- headers: {names(header.name for header in operation.headers)}"


def names(of: object) -> str:
    """Names with commas between."""
    return ", ".join(f"`{name}`" for name in of)  # type: ignore[attr-defined]


def answer_lines(operation: Operation) -> Iterator[str]:
    """The lines that say what an operation answers with."""
    for status, problems in operation.statuses().items():
        answer = operation.answers.get(status)
        shape = answer.__name__ if isinstance(answer, type) else answer
        said = [f"`{shape}`"] if isinstance(shape, str) else []
        said += [f"[`{kind}`](problems.md)" for kind in problems]
        yield f"| {status} | {', '.join(said) or 'no body'} |"


def test_the_page_has_every_call_and_no_others() -> None:
    assert sorted(re.findall(r"^### (.+)$", PAGE, re.MULTILINE)) == sorted(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_parameters_and_headers_are_documented(call: str) -> None:
    said = [line for line in section(call).splitlines() if line.startswith("- ")]
    assert said == list(request_lines(CALLS[call]))


@pytest.mark.parametrize("call", CALLS)
def test_answers_are_documented(call: str) -> None:
    said = [line for line in section(call).splitlines() if re.match(r"\| \d", line)]
    assert said == list(answer_lines(CALLS[call]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_is_documented_as_it_is(kind: str) -> None:
    status, title, remedy, _ = KINDS[kind]
    assert rows("docs/reference/problems.md")[kind] == [str(int(status)), title, remedy]


def test_no_problem_is_documented_that_does_not_exist() -> None:
    assert set(rows("docs/reference/problems.md")) - {"type"} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_says_what_to_do(kind: str) -> None:
    assert KINDS[kind].remedy


def test_every_problem_is_one_of_an_operation() -> None:
    met = {
        kind
        for operation in CALLS.values()
        for kinds in operation.statuses().values()
        for kind in kinds
    }
    assert met.isdisjoint(FOLD_ONLY)
    assert met | NO_OPERATION | FOLD_ONLY == set(KINDS)


def test_every_limit_is_documented_as_it_is() -> None:
    assert rows("docs/reference/rest.md", "Limits") == {
        "limit": ["value", "beyond it"],
        "path and query": [f"{connection.MAX_TARGET} bytes", "414"],
        "path and headers": [
            f"{connection.MAX_HEAD} bytes, {connection.MAX_HEADERS} headers",
            "431",
        ],
        "time for path and headers": [f"{connection.HEAD_TIMEOUT_S:g} s", "408"],
        "body": [f"{requests.MAX_BODY} bytes", "413"],
        "body of a batch": [
            f"{MAX_BATCH_BODY} bytes, {schemas.MAX_BATCH} orders",
            "413, 422",
        ],
        "values in a body": [f"{requests.MAX_VALUES}", "413, 400"],
        "time for the body": [f"{requests.BODY_TIMEOUT_S:g} s", "408"],
        "page": [f"{parameters.MAX_LIMIT}, by default {parameters.DEFAULT_LIMIT}", "422"],
        "Prefer: wait": [f"{parameters.MAX_WAIT_S} s", "taken for the limit"],
        "min_position": [f"waited for {consistent_reads.MIN_POSITION_WAIT_S:g} s", "503, 409"],
        "Idempotency-Key": [f"{parameters.MAX_IDEMPOTENCY_KEY} visible ASCII characters", "422"],
        "streams of a process": [f"{event_stream.MAX_STREAMS}", "503"],
        "streams of one client": [f"{event_stream.MAX_STREAMS_OF_CLIENT}", "429"],
        "lists, as-of reads and trial balances at once": [
            f"{slow_reads.MAX_READS} of a process, {slow_reads.STRANGERS_READS} of them for"
            f" requests without a key, others wait for {slow_reads.TURN_TIMEOUT_S:g} s",
            "503",
        ],
        "products read at once, besides those in the cache": ["as many", "503"],
        "orders and requests of one client": ["`LEDGER_RATE_PER_S`, `LEDGER_CONCURRENCY`", "429"],
    }
