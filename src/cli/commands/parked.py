"""`ledger parked`: what could not be read, and what becomes of it."""

from typing import Annotated, Final

import msgspec
import typer

from cli.running import end, err, out, run, settings

commands = typer.Typer(
    help="Messages that could not be read, and what becomes of them.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Limit = Annotated[int, typer.Option(min=1, help="show so many at most")]
BEGINNING: Final = "the beginning of its id, as `list` shows it"

Id = Annotated[str, typer.Argument(metavar="ID", help=BEGINNING)]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help=BEGINNING)]
All = Annotated[bool, typer.Option("--all", help="all of them, or with --reason some")]
Reason = Annotated[
    str | None, typer.Option(metavar="GLOB", help="those whose reason fits, as '*order.shipped*'")
]


@commands.command("list")
def list_parked(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what is parked, the oldest first; the queue stays as it is."""
    from cli.parked_chosen import reading
    from cli.parked_found import survey
    from cli.parked_shown import listed, listing, print_table, short_ids

    with reading() as moved:
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
    from cli.parked_chosen import one_sentence, prefix_of, reading
    from cli.parked_found import look
    from cli.parked_shown import facts, shown
    from cli.plain import body_lines

    prefix = prefix_of(id_)
    with one_sentence(), reading() as moved:
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
    from cli.parked_chosen import choose, take_off, tell
    from cli.unparking import resubmit

    chosen = choose(ids or [], every, reason)
    readable = [each for each in chosen if not each.parked.trouble]
    refused = [each for each in chosen if each.parked.trouble]
    done = take_off("resubmitted", resubmit, readable)
    tell("resubmitted", done, refused, readable, as_json)


@commands.command("discard")
def discard_parked(
    ids: Ids = None,
    every: All = False,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Take messages off the queue; their bytes stay in the record."""
    from cli.parked_chosen import choose, confirm, take_off, tell
    from cli.unparking import discard

    if every and reason is None:
        raise end(2, "say which with --reason: '*' is all of them")
    chosen = choose(ids or [], every, reason)
    if chosen and not yes:
        confirm(chosen)
    done = take_off("discarded", discard, chosen)
    tell("discarded", done, [], chosen, as_json)


@commands.command("log")
def show_log(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what was resubmitted and discarded, when and by whom, the newest last."""
    from cli.parked_found import record
    from cli.parked_shown import logged, print_table, record_listing

    entries = run(record(settings(), limit))
    if as_json:
        typer.echo(msgspec.json.encode({"entries": [logged(each) for each in entries]}))
    elif entries:
        print_table(out, record_listing(entries))
    else:
        out.print("nothing was resubmitted or discarded")
