"""The lag of the views is measured in time, not only in positions."""

from typing import cast

from sqlalchemy.ext.asyncio import AsyncEngine

from bench.view_lag import LagMonitor, Observation


def watched(*observations: tuple[float, int, int]) -> LagMonitor:
    watch = LagMonitor(cast(AsyncEngine, None))
    watch.observations = [Observation(*one) for one in observations]
    return watch


def test_views_at_the_head_are_not_behind() -> None:
    assert watched((0.0, 10, 10), (1.0, 20, 20)).lags_s() == [0, 0]


def test_lag_is_the_time_since_the_ledger_was_at_the_views_position() -> None:
    assert watched((0.0, 10, 10), (1.0, 20, 10), (2.0, 30, 15)).lags_s() == [0, 1.0, 1.5]


def test_lag_begins_when_the_ledger_grows() -> None:
    assert watched((0.0, 10, 10), (1.0, 10, 10), (2.0, 30, 10)).lags_s() == [0, 0, 1.0]


def test_views_behind_at_the_first_observation_are_behind_since_then() -> None:
    assert watched((0.0, 10, 5), (1.0, 20, 5)).lags_s() == [0, 1.0]


def test_a_rate_is_that_between_two_observations() -> None:
    assert watched((5.0, 10, 0), (7.0, 30, 0)).rates() == [(2.0, 10.0)]
