"""`ledger parked`: what could not be read, and what becomes of it."""

import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Final

import msgspec
import typer

from cli.parked_found import (
    PREFIX,
    AmbiguousId,
    Found,
    Moved,
    NotParked,
    by_prefix,
    by_reason,
    look,
    record,
    survey,
)
from cli.parked_shown import (
    facts,
    listed,
    listing,
    logged,
    print_table,
    record_listing,
    refusals,
    short_ids,
    shown,
)
from cli.plain import body_lines
from cli.progress import progress
from cli.running import end, err, out, run, settings
from cli.settings import Settings
from cli.unparking import Record, discard, open_record, resubmit
from ledger.parking_log import Action, MessageTooLarge

commands = typer.Typer(
    help="Messages that could not be read, and what becomes of them.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Limit = Annotated[int, typer.Option(min=1, help="show so many at most")]
BEGINNING: Final = "the beginning of its id, as `list` shows it"
MOST_ASKED: Final = 10

Id = Annotated[str, typer.Argument(metavar="ID", help=BEGINNING)]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help=BEGINNING)]
All = Annotated[bool, typer.Option("--all", help="all of them, or with --reason some")]
Reason = Annotated[
    str | None, typer.Option(metavar="GLOB", help="those whose reason fits, as '*order.shipped*'")
]
Work = Callable[[Settings, Record, Sequence[Found], Moved], Coroutine[Any, Any, None]]


@commands.command("list")
def list_parked(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what is parked, the oldest first; the queue stays as it is."""
    with _reading() as moved:
        seen = run(survey(settings(), moved))
    some = seen.found[:limit]
    left_out = len(seen.found) - len(some)
    if as_json:
        shown = {"messages": [listed(each) for each in some], "left_out": left_out}
        typer.echo(msgspec.json.encode(shown | {"unread": seen.unread}))
        return
    if not seen.found:
        out.print("nothing is parked")
        return
    print_table(out, listing(some, short_ids([each.parked.id for each in seen.found])))
    if left_out:
        err.print(f"{left_out} more are parked: see them with --limit {len(seen.found)}")
    if seen.unread:
        err.print(f"{seen.unread} messages behind these were not read: take some out first")


@commands.command("show")
def show_parked(
    id_: Id,
    raw: Annotated[bool, typer.Option("--raw", help="print the bytes, and nothing else")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a message, parked or recorded, what was wrong with it, and if it can be read now."""
    prefix = _prefix(id_)
    with _one_sentence(), _reading() as moved:
        seen = run(look(settings(), prefix, moved))
    if raw:
        if seen.body is None:
            raise end(1, "its bytes were erased")
        typer.echo(seen.body, nl=False)
    elif as_json:
        typer.echo(msgspec.json.encode(shown(seen)))
    else:
        out.print(facts(seen), body_lines(seen.body), sep="\n\n", markup=False)


@commands.command("resubmit")
def resubmit_parked(
    ids: Ids = None, every: All = False, reason: Reason = None, as_json: AsJson = False
) -> None:
    """Put messages that can be read now back into the inbox, in the order they were parked in."""
    chosen = _choose(ids or [], every, reason)
    readable = [each for each in chosen if not each.parked.trouble]
    refused = [each for each in chosen if each.parked.trouble]
    done = _take_off("resubmitted", resubmit, readable)
    _tell("resubmitted", done, refused, readable, as_json)


@commands.command("discard")
def discard_parked(
    ids: Ids = None,
    every: All = False,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Take messages off the queue; their bytes stay in the record."""
    if every and reason is None:
        raise end(2, "say which with --reason: '*' is all of them")
    chosen = _choose(ids or [], every, reason)
    if chosen and not yes:
        _confirm(chosen)
    done = _take_off("discarded", discard, chosen)
    _tell("discarded", done, [], chosen, as_json)


@commands.command("log")
def show_log(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what was resubmitted and discarded, when and by whom, the newest last."""
    entries = run(record(settings(), limit))
    if as_json:
        typer.echo(msgspec.json.encode({"entries": [logged(each) for each in entries]}))
    elif entries:
        print_table(out, record_listing(entries))
    else:
        out.print("nothing was resubmitted or discarded")


def _choose(ids: list[str], every: bool, reason: str | None) -> list[Found]:
    """What the arguments name, in the order in which it was parked."""
    prefixes = [_prefix(id_) for id_ in ids]
    if bool(prefixes) == every:
        raise end(2, "name messages by their ids, or give --all")
    if reason is not None and not every:
        raise end(2, "--reason goes with --all")
    with _one_sentence(), _reading() as moved:
        found = run(survey(settings(), moved)).found
        if every:
            return by_reason(found, reason or "*")
        named = {by_prefix(found, prefix).parked.id for prefix in prefixes}
    return [each for each in found if each.parked.id in named]


def _confirm(chosen: list[Found]) -> None:
    question = f"discard {_count(len(chosen), sum(each.copies for each in chosen))}?"
    if not sys.stdin.isatty():
        raise end(2, f"{question} There is no terminal to answer on: give --yes")
    print_table(err, listing(chosen[:MOST_ASKED], short_ids([each.parked.id for each in chosen])))
    typer.confirm(question, abort=True, err=True)


def _take_off(action: Action, work: Work, chosen: list[Found]) -> dict[str, int]:
    """Do it; whatever stops it, what was done until then is told."""
    done: dict[str, int] = {}

    async def recorded(moved: Moved) -> None:
        given = settings()
        async with open_record(given, action, chosen) as record:
            record.done = done
            await work(given, record, chosen, moved)

    if chosen:
        with _one_sentence(), progress(action, len(chosen)) as moved:
            try:
                run(recorded(moved))
            except BaseException:
                err.print(f"until then {_count(len(done), sum(done.values()))} {action}")
                raise
    return done


def _tell(
    action: Action,
    done: dict[str, int],
    refused: list[Found],
    wanted: list[Found],
    as_json: bool,
) -> None:
    """Say what was done; ends the command with status 1 where that is not all."""
    gone = [each.parked.id for each in wanted if each.parked.id not in done]
    if as_json:
        told = {each.parked.id: each.parked.trouble for each in refused}
        typer.echo(msgspec.json.encode({action: done, "refused": told, "gone": gone}))
    else:
        out.print(f"{action} {_count(len(done), sum(done.values()))}")
        for line in refusals(refused):
            err.print(line, markup=False)
        if gone:
            err.print(f"{len(gone)} had left the queue meanwhile: see `ledger parked log`")
    if refused or gone:
        raise typer.Exit(1)


def _count(messages: int, copies: int) -> str:
    """As many messages as that, and if there are more copies how many."""
    told = f"{messages} message" if messages == 1 else f"{messages} messages"
    return told if copies == messages else f"{told} ({copies} copies)"


def _prefix(id_: str) -> str:
    prefix = id_.lower()
    if not PREFIX(prefix):
        raise end(2, f"{id_!r} can't be an id: give 4 to 64 of the digits that `list` shows")
    return prefix


def _reading() -> AbstractContextManager[Moved]:
    return progress("reading the parking queue", None)


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except (NotParked, AmbiguousId, MessageTooLarge) as error:
        raise end(1, str(error)) from None
