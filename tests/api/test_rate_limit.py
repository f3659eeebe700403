"""Rate limit: each client has its own, whatever the others do."""

from contextlib import ExitStack

import pytest

from api.auth.rate_limit import MAX_CLIENTS, RateLimit
from api.http.problems import Problem


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ask(rate_limit: RateLimit, client: str = "ann") -> None:
    with rate_limit.request(client):
        pass


def refusal(rate_limit: RateLimit, client: str = "ann") -> Problem:
    with pytest.raises(Problem) as refused, rate_limit.request(client):
        pass
    assert refused.value.kind == "too-many-requests"
    return refused.value


def test_a_seconds_worth_may_come_at_once_and_then_one_by_one() -> None:
    clock = Clock()
    rate_limit = RateLimit(10, 0, clock)
    for _ in range(10):
        ask(rate_limit)
    assert refusal(rate_limit).headers["Retry-After"] == "1"
    clock.now_s += 0.1
    ask(rate_limit)
    refusal(rate_limit)


def test_no_more_than_a_burst_is_saved_up() -> None:
    clock = Clock()
    rate_limit = RateLimit(2, 0, clock)
    clock.now_s += 3600
    ask(rate_limit)
    ask(rate_limit)
    refusal(rate_limit)


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    rate_limit = RateLimit(1, 0, clock)
    ask(rate_limit)
    for _ in range(100):
        refusal(rate_limit)
    clock.now_s += 1
    ask(rate_limit)


def test_retry_after_is_right_for_less_than_one_request_a_second() -> None:
    clock = Clock()
    rate_limit = RateLimit(0.1, 0, clock)
    ask(rate_limit)
    assert refusal(rate_limit).headers["Retry-After"] == "10"
    clock.now_s += 10
    ask(rate_limit)


def test_another_request_is_admitted_when_one_at_the_limit_is_done() -> None:
    rate_limit = RateLimit(0, 2)
    with rate_limit.request("ann"):
        with rate_limit.request("ann"):
            assert refusal(rate_limit).headers["Retry-After"] == "1"
        ask(rate_limit)


def test_a_request_that_fails_is_not_counted_any_more() -> None:
    rate_limit = RateLimit(0, 1)
    for _ in range(3):
        with pytest.raises(ValueError), rate_limit.request("ann"):
            raise ValueError
    ask(rate_limit)


def test_a_client_at_its_limit_does_not_hold_another_back() -> None:
    rate_limit = RateLimit(1, 1, Clock())
    with rate_limit.request("ann"):
        ask(rate_limit, "bob")
    refusal(rate_limit)
    refusal(rate_limit, "bob")


def test_a_limit_of_0_is_none() -> None:
    rate_limit = RateLimit(0, 0)
    with ExitStack() as held:
        for _ in range(5000):
            held.enter_context(rate_limit.request("ann"))


def test_the_number_of_remembered_clients_is_bounded() -> None:
    rate_limit = RateLimit(1, 1, Clock())
    for number in range(MAX_CLIENTS + 10):
        ask(rate_limit, str(number))
    assert len(rate_limit._full_at_s) == MAX_CLIENTS
    assert not rate_limit._running
