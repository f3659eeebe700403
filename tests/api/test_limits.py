"""So much of one client and no more, whatever the others do."""

from contextlib import ExitStack

import pytest

from api.auth.rate_limit import MAX_KEPT, Limits
from api.problems import Problem


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ask(limits: Limits, client: str = "ann") -> None:
    with limits.request_of(client):
        pass


def refusal(limits: Limits, client: str = "ann") -> Problem:
    with pytest.raises(Problem) as refused, limits.request_of(client):
        pass
    assert refused.value.kind == "too-many-requests"
    return refused.value


def test_a_seconds_worth_may_come_at_once_and_then_one_by_one() -> None:
    clock = Clock()
    limits = Limits(10, 0, clock)
    for _ in range(10):
        ask(limits)
    assert refusal(limits).headers["Retry-After"] == "1"
    clock.now_s += 0.1
    ask(limits)
    refusal(limits)


def test_what_was_not_used_is_not_saved_up_for_ever() -> None:
    clock = Clock()
    limits = Limits(2, 0, clock)
    clock.now_s += 3600
    ask(limits)
    ask(limits)
    refusal(limits)


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limits = Limits(1, 0, clock)
    ask(limits)
    for _ in range(100):
        refusal(limits)
    clock.now_s += 1
    ask(limits)


def test_less_than_one_a_second_says_how_long_to_wait() -> None:
    clock = Clock()
    limits = Limits(0.1, 0, clock)
    ask(limits)
    assert refusal(limits).headers["Retry-After"] == "10"
    clock.now_s += 10
    ask(limits)


def test_so_many_at_once_and_one_more_when_one_is_done() -> None:
    limits = Limits(0, 2)
    with limits.request_of("ann"):
        with limits.request_of("ann"):
            assert refusal(limits).headers["Retry-After"] == "1"
        ask(limits)


def test_a_request_that_fails_is_not_under_way_any_more() -> None:
    limits = Limits(0, 1)
    for _ in range(3):
        with pytest.raises(ValueError), limits.request_of("ann"):
            raise ValueError
    ask(limits)


def test_one_client_does_not_use_up_what_another_has() -> None:
    limits = Limits(1, 1, Clock())
    with limits.request_of("ann"):
        ask(limits, "bob")
    refusal(limits)
    refusal(limits, "bob")


def test_without_limits_anything_goes() -> None:
    limits = Limits(0, 0)
    with ExitStack() as held:
        for _ in range(5000):
            held.enter_context(limits.request_of("ann"))


def test_what_is_kept_of_clients_is_bounded() -> None:
    limits = Limits(1, 1, Clock())
    for number in range(MAX_KEPT + 10):
        ask(limits, str(number))
    assert len(limits._full_at_s) == MAX_KEPT
    assert not limits._under_way
