"""Problems: one table, complete, and words that a client can act on."""

import re
from pathlib import Path

import pytest

import api
from api.http.problems import KINDS, REFUSALS, Problem, refused
from api.http.responses import PROBLEM_JSON, problem_response
from ledger.core.events import Reason

# Raised by the server, which is being made.
FUTURE = {"misdirected-host"}
SOURCES = "".join(path.read_text() for path in Path(api.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_a_refusal_has_a_problem(reason: Reason) -> None:
    problem = refused(reason.value, "submission.refused at position 7")
    assert KINDS[REFUSALS[reason]].status in (404, 409)
    assert problem_response(problem, "/x").status_code == KINDS[REFUSALS[reason]].status


def test_the_kinds_are_exactly_those_in_use() -> None:
    used = set(re.findall(r'(?:Problem|_refuse)\(\s*"([a-z-]+)"', SOURCES))
    assert used <= set(KINDS)
    assert set(KINDS) == used | FUTURE | set(REFUSALS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_an_error_with_a_title(kind: str) -> None:
    response = problem_response(Problem(kind, "why"), "/x")
    assert 400 <= response.status_code < 600
    assert response.headers["content-type"] == PROBLEM_JSON
    assert KINDS[kind].title


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_comes_with_503_alone(kind: str) -> None:
    response = problem_response(Problem(kind, "why"), "/x")
    assert ("retry-after" in response.headers) == (response.status_code == 503)
