"""How far views are behind is told in time, not only in positions."""

from typing import cast

from sqlalchemy.ext.asyncio import AsyncEngine

from bench.watching import Seen, Watch


def watched(*seen: tuple[float, int, int]) -> Watch:
    watch = Watch(cast(AsyncEngine, None))
    watch.seen = [Seen(*one) for one in seen]
    return watch


def test_views_at_the_head_are_not_behind() -> None:
    assert watched((0.0, 10, 10), (1.0, 20, 20)).lags_s() == [0, 0]


def test_views_are_as_far_behind_as_the_ledger_was_there_ago() -> None:
    assert watched((0.0, 10, 10), (1.0, 20, 10), (2.0, 30, 15)).lags_s() == [0, 1.0, 1.5]


def test_views_are_behind_only_since_the_ledger_went_on() -> None:
    assert watched((0.0, 10, 10), (1.0, 10, 10), (2.0, 30, 10)).lags_s() == [0, 0, 1.0]


def test_views_behind_from_the_first_look_are_behind_since_then() -> None:
    assert watched((0.0, 10, 5), (1.0, 20, 5)).lags_s() == [0, 1.0]


def test_the_rate_is_that_between_two_looks() -> None:
    assert watched((5.0, 10, 0), (7.0, 30, 0)).rates() == [(2.0, 10.0)]
