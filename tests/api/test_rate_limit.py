"""Rate limit, concurrency and turns: each client has its own share, whatever the others do."""

import asyncio
from contextlib import ExitStack

import pytest

from api.auth import rate_limit as rate_limits
from api.auth.rate_limit import (
    MAX_CLIENTS,
    MAX_WAITING_OF_CLIENT,
    Client,
    NoTurn,
    RateLimit,
    Turns,
)
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


def test_a_batch_counts_as_many_orders_as_it_has() -> None:
    clock = Clock()
    rate_limit = RateLimit(10, 0, clock)
    with rate_limit.request("ann") as share:
        share.weigh(35)
    # Ten were there, so 25 are to be made up for; and one more is wanted.
    assert refusal(rate_limit).headers["Retry-After"] == "3"
    clock.now_s += 2.5
    refusal(rate_limit)
    clock.now_s += 0.1
    ask(rate_limit)
    refusal(rate_limit)


def test_a_client_in_debt_is_refused_before_its_body_is_parsed() -> None:
    rate_limit = RateLimit(10, 0, Clock())
    with rate_limit.request("ann") as first, rate_limit.request("ann") as second:
        first.refuse_in_debt()
        first.weigh(35)
        with pytest.raises(Problem):
            second.refuse_in_debt()
        with pytest.raises(Problem):
            second.weigh(35)


def test_orders_under_way_are_counted_and_not_requests() -> None:
    rate_limit = RateLimit(0, 100)
    with rate_limit.request("ann") as first:
        first.weigh(60)
        with rate_limit.request("ann") as second, pytest.raises(Problem):
            second.weigh(41)
        with rate_limit.request("ann") as second:
            second.weigh(39)
            with rate_limit.request("ann"):
                refusal(rate_limit)
    assert not rate_limit._running


def test_a_batch_beyond_the_limit_is_taken_when_its_client_has_nothing_else_under_way() -> None:
    rate_limit = RateLimit(0, 100)
    with rate_limit.request("ann") as first:
        first.weigh(1000)
        refusal(rate_limit)
        ask(rate_limit, "bob")
    with rate_limit.request("ann"), rate_limit.request("ann") as second, pytest.raises(Problem):
        second.weigh(1000)
    assert not rate_limit._running


class Work:
    """Work that takes a turn and notes the order in which it began."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.began: list[str] = []
        self.go_on = asyncio.Event()

    async def of(self, client: Client) -> None:
        async with self.turns.turn(client):
            self.began.append(client.name)
            await asyncio.sleep(0)
            await self.go_on.wait()


ANN, BOB = Client("ann", known=True), Client("bob", known=True)
STRANGER = Client("127.0.0.1", known=False)


async def test_a_client_that_asks_for_much_does_not_make_others_wait_longer_than_one_turn() -> None:
    work = Work(Turns(1, 60))
    work.go_on.set()
    clients = [*[ANN] * 50, BOB, *[ANN] * 10, BOB]
    await asyncio.gather(*(work.of(client) for client in clients))
    assert work.began == ["ann", "ann", "bob", "ann", "bob", *["ann"] * 57]


async def test_those_with_a_key_go_before_strangers_who_never_have_all_turns() -> None:
    work = Work(Turns(3, 60, strangers_at_once=2))
    strangers = [asyncio.create_task(work.of(STRANGER)) for _ in range(5)]
    await asyncio.sleep(0)
    assert work.began == ["127.0.0.1"] * 2
    known = [asyncio.create_task(work.of(client)) for client in (ANN, ANN, BOB)]
    await asyncio.sleep(0)
    assert work.began[2:] == ["ann"]
    work.go_on.set()
    await asyncio.gather(*strangers, *known)
    assert work.began[3:5] == ["ann", "bob"]


async def test_who_has_too_much_waiting_is_refused_at_once_and_others_wait_on() -> None:
    work = Work(Turns(1, 60))
    mine = [asyncio.create_task(work.of(ANN)) for _ in range(MAX_WAITING_OF_CLIENT + 1)]
    await asyncio.sleep(0)
    with pytest.raises(NoTurn):
        await work.of(ANN)
    other = asyncio.create_task(work.of(BOB))
    work.go_on.set()
    await asyncio.gather(other, *mine)


async def test_strangers_who_wait_are_bounded_and_take_no_place_of_those_with_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_WAITING", 3)
    work = Work(Turns(1, 60))
    strangers = [Client(f"::{number}", known=False) for number in range(5)]
    waiting = [asyncio.create_task(work.of(stranger)) for stranger in strangers[:4]]
    await asyncio.sleep(0)
    with pytest.raises(NoTurn):
        await work.of(strangers[4])
    known = asyncio.create_task(work.of(ANN))
    await asyncio.sleep(0)
    work.go_on.set()
    await asyncio.gather(known, *waiting)
    assert work.began[1] == "ann"


@pytest.mark.parametrize("client", [ANN, STRANGER])
async def test_a_turn_that_does_not_come_or_is_cancelled_is_nobodys(client: Client) -> None:
    turns = Turns(1, 0.01)
    work = Work(turns)
    first = asyncio.create_task(work.of(client))
    await asyncio.sleep(0)
    with pytest.raises(NoTurn):
        await work.of(client)
    turns.timeout_s = 60
    hung_up = asyncio.create_task(work.of(client))
    await asyncio.sleep(0)
    hung_up.cancel()
    work.go_on.set()
    await asyncio.gather(first, hung_up, return_exceptions=True)
    await work.of(client)
    assert work.began == [client.name] * 2
    for line in (turns._known, turns._strangers):
        assert (line.running, line._waiting, line.clients) == (0, 0, {})


async def test_a_turn_that_comes_as_its_client_hangs_up_goes_to_the_next() -> None:
    work = Work(Turns(1, 60))
    first, second, third = (asyncio.create_task(work.of(client)) for client in (ANN, BOB, STRANGER))
    await asyncio.sleep(0)
    work.go_on.set()
    await first
    second.cancel()
    await asyncio.gather(second, third, return_exceptions=True)
    assert work.began[-1] == "127.0.0.1"
