"""`ledger parked`: what could not be read is seen, submitted again or discarded, and recorded."""

import asyncio
import json
import os
import signal
from base64 import b64decode
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from cli.commands.parked import operator, survey
from cli.settings import Settings
from ledger.eventlog.codec import Rejected, encode_group, encode_submitted
from ledger.eventlog.records import Submitted
from ledger.messaging.parking import id_of, park
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX, PARKING
from tests.harness import DEADLINE_S, environment, free_port
from tests.ledger.pipeline import Ledger, group_of, running_ledger, until_acked
from tests.submissions import opening, orders
from tests.warm import COMMAND

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
    await park(Connection(ledger.settings.amqp_url("writer"), "t"), rejected)


async def parked(ledger: Ledger) -> list[str]:
    """The ids of the parked messages, read without a process of its own."""
    return [message.id for message in (await survey(ledger.settings))[0]]


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
    table = (await run("parked", "list")).out
    for each in found:
        assert each["id"][:8] in table
        assert each["parked_at"] in table
    assert len(table.splitlines()) == 1 + len(found)


async def test_copies_are_listed_as_one_message(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"twice", b"once", b"twice")
    assert [(each["id"], each["copies"]) for each in await listed(run)] == [
        (id_of(b"twice"), 2),
        (id_of(b"once"), 1),
    ]


async def test_a_list_names_how_many_it_left_out(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, encode_group(b"%d" % number for number in range(5)))
    done = await run("parked", "list", "--limit", "2", "--json")
    assert (len(done.json["messages"]), done.json["left_out"]) == (2, 3)
    done = await run("parked", "list", "--limit", "2")
    assert len(done.out.splitlines()) == 3
    assert done.said_one_sentence() == "3 more are parked: see them with --limit 5"


async def test_listing_changes_nothing(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"one", b"two")
    first = await listed(run)
    assert [await listed(run) for _ in range(2)] == [first, first]
    assert await ledger.until_parked(2) == [
        (b"one", first[0]["reason"]),
        (b"two", first[1]["reason"]),
    ]


async def test_a_message_that_can_be_read_now_is_marked_readable(run: Run, ledger: Ledger) -> None:
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
    shown = (await run("parked", "show", found["id"])).out
    assert "readable, 1 event\n" in shown
    assert "one event of a group" in shown


async def test_json_is_shown_indented_and_to_the_digit(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b'[{"a":[1.50,1e400]}]')
    done = await run("parked", "show", id_of(b'{"a":[1.50,1e400]}'))
    assert done.out.endswith('{\n  "a": [\n    1.50,\n    1e400\n  ]\n}\n')


async def test_binary_is_named_and_raw_prints_it_as_it_is(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, BINARY)
    done = await run("parked", "show", id_of(BINARY))
    assert done.out.endswith("it is not text: `--raw` prints its bytes\n")
    shown = (await run("parked", "show", id_of(BINARY), "--json", PYTHONUNBUFFERED="1")).json
    assert (b64decode(shown["base64"]), shown["text"]) == (BINARY, None)


async def test_raw_prints_the_exact_bytes(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"\x1b[31mred\n\n")
    assert (
        await run("parked", "show", id_of(b"\x1b[31mred\n\n"), "--raw")
    ).out == "\x1b[31mred\n\n"


async def test_a_parked_message_can_not_command_the_terminal(run: Run, ledger: Ledger) -> None:
    nasty = '\x1b[2J\u202e[bold]"'
    await put_poison(ledger, json.dumps([{nasty: 1}], ensure_ascii=False).encode())
    await park_event(ledger, *orders(1), reason=nasty)
    listing = (await run("parked", "list")).out
    assert "\\x1b[2J\\u202e[bold]" in listing
    shown = [(await run("parked", "show", id_)).out for id_ in await parked(ledger)]
    for text in (listing, *shown):
        assert "\x1b" not in text
        assert "\u202e" not in text


async def test_an_unknown_or_ambiguous_id_is_one_sentence(run: Run, ledger: Ledger) -> None:
    done = await run("parked", "show", "0000")
    assert done.status == 1
    assert "`ledger parked list` shows all" in done.said_one_sentence()
    numbers = [b"%d" % number for number in range(700)]
    rejected = [Rejected(each, "no", False) for each in numbers]
    await park(Connection(ledger.settings.amqp_url("writer"), "t"), rejected)
    ids = sorted(map(id_of, numbers))
    prefix = next(one[:4] for one, other in pairwise(ids) if one[:4] == other[:4])
    for arguments in (("show", prefix), ("discard", prefix, "--yes")):
        done = await run("parked", *arguments)
        assert done.status == 1
        assert "give more of its digits" in done.said_one_sentence()
    assert await ledger.depth(PARKING) == 700


@pytest.mark.parametrize("arguments", [("list",), ("show", "0000"), ("resubmit", "--all")])
async def test_a_broker_that_is_away_is_one_sentence(run: Run, arguments: tuple[str, ...]) -> None:
    done = await run("parked", *arguments, LEDGER_AMQP_PORT=str(free_port()))
    assert (done.status, done.out) == (1, "")
    assert done.said_one_sentence()


async def test_readable_messages_are_resubmitted_and_others_stay_with_their_reason(
    run: Run, ledger: Ledger
) -> None:
    (event,) = orders(1)
    await put_poison(ledger, b"no JSON")
    await park_event(ledger, event)
    poison, readable = await listed(run)
    done = await run("parked", "resubmit", "--all")
    assert done.status == 1
    assert done.out == "resubmitted 1 message\n"
    assert done.said_one_sentence() == "unreadable and still parked: 1"
    assert await parked(ledger) == [poison["id"]]
    async with ledger.writing():
        await ledger.until_recorded([event])
    (entry,) = (await run("parked", "log", "--json")).json["entries"]
    assert entry["at"]
    assert entry["operator"] == operator()
    assert entry | {"at": "", "operator": ""} == {
        "at": "",
        "action": "resubmitted",
        "operator": "",
        "id": readable["id"],
        "copies": 1,
        "size": readable["size"],
        "whole": False,
        "reason": "of a newer version",
    }
    table = (await run("parked", "log")).out
    for part in ("resubmitted", entry["at"], entry["operator"], readable["id"][:8]):
        assert part in table


async def test_a_discarded_message_can_still_be_shown(run: Run, ledger: Ledger) -> None:
    await put_poison(ledger, b"poison", b"poison", b"other")
    one = id_of(b"poison")
    done = await run("parked", "discard", one[:6].upper(), "--yes", "--json")
    assert (done.status, done.json) == (0, {"discarded": {one: 2}, "refused": {}, "gone": []})
    assert await parked(ledger) == [id_of(b"other")]
    shown = await run("parked", "show", one[:6])
    assert f"by {operator()}" in shown.out
    assert shown.out.endswith("\n\npoison\n")
    assert (await run("parked", "show", one[:6], "--raw")).out == "poison"
    await ledger.execute("UPDATE parking_log SET body = NULL")
    assert "its bytes were erased" in (await run("parked", "show", one)).out
    assert (await run("parked", "show", one, "--raw")).status == 1


async def test_a_reason_selects_what_is_discarded(run: Run, ledger: Ledger) -> None:
    await park_event(ledger, *orders(2), reason="a [bad] one")
    await put_poison(ledger, b"poison")
    assert (await run("parked", "discard", "--all", "--reason", "a ?bad* one", "--yes")).status == 0
    assert await parked(ledger) == [id_of(b"poison")]
    done = await run("parked", "discard", "--all", "--reason", "nothing is so", "--yes")
    assert (done.status, done.out) == (0, "discarded 0 messages\n")


async def answered(settings: Settings, answer: bytes) -> tuple[int, str]:
    """The status and output of `ledger parked discard` at a terminal where somebody answers."""
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *("parked", "discard", "--all", "--reason", "*"),
        env=os.environ | environment(settings),
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.write(ours, answer)
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    os.close(ours)
    os.close(theirs)
    return process.returncode or 0, (out + err).decode()


async def test_at_a_terminal_nothing_is_discarded_without_a_yes(ledger: Ledger, run: Run) -> None:
    await put_poison(ledger, b"poison")
    status, said = await answered(ledger.settings, b"n\n")
    assert (status, id_of(b"poison")[:8] in said) == (1, True)
    assert "discard 1 message?" in said
    assert await ledger.depth(PARKING) == 1
    assert (await answered(ledger.settings, b"y\n"))[0] == 0
    assert await ledger.depth(PARKING) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "xyz1"), "'xyz1' can't be an id"),
        (("resubmit", "123"), "4 to 64"),
        (("resubmit",), "--all"),
        (("discard", "--yes"), "--all"),
        (("resubmit", "0000", "--all"), "--all"),
        (("resubmit", "0000", "--reason", "*"), "--reason"),
        (("discard", "--all"), "give --yes"),
    ],
)
async def test_ambiguous_arguments_are_refused(
    run: Run, ledger: Ledger, arguments: tuple[str, ...], said: str
) -> None:
    await put_poison(ledger, b"poison")
    done = await run("parked", *arguments)
    assert (done.status, done.out) == (2, "")
    assert said in done.said_one_sentence()
    assert await ledger.depth(PARKING) == 1


@pytest.mark.parametrize("command", ["resubmit", "discard"])
@pytest.mark.parametrize("moment", ["parked.before-log", "parked.before-ack"])
async def test_running_a_killed_command_again_loses_and_doubles_nothing(
    run: Run, ledger: Ledger, command: str, moment: str
) -> None:
    (event,) = orders(1)
    await park_event(ledger, event)
    (found,) = await parked(ledger)
    arguments = ["parked", command, found, *(["--yes"] if command == "discard" else [])]
    assert (await run(*arguments, LEDGER_FAILPOINTS=f"{moment}=die")).status == -9
    assert await parked(ledger) == [found]
    assert (await run(*arguments)).status == 0
    assert await parked(ledger) == []
    entries = await ledger.rows("SELECT action FROM parking_log")
    assert len(entries) == (2 if moment == "parked.before-ack" else 1)
    if command == "resubmit":
        async with ledger.writing():
            records = await ledger.until_recorded([event])
            await ledger.until_inbox_empty()
        assert len(records) == 2


async def test_ctrl_c_breaks_off_without_a_trace(settings: Settings, ledger: Ledger) -> None:
    await put_poison(ledger, b"poison")
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *("parked", "discard", id_of(b"poison"), "--yes"),
        env=os.environ
        | environment(settings)
        | {"LEDGER_FAILPOINTS": "parked.before-log=delay:60"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    async with asyncio.timeout(DEADLINE_S):
        said = await process.stderr.readuntil(b"pass 1: delay")
        process.send_signal(signal.SIGINT)
        _, rest = await process.communicate()
    assert process.returncode not in (0, None)
    assert b"Traceback" not in said + rest
    assert b"until then 0 messages discarded" in rest
    assert await ledger.depth(PARKING) == 1
    assert await ledger.rows("SELECT COUNT(*) FROM parking_log") == [(0,)]


async def test_without_a_database_nothing_is_submitted_or_discarded(
    run: Run, ledger: Ledger
) -> None:
    await park_event(ledger, *orders(1))
    (found,) = await parked(ledger)
    away = {"LEDGER_DB_PORT": str(free_port())}
    for arguments in (("resubmit", found), ("discard", found, "--yes"), ("log",)):
        done = await run("parked", *arguments, **away)
        assert (done.status, done.out) == (1, "")
        assert "Traceback" not in done.err
        assert done.err.startswith("✗")
    assert await ledger.depth(INBOX) == 0
    assert await parked(ledger) == [found]
