"""`ledger parked`: messages that could not be read (dead letters), and what becomes of them."""

import re
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from msgspec import Struct
from msgspec.structs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.commands.parked_queue import (
    Advance,
    Details,
    ParkedMessage,
    choose,
    find,
    read_log,
    remove,
    survey,
)
from cli.console import (
    BAD_USAGE,
    FAILED,
    err,
    exit_with,
    out,
    print_json,
    printable,
    progress,
    read_settings,
    run,
)
from ledger.core.events import TYPE_OF
from ledger.eventlog.records import Submitted
from ledger.messaging.parking import decode_parked
from ledger.messaging.parking_log import Action, Entry
from ledger.runtime.timestamps import format_rfc3339, format_us

parked = typer.Typer(no_args_is_help=True, add_completion=False)

ID_HELP: Final = "the beginning of its id, as `list` shows it"

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Limit = Annotated[int, typer.Option(min=1, help="show so many at most")]
Id = Annotated[str, typer.Argument(metavar="ID", help=ID_HELP)]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help=ID_HELP)]
All = Annotated[bool, typer.Option("--all", help="all of them, or with --reason some")]
Reason = Annotated[
    str | None, typer.Option(metavar="GLOB", help="those whose reason fits, as '*order.shipped*'")
]

MIN_ID: Final = 8
MAX_REASON: Final = 200
MAX_NAMED: Final = 10
MAX_BODY: Final = 4096
HEX_LINE: Final = 16
PRINTABLE_ASCII: Final = range(0x20, 0x7F)
UNFOLDED_WIDTH: Final = 1_000
# The reason has a row of its own, and the other two count how often a message was read.
HIDDEN_HEADERS: Final = {"x-reason", "x-delivery-count", "x-acquired-count"}

_is_prefix: Final = re.compile(r"[0-9a-f]{4,64}").fullmatch


class ListedMessage(Struct, frozen=True):
    """A parked message for `list --json`; `trouble` is null when today's code can read it."""

    id: str
    parked_at: str | None
    copies: int
    size: int
    whole: bool
    reason: str
    trouble: str | None


class LoggedAction(Struct, frozen=True):
    """A row of the log for `log --json`."""

    at: str
    action: str
    operator: str
    id: str
    copies: int
    size: int
    whole: bool
    reason: str


class ShownEvent(Struct, frozen=True):
    """An event that today's code reads in a parked message."""

    type: str
    id: str
    subject: str


class ShownMessage(ListedMessage, frozen=True):
    """A message for `show --json`; its body is in `text`, or in `base64` if it is not text."""

    log: list[LoggedAction]
    events: list[ShownEvent]
    headers: dict[str, Any]
    text: str | None
    base64: str | None


@parked.command("list")
def list_parked(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what is parked, the oldest first; the queue stays as it is."""
    with _reading() as advance:
        result = run(survey(read_settings(), advance))
    shown = result.messages[:limit]
    left_out = len(result.messages) - len(shown)
    if as_json:
        listed = [_listed(message) for message in shown]
        print_json({"messages": listed, "left_out": left_out, "unread": result.unread})
        return
    if not result.messages:
        out.print("nothing is parked")
        return
    _print_table(out, _messages_table(shown, _short_ids([m.parked.id for m in result.messages])))
    if left_out:
        err.print(f"{left_out} more are parked: see them with --limit {len(result.messages)}")
    if result.unread:
        err.print(f"{result.unread} messages behind these were not read: take some out first")


@parked.command("show")
def show_parked(
    id_: Id,
    raw: Annotated[bool, typer.Option("--raw", help="print the bytes, and nothing else")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a message, parked or logged, what was wrong with it, and if it can be read now."""
    prefix = _prefix(id_)
    with _reading() as advance:
        details = run(find(read_settings(), prefix, advance))
    if raw:
        if details.body is None:
            exit_with(FAILED, "its bytes were erased")
        typer.echo(details.body, nl=False)
    elif as_json:
        print_json(_shown(details))
    else:
        out.print(_facts(details), _body_text(details.body), sep="\n\n", markup=False)


@parked.command("resubmit")
def resubmit_parked(
    ids: Ids = None, every: All = False, reason: Reason = None, as_json: AsJson = False
) -> None:
    """Put messages that can be read now back into the inbox, in the order they were parked in."""
    chosen = _choose(ids or [], every, reason)
    # What can't be read now would only be parked again.
    readable = [message for message in chosen if not message.parked.trouble]
    unreadable = [message for message in chosen if message.parked.trouble]
    done = _remove("resubmitted", readable)
    _report("resubmitted", done, readable, unreadable, as_json)


@parked.command("discard")
def discard_parked(
    ids: Ids = None,
    every: All = False,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Take messages off the queue; their bytes stay in the log."""
    if every and reason is None:
        exit_with(BAD_USAGE, "say which with --reason: '*' is all of them")
    chosen = _choose(ids or [], every, reason)
    if chosen and not yes:
        question = f"discard {_count(len(chosen), sum(message.copies for message in chosen))}?"
        if not sys.stdin.isatty():
            exit_with(BAD_USAGE, f"{question} There is no terminal to answer on: give --yes")
        names = _short_ids([message.parked.id for message in chosen])
        _print_table(err, _messages_table(chosen[:MAX_NAMED], names))
        typer.confirm(question, abort=True, err=True)
    done = _remove("discarded", chosen)
    _report("discarded", done, chosen, [], as_json)


@parked.command("log")
def show_log(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what was resubmitted and discarded, when and by whom, the newest last."""
    entries = run(read_log(read_settings(), limit))
    if as_json:
        print_json({"entries": [_logged(entry) for entry in entries]})
    elif entries:
        names = _short_ids([entry.id for entry in entries])
        table = _table("at", "action", "by", "id", "copies", "bytes")
        for entry in entries:
            operator = Text(printable(entry.operator))
            cells = (format_us(entry.at_us, "seconds"), entry.action, operator, names[entry.id])
            table.add_row(*cells, str(entry.copies), str(entry.size), _reason_cell(entry.reason))
        _print_table(out, table)
    else:
        out.print("nothing was resubmitted or discarded")


def _choose(ids: list[str], every: bool, reason: str | None) -> list[ParkedMessage]:
    """The messages that the arguments name, in the order of the queue."""
    prefixes = [_prefix(id_) for id_ in ids]
    if bool(prefixes) == every:
        exit_with(BAD_USAGE, "name messages by their ids, or give --all")
    if reason is not None and not every:
        exit_with(BAD_USAGE, "--reason goes with --all")
    with _reading() as advance:
        return run(choose(read_settings(), prefixes, reason, advance))


def _remove(action: Action, messages: list[ParkedMessage]) -> dict[str, int]:
    """Resubmit or discard messages: the copies that left the queue, by id."""
    done: dict[str, int] = {}
    if messages:
        with progress(action, len(messages)) as advance:
            try:
                run(remove(read_settings(), action, messages, advance, done))
            except BaseException:
                # Whatever stopped it (Ctrl-C, too), the operator must know what is done.
                err.print(f"until then {_count(len(done), sum(done.values()))} {action}")
                raise
    return done


def _report(
    action: Action,
    done: dict[str, int],
    chosen: list[ParkedMessage],
    unreadable: list[ParkedMessage],
    as_json: bool,
) -> None:
    """Print what was done; ends the command with status 1 where that is not all."""
    gone = [message.parked.id for message in chosen if message.parked.id not in done]
    if as_json:
        refused = {message.parked.id: message.parked.trouble for message in unreadable}
        print_json({action: done, "refused": refused, "gone": gone})
    else:
        out.print(f"{action} {_count(len(done), sum(done.values()))}")
        names = _short_ids([message.parked.id for message in unreadable])
        for message in unreadable[:MAX_NAMED]:
            trouble = printable(message.parked.trouble or "")
            err.print(f"{names[message.parked.id]} stays parked: {trouble}", markup=False)
        if len(unreadable) > MAX_NAMED:
            more = len(unreadable) - MAX_NAMED
            err.print(f"{more} more stay parked: see `ledger parked list`", markup=False)
        if gone:
            err.print(f"{len(gone)} had left the queue meanwhile: see `ledger parked log`")
    if unreadable or gone:
        raise typer.Exit(FAILED)


def _count(messages: int, copies: int) -> str:
    text = f"{messages} message" if messages == 1 else f"{messages} messages"
    return text if copies == messages else f"{text} ({copies} copies)"


def _prefix(id_: str) -> str:
    """The beginning of an id; what can't be one ends the command with status 2."""
    prefix = id_.lower()
    if not _is_prefix(prefix):
        exit_with(
            BAD_USAGE, f"{id_!r} can't be an id: give 4 to 64 of the digits that `list` shows"
        )
    return prefix


def _reading() -> AbstractContextManager[Advance]:
    return progress("reading the parking queue", None)


def _listed(message: ParkedMessage) -> ListedMessage:
    parked_as = message.parked
    return ListedMessage(
        parked_as.id,
        _parked_at(message),
        message.copies,
        parked_as.size,
        parked_as.whole,
        parked_as.reason,
        parked_as.trouble,
    )


def _shown(details: Details) -> ShownMessage:
    body = details.body or b""
    events, _ = decode_parked(body, details.message.parked.whole)
    text = _as_text(body)
    return ShownMessage(
        **asdict(_listed(details.message)),
        log=[_logged(entry) for entry in details.entries],
        events=[_event(event) for event in events],
        headers={name: _jsonable(value) for name, value in details.headers.items()},
        text=text,
        base64=None if text is not None else b64encode(body).decode(),
    )


def _logged(entry: Entry) -> LoggedAction:
    return LoggedAction(
        format_us(entry.at_us, "seconds"),
        entry.action,
        entry.operator,
        entry.id,
        entry.copies,
        entry.size,
        entry.whole,
        entry.reason,
    )


def _event(event: Submitted) -> ShownEvent:
    return ShownEvent(TYPE_OF[type(event.payload)], str(event.event_id), str(event.stream_id))


def _jsonable(value: object) -> object:
    """A header's value as JSON: it may be of any type that AMQP has."""
    match value:
        case dict():
            return {str(name): _jsonable(item) for name, item in value.items()}
        case list():
            return [_jsonable(item) for item in value]
        case bool() | int() | float() | str() | None:
            return value
        case datetime():
            return _time_text(value)
    return repr(value)


def _facts(details: Details) -> str:
    """All about a message but its body, for people."""
    parked_as = details.message.parked
    if trouble := parked_as.trouble:
        same = trouble == parked_as.reason
        now = "unreadable, as then" if same else f"unreadable: {trouble}"
    else:
        events, _ = decode_parked(details.body or b"", parked_as.whole)
        named = ", ".join(f"{e.type} {e.id}" for e in map(_event, events[:MAX_NAMED]))
        more = f" and {len(events) - MAX_NAMED} more" if len(events) > MAX_NAMED else ""
        now = f"readable: {named}{more}"
    history: list[tuple[str, str]] = [
        (entry.action, f"{format_us(entry.at_us, 'seconds')} by {entry.operator}")
        for entry in details.entries
    ]
    headers = details.headers.items()
    rows = [
        ("id", parked_as.id),
        *(history or [("parked", _parked_at(details.message) or "–")]),
        ("copies", str(details.message.copies)),
        ("was", "a message of the inbox" if parked_as.whole else "one event of a group"),
        ("bytes", str(parked_as.size)),
        ("reason", parked_as.reason),
        ("now", now),
        *((name, str(value)) for name, value in headers if name not in HIDDEN_HEADERS),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{printable(name):<{width}}{printable(value)}" for name, value in rows)


def _body_text(body: bytes | None) -> str:
    """The first MAX_BODY bytes: JSON indented, other text as it is, anything else in hex."""
    if body is None:
        return "its bytes were erased"
    text = _as_text(body)
    if text is None:
        shown, is_cut = "\n".join(_hex_lines(body[:MAX_BODY])), len(body) > MAX_BODY
    else:
        with suppress(msgspec.DecodeError, RecursionError):  # text that is not JSON stays as it is
            text = msgspec.json.format(body, indent=2).decode()
        shown, is_cut = printable(text[:MAX_BODY], keep="\n"), len(text) > MAX_BODY
    return f"{shown}\n… cut here: `--raw` prints all {len(body)} bytes" if is_cut else shown


def _as_text(body: bytes) -> str | None:
    """The body as text; None if it is something else."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\t\r\n" for char in text) else None


def _hex_lines(body: bytes) -> Iterator[str]:
    for begin in range(0, len(body), HEX_LINE):
        line = body[begin : begin + HEX_LINE]
        ascii_text = "".join(chr(byte) if byte in PRINTABLE_ASCII else "." for byte in line)
        yield f"{begin:08x}  {line.hex(' '):<{3 * HEX_LINE - 1}}  {ascii_text}"


def _messages_table(messages: Sequence[ParkedMessage], names: dict[str, str]) -> Table:
    table = _table("id", "parked", "copies", "bytes", "now")
    for message in messages:
        parked_as = message.parked
        state = "unreadable" if parked_as.trouble else "readable"
        parked_at = _parked_at(message) or "–"
        cells = (names[parked_as.id], parked_at, str(message.copies), str(parked_as.size), state)
        table.add_row(*cells, _reason_cell(parked_as.reason))
    return table


def _table(*names: str) -> Table:
    """A table with these columns, and a last one for reasons that takes the room that is left."""
    table = Table(box=None)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("reason")
    return table


def _print_table(console: Console, table: Table) -> None:
    """Print a table, at a terminal folded to its width, else one line a row."""
    # A program that reads lines must not get folded ones.
    wide = Console(file=console.file, width=UNFOLDED_WIDTH)
    (console if console.is_terminal else wide).print(table)


def _reason_cell(reason: str) -> Text:
    text = printable(reason)
    return Text(text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…")


def _short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Each id cut to MIN_ID characters, or to as many as tell all of them apart."""
    length = MIN_ID
    while len({id_[:length] for id_ in ids}) < len(set(ids)):
        length += 1
    return {id_: id_[:length] for id_ in ids}


def _parked_at(message: ParkedMessage) -> str | None:
    return _time_text(message.parked.parked_at) if message.parked.parked_at else None


def _time_text(moment: datetime) -> str:
    return format_rfc3339(moment.astimezone(UTC), "seconds")
