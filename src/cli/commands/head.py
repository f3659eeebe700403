"""`ledger head`: where the ledger ends, signed for whoever keeps it."""

from pathlib import Path
from typing import Annotated

import typer

from cli.running import end, out, run, settings

commands = typer.Typer()


@commands.command("head")
def show_head(
    sign: Annotated[bool, typer.Option("--sign", help="sign it with --key")] = False,
    key: Annotated[Path | None, typer.Option(help="the private key, as PEM")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="write it into this file")] = None,
    make_key: Annotated[
        Path | None, typer.Option(help="make a key instead: this file, and beside it FILE.pub")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show where the ledger ends: position, hash and recorded time; or sign it, to keep."""
    from cli.verification import kept_heads
    from ledger.audit import signatures
    from ledger.eventlog.chain import VerificationFailed

    if sign != (key is not None) or (make_key and (sign or to or as_json)):
        raise end(2, "say --sign and --key FILE together, and --make-key FILE without all others")
    try:
        if make_key:
            kept_heads.make_keys(make_key)
            out.print(f"made {make_key} to sign with, and {make_key}.pub for the others")
            return
        private = kept_heads.signing_key(key) if key else None
        head = run(kept_heads.read_head(settings()))
        shown = signatures.sign(head, private) if private else head
        if to:
            kept_heads.write_head(to, shown)
    except VerificationFailed as wrong:
        raise end(1, str(wrong)) from None
    except kept_heads.BadFile as error:
        raise end(2, str(error)) from None
    if as_json or (sign and not to):
        typer.echo(signatures.encode(shown))
    elif not to:
        out.print(kept_heads.as_table(head))
