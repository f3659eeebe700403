"""Which problems each operation can answer with: those of its own, and those of its sort."""

from collections.abc import Iterator
from typing import Final

from api.openapi.operation import Operation
from api.problems import KINDS

EVERY: Final = (
    "bad-request",
    "head-too-slow",
    "head-too-large",
    "invalid-fields",
    "internal-error",
)
"""Any request can be no HTTP, too slow, too large, or have a parameter that is not known."""
WITH_BODY: Final = ("bad-json", "body-too-large", "not-json", "body-too-slow")
SUBMITTING: Final = ("key-reused", "inbox-unavailable", "inbox-full")
READING: Final = ("views-unavailable", "views-behind")
LOOKING_BACK: Final = ("past-busy",)
GUARDED: Final = ("no-key", "bad-key", "missing-scope", "too-many-requests", "keys-unavailable")
BOUND: Final = ("bound-key",)


def submits(operation: Operation) -> bool:
    """Whether it appends to the inbox."""
    return 202 in operation.answers  # noqa: PLR2004


def reads(operation: Operation) -> bool:
    """Whether it answers from a view, at a position that the client can ask for."""
    return "min_position" in operation.parameters


def looks_back(operation: Operation) -> bool:
    """Whether it answers from the past, too, if the client asks for that."""
    return "as_of_position" in operation.parameters


def kinds(operation: Operation, *, guarded: bool = True) -> list[str]:
    """The kinds of problem it can answer with, in the order of KINDS.

    `guarded`: where the API asks for keys.
    """
    found = set(_kinds(operation)) - (set() if guarded else {*GUARDED, *BOUND})
    return [kind for kind in KINDS if kind in found]


def _kinds(operation: Operation) -> Iterator[str]:
    yield from EVERY
    if operation.body:
        yield from WITH_BODY
    if submits(operation):
        yield from SUBMITTING
    if reads(operation):
        yield from READING
    if looks_back(operation):
        yield from LOOKING_BACK
    if operation.scope:
        yield from GUARDED
        yield from () if operation.own else BOUND
    for answer in operation.answers.values():
        if isinstance(answer, tuple):
            yield from answer


def statuses(operation: Operation, *, guarded: bool = True) -> dict[int, list[str]]:
    """Every status it can answer with, in ascending order, and its kinds of problem, if any."""
    found: dict[int, list[str]] = {status: [] for status in operation.answers}
    for kind in kinds(operation, guarded=guarded):
        found.setdefault(int(KINDS[kind].status), []).append(kind)
    return dict(sorted(found.items()))
