"""`ledger parked`: messages that could not be read (dead letters), and what becomes of them.

A message leaves the queue only after the log has it. A crash before the log is committed leaves it
as it was, perhaps submitted already; one before the ack leaves it logged and parked. Either way the
operator runs the command again: the ids of events make that harmless, and a second row in the log
makes it visible.
"""

import os
import pwd
import re
import socket
import sys
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from fnmatch import fnmatchcase
from itertools import chain
from typing import Annotated, Final

import msgspec
import typer
from aio_pika.abc import AbstractIncomingMessage
from msgspec.structs import asdict
from rich.table import Table

from cli import connections, console
from cli.settings import Settings
from ledger.core.events import TYPE_OF
from ledger.messaging.parking import (
    MOST_READ,
    Action,
    Delivery,
    LogEntry,
    Parked,
    Parking,
    append_to_log,
    decode_parked,
    describe,
    id_of,
    inbox_body,
    open_parking,
    read_log,
    read_logged_body,
    refuse_too_large,
)
from ledger.messaging.publisher import publish
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime.failpoints import failpoint
from ledger.runtime.timestamps import format_rfc3339

CONNECTION_NAME: Final = "ledger-parked"
# Messages are held in memory until they are acked: up to so many bytes, and one message more.
HELD_BYTES: Final = 32 * 2**20
BATCH: Final = 100
MAX_OPERATOR: Final = 320

ID_DIGITS: Final = 12
MOST_ASKED: Final = 10
MAX_SHOWN: Final = 4096
UNFOLDED_WIDTH: Final = 2_000


class NotParked(Exception):
    """No parked message has this id, or several have one that begins so."""


def _prefix(text: str) -> str:
    """The beginning of an id; what can't be one ends the command with status 2."""
    prefix = text.lower()
    if not re.fullmatch("[0-9a-f]{4,64}", prefix):
        console.usage_error(f"{text!r} can't be an id: give 4 to 64 digits that `list` shows")
    return prefix


_ID: Final = typer.Argument(
    metavar="ID", parser=_prefix, help="the beginning of its id, as `list` shows it"
)
Limit = Annotated[int, typer.Option(min=1, help="show so many at most")]
Ids = Annotated[list[str] | None, _ID]
All = Annotated[bool, typer.Option("--all", help="all of them")]
Reason = Annotated[
    str | None, typer.Option(metavar="GLOB", help="those whose reason fits, as '*order.shipped*'")
]

parked = typer.Typer(no_args_is_help=True, add_completion=False)


@parked.command("list")
def list_parked(limit: Limit = 100, as_json: console.AsJson = False) -> None:
    """Show what is parked, the oldest first; the queue stays as it is."""
    messages, unread = console.run(survey(console.read_settings()))
    left_out = max(len(messages) - limit, 0)
    if as_json:
        console.print_json({"messages": messages[:limit], "left_out": left_out, "unread": unread})
        return
    if not messages:
        console.out.print("nothing is parked")
        return
    _print_messages(console.out, messages[:limit])
    if left_out:
        console.err.print(f"{left_out} more are parked: see them with --limit {len(messages)}")
    if unread:
        console.err.print(f"{unread} messages behind these were not read: take some out first")


@parked.command("show")
def show_parked(
    id_: Annotated[str, _ID],
    raw: Annotated[bool, typer.Option("--raw", help="print the bytes, and nothing else")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Show a message, parked or logged, what was wrong with it, and if it can be read now."""
    message, stored_body, log = console.run(find(console.read_settings(), id_))
    if raw:
        if stored_body is None:
            console.fail("its bytes were erased")
        console.print_bytes(stored_body)
        return
    body = stored_body or b""
    text: str | None = None
    with suppress(UnicodeDecodeError):
        text = body.decode()
    events, _ = decode_parked(body, message.whole)
    if as_json:
        shown_events = [
            {"type": TYPE_OF[type(e.payload)], "id": e.event_id, "subject": e.stream_id}
            for e in events
        ]
        base64 = b64encode(body).decode() if text is None else None
        shown = {"log": log, "events": shown_events, "text": text, "base64": base64}
        console.print_json({**asdict(message), **shown})
        return
    if not message.trouble:
        now = f"readable, {len(events)} event{'s' if len(events) > 1 else ''}"
    elif message.trouble == message.reason:
        now = "unreadable, as then"
    else:
        now = f"unreadable: {message.trouble}"
    facts = [
        ("id", message.id),
        *((entry.action, f"{_time(entry.at)} by {entry.operator}") for entry in log),
        *([] if log else [("parked", _time(message.parked_at))]),
        ("copies", str(message.copies)),
        ("was", "a message of the inbox" if message.whole else "one event of a group"),
        ("bytes", str(message.size)),
        ("reason", message.reason),
        ("now", now),
    ]
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        console.out.print(f"{name:<{width}}{value}")
    if stored_body is None:
        text = "its bytes were erased"
    elif text is None:
        text = "it is not text: `--raw` prints its bytes"
    else:
        with suppress(msgspec.DecodeError, RecursionError):  # text that is not JSON stays as it is
            text = msgspec.json.format(text, indent=2)
    console.out.print()
    for line in text[:MAX_SHOWN].split("\n"):
        console.out.print(line)
    if len(text) > MAX_SHOWN:
        console.out.print(f"… cut here: `--raw` prints all {message.size} bytes")


@parked.command("resubmit")
def resubmit_parked(
    ids: Ids = None, every: All = False, reason: Reason = None, as_json: console.AsJson = False
) -> None:
    """Put messages that can be read now back into the inbox, in the order they were parked in."""
    settings = console.read_settings()
    chosen = _choose(settings, ids or [], every, reason)
    # What can't be read now would only be parked again.
    readable = [message for message in chosen if not message.trouble]
    refused = {message.id: message.trouble for message in chosen if message.trouble}
    _remove(settings, "resubmitted", readable, refused, as_json)


@parked.command("discard")
def discard_parked(
    ids: Ids = None,
    every: All = False,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Take messages off the queue; their bytes stay in the log."""
    settings = console.read_settings()
    chosen = _choose(settings, ids or [], every, reason)
    if chosen and not yes:
        question = f"discard {_count(len(chosen), sum(message.copies for message in chosen))}?"
        if not sys.stdin.isatty():
            console.usage_error(f"{question} There is no terminal to answer on: give --yes")
        _print_messages(console.err, chosen[:MOST_ASKED])
        typer.confirm(question, abort=True, err=True)
    _remove(settings, "discarded", chosen, {}, as_json)


@parked.command("log")
def show_log(limit: Limit = 100, as_json: console.AsJson = False) -> None:
    """Show what was resubmitted and discarded, when and by whom, the newest last."""
    settings = console.read_settings()

    async def read() -> list[LogEntry]:
        async with connections.connection(settings, "migrate") as connection:
            return await read_log(connection, limit)

    entries = console.run(read())
    if as_json:
        console.print_json({"entries": entries})
        return
    columns = ("at", "action", "by", "id", "copies", "bytes", "reason")
    rows = [
        (_time(e.at), e.action, e.operator, e.id[:ID_DIGITS], e.copies, e.size, e.reason)
        for e in entries
    ]
    _print_table(console.out, columns, rows)


def _choose(
    settings: Settings, prefixes: list[str], every: bool, reason: str | None
) -> list[Parked]:
    """The messages that the arguments name, in the order of the queue."""
    if bool(prefixes) == (every or reason is not None):
        console.usage_error("name messages by their ids, or give --all or --reason")
    return console.run(choose(settings, prefixes, reason))


def _remove(
    settings: Settings,
    action: Action,
    chosen: list[Parked],
    refused: dict[str, str],
    as_json: bool,
) -> None:
    """Resubmit or discard messages and print it; status 1 where that is not all of them."""
    done: dict[str, int] = {}
    if chosen:
        with console.progress(action, len(chosen)) as advance:
            try:
                console.run(remove(settings, action, chosen, advance, done))
            except BaseException:
                # Whatever stopped it (Ctrl-C, too), the operator must know what is done.
                console.err.print(f"until then {_count(len(done), sum(done.values()))} {action}")
                raise
    gone = [message.id for message in chosen if message.id not in done]
    if as_json:
        console.print_json({action: done, "refused": refused, "gone": gone})
    else:
        console.out.print(f"{action} {_count(len(done), sum(done.values()))}")
        if refused:
            console.err.print(f"unreadable and still parked: {len(refused)}")
        if gone:
            console.err.print(f"gone from the queue meanwhile: {len(gone)}")
    if refused or gone:
        raise typer.Exit(console.FAILED)


def _count(messages: int, copies: int) -> str:
    text = f"{messages} message" if messages == 1 else f"{messages} messages"
    return text if copies == messages else f"{text} ({copies} copies)"


def _print_messages(target: console.Console, messages: Sequence[Parked]) -> None:
    columns = ("id", "parked", "copies", "bytes", "now", "reason")
    rows = []
    for m in messages:
        now = "unreadable" if m.trouble else "readable"
        rows.append((m.id[:ID_DIGITS], _time(m.parked_at), m.copies, m.size, now, m.reason))
    _print_table(target, columns, rows)


def _print_table(
    target: console.Console, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Print a table, at a terminal folded to its width, else one line a row."""
    table = Table(box=None)
    for name in columns:
        table.add_column(name, no_wrap=name != "reason")
    for row in rows:
        table.add_row(*map(str, row))
    # A program that reads lines must not get folded ones.
    wide = console.Console(file=target.file, width=UNFOLDED_WIDTH)
    (target if target.is_terminal else wide).print(table)


def _time(moment: datetime | None) -> str:
    return format_rfc3339(moment, "seconds") if moment else "–"


async def survey(settings: Settings) -> tuple[list[Parked], int]:
    """The parked messages in the order of the queue, which stays as it is; how many are unread.

    Raises ParkingBusy.
    """
    by_id: dict[str, Parked] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION_NAME) as parking:
        async for delivery in parking.messages():
            _add(by_id, delivery)
    return list(by_id.values()), max(parking.count - MOST_READ, 0)


async def find(settings: Settings, prefix: str) -> tuple[Parked, bytes | None, list[LogEntry]]:
    """The message whose id begins with a prefix, in the queue or else, with entries, in the log.

    Its body is None if it was erased from the log. Raises NotParked, ParkingBusy.
    """
    by_id: dict[str, Parked] = {}
    bodies: dict[str, bytes] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION_NAME) as parking:
        async for delivery in parking.messages():
            if id_of(delivery.body).startswith(prefix):
                bodies[_add(by_id, delivery)] = delivery.body
    if by_id:
        id_ = _only_one(by_id.keys(), prefix)
        return by_id[id_], bodies[id_], []

    async with connections.connection(settings, "migrate") as connection:
        log = await read_log(connection, MOST_READ, prefix)
        id_ = _only_one({entry.id for entry in log}, prefix)
        body = await read_logged_body(connection, id_)
    last = log[-1]
    trouble = decode_parked(body, last.whole)[1] if body is not None else "its bytes were erased"
    message = Parked(id_, last.reason, None, last.whole, last.size, trouble, last.copies)
    return message, body, log


async def choose(settings: Settings, prefixes: list[str], reason: str | None) -> list[Parked]:
    """The messages with these prefixes of ids or, without any, those whose reason matches a glob.

    They come in the order of the queue. Raises NotParked, ParkingBusy.
    """
    messages, _ = await survey(settings)
    if not prefixes:
        return [m for m in messages if reason is None or fnmatchcase(m.reason, reason)]
    ids = [message.id for message in messages]
    chosen = {_only_one([id_ for id_ in ids if id_.startswith(p)], p) for p in prefixes}
    return [message for message in messages if message.id in chosen]


def _only_one(ids: Collection[str], prefix: str) -> str:
    if not ids:
        raise NotParked(f"no parked message has the id {prefix}: `ledger parked list` shows all")
    if len(ids) > 1:
        raise NotParked(f"{len(ids)} messages have an id like {prefix}: give more of its digits")
    return next(iter(ids))


def _add(by_id: dict[str, Parked], delivery: AbstractIncomingMessage) -> str:
    """Add a delivery to the messages, or count it as a copy of one of them; return its id."""
    message = describe(delivery)
    earlier = by_id.setdefault(message.id, message)
    if earlier is not message:
        earlier.copies += 1
        # The same bytes may be readable as a whole message and not as one event, or the reverse.
        if earlier.trouble and not message.trouble:
            earlier.whole, earlier.trouble = message.whole, None
    return message.id


async def remove(
    settings: Settings,
    action: Action,
    messages: Sequence[Parked],
    advance: Callable[[int], None],
    done: dict[str, int],
) -> None:
    """Resubmit messages, in the order they were parked in, or discard them.

    `done` counts the copies of each message that left the queue, by its id. Raises MessageTooLarge,
    before anything is done, where the log can't take a message; InboxUnavailable, ParkingBusy.
    """
    url = settings.amqp_url("migrate")
    user_id, _ = settings.amqp_account("migrate")
    wanted = {message.id: message for message in messages}
    left = sum(message.copies for message in messages)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(connections.engine(settings, "migrate"))
        async with engine.connect() as connection:
            await refuse_too_large(connection, max((m.size for m in messages), default=0))
        inbox = None
        if action == "resubmitted":
            # Not on the queue's connection: a broker in need stops reading from who publishes.
            publishing = Connection(url, f"{CONNECTION_NAME}-publisher")
            channel = await stack.enter_async_context(publishing.channel(confirms=True))
            inbox = await publishing.exchange(channel, SUBMITTED_EXCHANGE)
        while left > 0:
            # Opened again for each HELD_BYTES of messages.
            async with open_parking(url, CONNECTION_NAME) as parking:
                deliveries = await _deliveries(parking, wanted, left)
                for begin in range(0, len(deliveries), BATCH):
                    batch = deliveries[begin : begin + BATCH]
                    removable: list[Delivery] = []
                    try:
                        for delivery in batch:
                            if inbox:
                                body = inbox_body(delivery.body, delivery.parked.whole)
                                await publish(inbox, body, CONNECTION_NAME, user_id)
                            removable.append(delivery)
                    finally:
                        # What the inbox has is logged and acked, even if the next message fails.
                        if removable:
                            await failpoint("parked.before-log")
                            async with engine.begin() as connection:
                                await append_to_log(connection, action, operator(), removable)
                            await failpoint("parked.before-ack")
                            await parking.ack(chain.from_iterable(d.copies for d in removable))
                        for delivery in removable:
                            id_ = delivery.parked.id
                            done[id_] = done.get(id_, 0) + len(delivery.copies)
                    advance(len(batch))
            if not deliveries:
                return
            left -= sum(len(delivery.copies) for delivery in deliveries)


async def _deliveries(parking: Parking, wanted: dict[str, Parked], limit: int) -> list[Delivery]:
    """The oldest `limit` copies of wanted messages, or fewer where HELD_BYTES hold no more."""
    deliveries: dict[str, Delivery] = {}
    held = 0
    async for message in parking.messages():
        # To the end even so: only a reader of all leaves the rest in order (see `parking`).
        if held >= HELD_BYTES or limit <= 0:
            continue
        parked_as = wanted.get(id_of(message.body))
        if parked_as:
            delivery = deliveries.setdefault(parked_as.id, Delivery(parked_as, message.body, []))
            delivery.copies.append(message)
            held += len(message.body)
            limit -= 1
    return list(deliveries.values())


def operator() -> str:
    """Who runs this command, as the operating system names them: user@host."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return f"{name}@{socket.gethostname()}"[:MAX_OPERATOR]
