"""Policies on the broker that would undo what the queues promise are named, not believed."""

import json
from collections.abc import AsyncIterator
from math import isnan

import pytest

from cli.commands.migrate import migrate
from cli.policies import UNKNOWN, read_problems, watch
from cli.settings import Settings
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import DELIVERY_LIMIT, INBOX, PARKING, BrokerQueue, policy_problems
from ledger.messaging.topology import declare as declare_topology
from ledger.runtime.metrics import POLICY_PROBLEMS
from ledger.runtime.reconnect import first_to_end
from tests.harness import broker_admin, eventually, make_ledger, rabbitmqctl
from tests.private_servers import Servers

DANGEROUS = {
    "delivery-limit": 2,
    "message-ttl": 1000,
    "expires": 60_000,
    "max-length": 1,
    "max-length-bytes": 1000,
    "overflow": "drop-head",
    "dead-letter-strategy": "at-most-once",
    "dead-letter-exchange": "elsewhere",
    "alternate-exchange": "elsewhere",
    "federation-upstream-set": "all",
}


@pytest.mark.parametrize("queue", [INBOX, PARKING])
@pytest.mark.parametrize("key", DANGEROUS)
def test_each_key_that_may_lose_or_move_messages_is_a_problem(queue: str, key: str) -> None:
    (problem,) = policy_problems(BrokerQueue(queue, ("try",), {key: DANGEROUS[key]}))
    assert all(part in problem for part in ("policy try", key, str(DANGEROUS[key]), queue))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("delivery-limit", DELIVERY_LIMIT),
        ("overflow", "reject-publish"),
        ("dead-letter-strategy", "at-least-once"),
        ("dead-letter-exchange", "ledger.parking"),
        ("queue-leader-locator", "balanced"),
    ],
)
def test_a_policy_that_takes_nothing_back_is_none(key: str, value: object) -> None:
    assert policy_problems(BrokerQueue(INBOX, ("try",), {key: value})) == []


@pytest.fixture(scope="module")
async def settings(servers: Servers) -> Settings:
    return await make_ledger(servers)


@pytest.fixture(params=["policy", "operator policy"])
async def policed(
    request: pytest.FixtureRequest, servers: Servers, settings: Settings
) -> AsyncIterator[str]:
    """A policy of either kind that expires the messages of both queues."""
    kind = "operator_policy" if request.param == "operator policy" else "policy"
    vhost = ("-p", settings.amqp_vhost)
    definition = json.dumps({"message-ttl": 86_400_000})
    rabbitmqctl(
        servers, f"set_{kind}", *vhost, "try", "^ledger", definition, "--apply-to", "queues"
    )
    yield "try"
    rabbitmqctl(servers, f"clear_{kind}", *vhost, "try")


async def test_no_policy_is_no_problem(settings: Settings) -> None:
    assert await read_problems(settings) == (None, [])


async def test_a_policy_is_found_by_rabbitmqctl_and_by_the_management_api(
    servers: Servers, settings: Settings, policed: str
) -> None:
    by_http = settings.model_copy(
        update={"amqp_management_url": f"http://127.0.0.1:{servers.management_port}"}
    )

    async def found(settings: Settings) -> list[str]:
        async def look() -> list[str]:
            unknown, problems = await read_problems(settings)
            assert unknown is None
            return problems if len(problems) == 2 else []

        return await eventually(look, "both queues have the policy")

    problems = await found(settings)
    assert {queue for queue in (INBOX, PARKING) for problem in problems if queue in problem} == {
        INBOX,
        PARKING,
    }
    assert all(policed in problem and "message-ttl" in problem for problem in problems)
    assert sorted(await found(by_http)) == sorted(problems)


async def test_a_policy_set_while_the_writer_runs_is_logged_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems: list[str] = []

    async def read() -> tuple[str | None, list[str]]:
        return None, list(problems)

    def value() -> float:
        return POLICY_PROBLEMS.collect()[0].samples[0].value

    async def work() -> None:
        async def no_problem() -> bool:
            return value() == 0

        await eventually(no_problem, "no problem is seen")
        problems.append("a policy drops messages")

        async def a_problem() -> bool:
            return value() == 1

        await eventually(a_problem, "the problem is seen")
        problems.clear()
        await eventually(no_problem, "it is gone")

    await first_to_end(watch(read, 0, 0.01), work())
    assert [record.message for record in caplog.records] == ["a policy drops messages"]


async def test_a_broker_that_should_tell_and_does_not_is_an_unknown(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"amqp_management_url": "http://127.0.0.1:1"})
    unknown, _ = await read_problems(nowhere)
    assert unknown
    assert "LEDGER_AMQP_MANAGEMENT_URL=http://127.0.0.1:1: " in unknown
    elsewhere = settings.model_copy(update={"home": settings.home / "elsewhere"})
    assert await read_problems(elsewhere) == (UNKNOWN, [])

    async def fails() -> tuple[str | None, list[str]]:
        return "the broker is away", []

    async def unknown() -> bool:
        return isnan(POLICY_PROBLEMS.collect()[0].samples[0].value)

    POLICY_PROBLEMS.set(0)
    await first_to_end(watch(fails, 0), eventually(unknown, "it is not known"))


async def test_an_inbox_of_an_earlier_release_is_kept_and_a_new_one_dead_letters_at_least_once(
    servers: Servers, settings: Settings
) -> None:
    async def strategy() -> str | None:
        async with broker_admin(servers) as http:
            queue = (await http.get(f"/queues/{settings.amqp_vhost}/{INBOX}")).raise_for_status()
        arguments: dict[str, str] = queue.json()["arguments"]
        return arguments.get("x-dead-letter-strategy")

    assert await strategy() == "at-least-once"
    async with Connection(settings.amqp_url("migrate"), "t").channel(confirms=False) as channel:
        await channel.queue_delete(INBOX)
        await declare_topology(channel, settings.inbox_max_length, at_least_once=False)
    await migrate(settings)
    assert await strategy() is None
