"""What `ledger parked` does with messages that were named: ask, take them off, tell."""

import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

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
    survey,
)
from cli.parked_shown import listing, print_table, refusals, short_ids
from cli.progress import progress
from cli.running import end, err, out, run, settings
from cli.settings import Settings
from cli.unparking import Record, open_record
from ledger.messaging.parking_log import Action, MessageTooLarge

MOST_ASKED: Final = 10
Work = Callable[[Settings, Record, Sequence[Found], Moved], Coroutine[Any, Any, None]]


def choose(ids: list[str], every: bool, reason: str | None) -> list[Found]:
    """What the arguments name, in the order in which it was parked."""
    prefixes = [prefix_of(id_) for id_ in ids]
    if bool(prefixes) == every:
        raise end(2, "name messages by their ids, or give --all")
    if reason is not None and not every:
        raise end(2, "--reason goes with --all")
    with one_sentence(), reading() as moved:
        found = run(survey(settings(), moved)).found
        if every:
            return by_reason(found, reason or "*")
        named = {by_prefix(found, prefix).parked.id for prefix in prefixes}
    return [each for each in found if each.parked.id in named]


def confirm(chosen: list[Found]) -> None:
    """Ask before anything is discarded; ends the command unless the answer is yes."""
    question = f"discard {_count(len(chosen), sum(each.copies for each in chosen))}?"
    if not sys.stdin.isatty():
        raise end(2, f"{question} There is no terminal to answer on: give --yes")
    print_table(err, listing(chosen[:MOST_ASKED], short_ids([each.parked.id for each in chosen])))
    typer.confirm(question, abort=True, err=True)


def take_off(action: Action, work: Work, chosen: list[Found]) -> dict[str, int]:
    """Do it; whatever stops it, what was done until then is told."""
    done: dict[str, int] = {}

    async def recorded(moved: Moved) -> None:
        given = settings()
        async with open_record(given, action, chosen) as record:
            record.done = done
            await work(given, record, chosen, moved)

    if chosen:
        with one_sentence(), progress(action, len(chosen)) as moved:
            try:
                run(recorded(moved))
            except BaseException:
                err.print(f"until then {_count(len(done), sum(done.values()))} {action}")
                raise
    return done


def tell(
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


def prefix_of(id_: str) -> str:
    """The beginning of an id; what can't be one ends the command with status 2."""
    prefix = id_.lower()
    if not PREFIX(prefix):
        raise end(2, f"{id_!r} can't be an id: give 4 to 64 of the digits that `list` shows")
    return prefix


def reading() -> AbstractContextManager[Moved]:
    """Show how much of the queue has been read."""
    return progress("reading the parking queue", None)


@contextmanager
def one_sentence() -> Iterator[None]:
    """What is not there or too large ends the command with status 1."""
    try:
        yield
    except (NotParked, AmbiguousId, MessageTooLarge) as error:
        raise end(1, str(error)) from None
