"""`ledger parked`: what could not be read is seen, submitted again or discarded, and recorded."""

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from cli.settings import Settings
from ledger.codec import Rejected, encode_submitted, join
from ledger.core.events import Submitted
from ledger.parking import id_of, park
from ledger.topology import PARKING
from tests.harness import free_port
from tests.ledger.events import opening, orders
from tests.ledger.running import Ledger, group_of, running_ledger, until_acked

from .conftest import Run

BINARY = bytes(range(256)) * 4096
UNKNOWN = b'{"specversion":"1.0","type":"order.shipped"}'


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger of the test, on which nothing runs."""
    async with running_ledger(settings) as ledger:
        yield ledger


async def put_poison(ledger: Ledger, *bodies: bytes) -> None:
    """Let a real writer park what it can't read."""
    await ledger.put(*bodies)
    async with ledger.writing() as writer:
        await until_acked(writer, len(bodies))


def wire(event: Submitted, **spoiled: object) -> bytes:
    """The event as an element of a group, some of its fields replaced."""
    return json.dumps(json.loads(encode_submitted(event, "/tests")) | spoiled).encode()


async def park_event(
    ledger: Ledger, *events: Submitted, reason: str = "of a newer version"
) -> None:
    """Park events that can be read, as a writer would have that did not know their type yet."""
    rejected = [Rejected(wire(event), reason, whole=False) for event in events]
    await park(ledger.settings.amqp_url("writer"), "t", rejected)


async def listed(run: Run) -> list[dict[str, Any]]:
    """The parked messages."""
    done = await run("parked", "list", "--json")
    assert done.status == 0, done.err
    found: list[dict[str, Any]] = done.json["messages"]
    return found


async def test_an_empty_queue_is_empty(run: Run) -> None:
    assert (await run("parked", "list")).out == "nothing is parked\n"
    assert (await run("parked", "list", "--json")).json == {
        "messages": [],
        "left_out": 0,
        "unread": 0,
    }


async def test_every_kind_of_poison_is_listed_with_its_reason(run: Run, ledger: Ledger) -> None:
    good, spoiled = opening()
    poison = {
        b"no JSON": "malformed",
        UNKNOWN: "Expected `array`",
        b"[" + wire(spoiled, type="order.shipped") + b"]": "order.shipped",
        b"[" + wire(spoiled, schemaversion=99) + b"]": "not 99",
        b"[" + wire(spoiled, schemaversion=10**400) + b"]": "not 1000",
        group_of([good])[:-1] + b",7]": "Expected `object`",
        BINARY: "",
    }
    await put_poison(ledger, *poison)
    found = await listed(run)
    assert len(found) == len(poison)
    for each, (body, reason) in zip(found, poison.items(), strict=True):
        assert reason in each["reason"]
        assert each["trouble"] == each["reason"]
        assert each["copies"] == 1
        assert each["parked_at"]
        if each["whole"]:
            assert (each["id"], each["size"]) == (id_of(body), len(body))
    assert found[5]["id"] == id_of(b"7")
    table = (await run("parked", "list", COLUMNS="300")).out
    for each in found:
        assert each["id"][:8] in table
        assert each["parked_at"] in table
    assert len(table.splitlines()) == 1 + len(found)


async def test_what_was_parked_twice_is_one_message(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"twice", b"once", b"twice")
    assert [(each["id"], each["copies"]) for each in await listed(run)] == [
        (id_of(b"twice"), 2),
        (id_of(b"once"), 1),
    ]


async def test_a_list_is_cut_and_says_so(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, join(b"%d" % number for number in range(5)))
    done = await run("parked", "list", "--limit", "2", "--json")
    assert (len(done.json["messages"]), done.json["left_out"]) == (2, 3)
    done = await run("parked", "list", "--limit", "2", COLUMNS="300")
    assert len(done.out.splitlines()) == 3
    assert done.said_one_sentence() == "3 more are parked: see them with --limit 5"


async def test_a_list_changes_nothing_however_often(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"one", b"two")
    first = await listed(run)
    assert [await listed(run) for _ in range(2)] == [first, first]
    assert await ledger.until_parked(2) == [
        (b"one", first[0]["reason"]),
        (b"two", first[1]["reason"]),
    ]


async def test_what_can_be_read_today_is_told(run: Run, ledger: Ledger) -> None:
    (event,) = orders(1)
    await park_event(ledger, event)
    (found,) = await listed(run)
    assert (found["reason"], found["trouble"], found["whole"]) == (
        "of a newer version",
        None,
        False,
    )
    done = await run("parked", "show", found["id"][:8], "--json")
    assert done.json["events"] == [
        {"type": "order.placed", "id": str(event.event_id), "subject": str(event.stream_id)}
    ]
    assert json.loads(done.json["text"])["id"] == str(event.event_id)
    shown = (await run("parked", "show", found["id"], COLUMNS="300")).out
    assert f"readable: order.placed {event.event_id}" in shown
    assert "one event of a group" in shown


async def test_json_is_shown_indented_and_to_the_digit(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b'[{"a":[1.50,1e400]}]')
    done = await run("parked", "show", id_of(b'{"a":[1.50,1e400]}'))
    assert done.out.endswith('{\n  "a": [\n    1.50,\n    1e400\n  ]\n}\n')


async def test_bytes_are_shown_in_hex_and_given_out_as_they_are(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, BINARY)
    done = await run("parked", "show", id_of(BINARY))
    assert "000000f0  f0 f1 f2" in done.out
    assert "00000040  40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO" in done.out
    assert done.out.endswith(f"… cut here: `--raw` prints all {len(BINARY)} bytes\n")
    shown = (await run("parked", "show", id_of(BINARY), "--json", PYTHONUNBUFFERED="1")).json
    assert (b64decode(shown["base64"]), shown["text"]) == (BINARY, None)


async def test_raw_bytes_are_the_very_ones(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"\x1b[31mred\n\n")
    assert (
        await run("parked", "show", id_of(b"\x1b[31mred\n\n"), "--raw")
    ).out == "\x1b[31mred\n\n"


async def test_a_parked_message_can_not_command_the_terminal(run: Run, ledger: Ledger) -> None:
    nasty = '\x1b[2J\u202e[bold]"'
    await put_poison(ledger, json.dumps([{nasty: 1}], ensure_ascii=False).encode())
    await park_event(ledger, *orders(1), reason=nasty)
    for one in await listed(run):
        for arguments in (("list",), ("show", one["id"])):
            shown = (await run("parked", *arguments, COLUMNS="300")).out
            assert "\x1b" not in shown
            assert "\u202e" not in shown
    assert "\\x1b[2J\\u202e[bold]" in (await run("parked", "list", COLUMNS="300")).out


@pytest.mark.parametrize("command", ["show"])
async def test_an_id_that_is_none_or_of_several_is_one_sentence(
    run: Run, ledger: Ledger, command: str
) -> None:
    done = await run("parked", command, "0000")
    assert done.status == 1
    assert "`ledger parked list` shows all" in done.said_one_sentence()
    for wrong in ("xyz", "123", "0" * 65, "../etc"):
        done = await run("parked", command, wrong)
        assert done.status == 2
        assert wrong in done.said_one_sentence()
    numbers = [b"%d" % number for number in range(700)]
    await park(
        ledger.settings.amqp_url("writer"), "t", [Rejected(each, "no", False) for each in numbers]
    )
    ids = sorted(map(id_of, numbers))
    one, other = next((one, other) for one, other in pairwise(ids) if one[:4] == other[:4])
    done = await run("parked", command, one[:4])
    assert done.status == 1
    said = done.said_one_sentence()
    assert one[:8] in said
    assert other[:8] in said
    assert await ledger.depth(PARKING) == 700


@pytest.mark.parametrize("arguments", [("list",), ("show", "0000")])
async def test_a_broker_that_is_away_is_one_sentence(run: Run, arguments: tuple[str, ...]) -> None:
    done = await run("parked", *arguments, LEDGER_AMQP_PORT=str(free_port()))
    assert (done.status, done.out) == (1, "")
    assert done.said_one_sentence()
