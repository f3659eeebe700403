"""Problems: one table, complete, and words that a client can act on."""

import asyncio
import json
import logging
import re
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import api
from api.app import ROUTES, problem_of
from api.http.middleware import REFUSAL_LOG_S, RefusalLog, middleware
from api.http.problems import KINDS, REFUSALS, FieldError, Problem, refused
from api.http.responses import PROBLEM_JSON, path_reference, problem_response
from ledger.core.events import Reason

SOURCES = "".join(path.read_text() for path in Path(api.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_a_refusal_has_a_problem(reason: Reason) -> None:
    problem = refused(reason.value, "submission.refused at position 7")
    assert KINDS[REFUSALS[reason]].status in (404, 409, 412)
    assert problem_response(problem, "/x").status_code == KINDS[REFUSALS[reason]].status


def test_the_kinds_are_exactly_those_in_use() -> None:
    used = set(re.findall(r'(?:Problem|inbox_problem|Refused)\(\s*"([a-z-]+)"', SOURCES))
    assert used <= set(KINDS)
    assert set(KINDS) == used | set(REFUSALS.values())


@pytest.mark.parametrize("path", ROUTES)
def test_a_server_error_of_a_request_that_submits_says_whether_it_was_accepted(path: str) -> None:
    for operation in ROUTES[path].values():
        for status, kinds in operation.statuses().items():
            if operation.submits and status >= 500:
                assert {KINDS[kind].accepted for kind in kinds} <= {"no", "unknown"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_an_error_with_a_title(kind: str) -> None:
    response = problem_response(Problem(kind, "why"), "/x")
    assert 400 <= response.status_code < 600
    assert response.headers["content-type"] == PROBLEM_JSON
    assert KINDS[kind].title


@pytest.mark.parametrize(
    ("path", "instance"),
    [
        (b"/api/v1/orders", "/api/v1/orders"),
        (b"/a%2Fb/", "/a%2Fb/"),
        (b"/%C5%81%C3%B3d%C5%BA", "/%C5%81%C3%B3d%C5%BA"),
        ("/Łódź".encode(), "/%C5%81%C3%B3d%C5%BA"),
        (b'/"<>\\^`{|} %', "/%22%3C%3E%5C%5E%60%7B%7C%7D%20%25"),
        (b"/%zz%4", "/%25zz%254"),
        (b"//evil.example/x", "/.//evil.example/x"),
        (b"/" + b"x" * 198 + b"%41", "/" + "x" * 198),
        (b"/" + b"x" * 197 + b"%41", "/" + "x" * 197),
        (b"/" + b"x" * 196 + b"%41", "/" + "x" * 196 + "%41"),
        (b"/" + b"%41" * 3000, "/" + "%41" * 66),
        (b"*", "*"),
    ],
)
def test_the_instance_is_a_uri_reference_to_the_path(path: bytes, instance: str) -> None:
    assert path_reference(path) == instance
    assert re.fullmatch(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", instance)


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_comes_with_503_alone(kind: str) -> None:
    response = problem_response(Problem(kind, "why"), "/x")
    assert ("retry-after" in response.headers) == (response.status_code == 503)


def test_refusals_are_logged_as_a_sample_with_the_number_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    refusals = RefusalLog(lambda: now_s)
    for _ in range(1000):
        refusals.add(Problem("busy", "others"), {})
    refusals.add(Problem("inbox-full", "much"), {})
    now_s += REFUSAL_LOG_S
    refusals.add(Problem("busy", "others"), {})
    assert [record.getMessage() for record in caplog.records] == [
        "busy (no known client): others; 0 more were not logged",
        "inbox-full (no known client): much; 0 more were not logged",
        "busy (no known client): others; 999 more were not logged",
    ]


async def answer_to(error: BaseException | None) -> tuple[Message, Message]:
    """What all of the middleware makes of what an app raises; without it, the app never ends."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if error is None:
            await asyncio.Event().wait()
        else:
            raise error

    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    serve: ASGIApp = app
    for layer in reversed(middleware(["https://shop.example"], problem_of)):
        serve = layer.cls(serve, *layer.args, **layer.kwargs)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/x",
        "raw_path": b"/x",
        "query_string": b"",
        "headers": [(b"x-request-id", b"7")],
    }
    await serve(scope, receive, send)
    start, body = messages
    return start, body


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("\ud800"),
        RecursionError(),
        MemoryError(),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        asyncio.CancelledError(),
        asyncio.InvalidStateError(),
        ExceptionGroup("several", [ValueError(), KeyError()]),
        BaseExceptionGroup("several", [asyncio.CancelledError(), ValueError()]),
        Problem("no-such-kind", "x"),
        Problem("bad-json", "half: \ud800"),
        Problem("bad-json", "x", [FieldError("\ud800", "half: \udfff")]),
        Problem("bad-json", "x", reason=object()),
    ],
    ids=repr,
)
async def test_whatever_is_raised_is_answered_with_a_problem(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest can't hand half of a surrogate pair on from one of its processes to another.
    monkeypatch.setattr(logging.getLogger("api"), "propagate", False)
    start, body = await answer_to(error)
    headers = dict(start["headers"])
    found = json.loads(body["body"])
    assert headers[b"content-type"] == PROBLEM_JSON.encode()
    assert headers[b"x-request-id"] == b"7"
    assert (start["status"], found["status"]) == (500, 500)
    assert found["type"] == "/problems/internal-error"
    assert "Error" not in found["detail"]


async def test_a_request_that_is_cancelled_is_not_answered() -> None:
    """Its client is gone, or the process stops."""
    request = asyncio.ensure_future(answer_to(None))
    asyncio.get_running_loop().call_soon(request.cancel)
    await asyncio.wait((request,))
    assert request.cancelled()
