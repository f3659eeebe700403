"""Ten times as many orders as can be taken: each answer tells the truth about its order."""

from collections.abc import Awaitable, Callable

from bench.overload import Offer, offered
from tests.harness import Stack


async def test_what_is_refused_under_overload_was_not_accepted_and_what_is_accepted_is_decided(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()
    result = await offered(stack.url, stack.settings, Offer(30_000, 1.5, connections=4_000))
    assert result.answers["202"] > 0, result
    assert result.refused > 0, result
    assert set(result.answers) <= {"202", "503 no", "503 unknown"}, result
    assert (result.lost, result.doubled, result.no_recorded) == (0, 0, 0), result
    # At most one in a thousand, and none at all of so few.
    assert result.unknown_recorded <= result.refused / 1_000, result
