"""`ledger verify`: whether anything in the ledger was changed, or in a view of it is wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from cli.running import end, err, out, run, settings

if TYPE_CHECKING:
    from cli.verification import Verified

commands = typer.Typer()

UNABLE: Final = 3


@commands.command()
def verify(
    since_position: Annotated[
        int, typer.Option(min=0, help="trust what is before, from the nearest snapshot on")
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="positions, times and hashes only")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="go on from this file, and save there how far it got")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="a head that was kept: the ledger must go on from it")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="the key that must have signed that head")
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="compare this view only; may be given again")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check each hash, decision, invariant and view; name the first position that is wrong."""
    from cli.verification import Finding, Wish
    from cli.verification.helper_process import helped
    from cli.verification.kept_heads import BadFile, load_head
    from cli.verification.ledger import BadStart
    from cli.verification.state import BadState, StateNotSaved
    from cli.verification.work import verify as work
    from ledger.eventlog.chain import VerificationFailed
    from projections.views.registry import PROJECTIONS

    names = [projection.name for projection in PROJECTIONS]
    if unknown := set(view or ()) - set(names):
        raise end(2, f"there is no view {unknown.pop()}: choose of {', '.join(names)}")
    if resume and (quick or since_position):
        raise end(2, "--resume goes on from its file: leave out --quick and --since-position")
    if view and (resume or quick or since_position or against):
        raise end(2, "--view leaves out the ledger: leave out what is for the ledger, too")
    if public_key and not against:
        raise end(2, "--public-key is for the head that --against names")
    try:
        head = load_head(against, public_key) if against else None
        wish = Wish(since_position, quick, resume, head, tuple(view or ()), helped())
        verified = run(work(settings(), wish), unable=UNABLE)
    except VerificationFailed as wrong:
        if as_json:
            found = Finding(wrong.position, wrong.detail)
            typer.echo(msgspec.json.encode({"wrong": found}))
        raise end(1, str(wrong)) from None
    except (BadFile, BadStart, BadState) as error:
        raise end(2, str(error)) from None
    except StateNotSaved as error:
        raise end(UNABLE, str(error)) from None
    if as_json:
        typer.echo(msgspec.json.encode(verified))
    else:
        _show(verified, quick=quick)
    if head and not public_key:
        err.print("the kept head was taken as it is: --public-key FILE says who signed it")


def _show(verified: "Verified", *, quick: bool) -> None:
    if ledger := verified.ledger:
        since = f" after position {ledger.since}, which was trusted," if ledger.since else ""
        what = "in the chain" if quick else "as it was decided"
        out.print(f"ledger: all{since} up to position {ledger.position} is {what}")
        out.print(f"        hash {ledger.hash}")
    for view in verified.views:
        rows = f"{view.rows} rows" if view.rows != 1 else "1 row"
        out.print(f"{view.name}: {rows}, as the ledger makes them up to position {view.position}")
