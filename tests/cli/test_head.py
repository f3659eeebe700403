"""`ledger head`: what is kept of it proves later that nothing before was changed or cut off."""

import json
import subprocess
from pathlib import Path

import pytest
from msgspec import convert
from typer.testing import CliRunner

from cli.commands.head import (
    BadFile,
    KeptHead,
    load_head,
    load_signing_key,
    make_signing_keys,
    sign_head,
    write_head,
)
from cli.commands.verify import BadStart
from cli.main import app
from cli.settings import Settings
from ledger.core.events import WalletCredited
from ledger.eventlog.codec import encode_payload
from ledger.runtime.timestamps import from_us
from tests.ledger.built_ledgers import forged
from tests.ledger.pipeline import Ledger
from tests.packages import require_program
from tests.submissions import orders

from .conftest import Run
from .damage import filled, project, rewrite, verified, wrong


@pytest.fixture
async def keys(run: Run, tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public one, as files."""
    path = tmp_path / "key"
    assert (await run("head", "--make-key", str(path))).status == 0
    return path, tmp_path / "key.pub"


async def kept(run: Run, key: Path, path: Path) -> KeptHead:
    """A head that was signed into a file; the public key is `key.pub`, beside the key."""
    done = await run("head", "--sign", "--key", str(key), "--out", str(path))
    assert (done.status, done.err) == (0, "")
    return load_head(path, key.with_name("key.pub"))


async def test_the_head_is_position_hash_and_recorded_time(run: Run, settings: Settings) -> None:
    empty = (await run("head", "--json")).json
    assert empty == {"position": 0, "hash": "00" * 32, "recorded_at": None}
    assert "nothing yet" in (await run("head")).out
    async with filled(settings) as ledger:
        last = (await ledger.records())[-1]
        shown = (await run("head", "--json")).json
        assert (shown["position"], shown["hash"]) == (last.position, last.hash.hex())
        assert shown["recorded_at"].startswith("20")
        assert last.hash.hex() in (await run("head")).out


async def test_a_signed_head_is_verified_with_the_public_key(
    run: Run, settings: Settings, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    file = tmp_path / "head.json"
    against = ("verify", "--against", str(file))
    async with filled(settings, with_triggers=True) as ledger:
        head = await kept(run, private, file)
        printed = await run("head", "--sign", "--key", str(private))
        assert convert(printed.json, KeptHead) == head
        done = await run(*against, "--public-key", str(public))
        assert (done.status, done.err) == (0, "")
        assert "--public-key" in (await run(*against)).said_one_sentence()
        await ledger.write(orders(1))
        await project(ledger)
        assert (await run(*against, "--public-key", str(public))).status == 0


async def test_a_key_made_by_openssl_works(run: Run, settings: Settings, tmp_path: Path) -> None:
    private, public, file = tmp_path / "key", tmp_path / "key.pub", tmp_path / "head.json"
    require_program("openssl")
    for command in (
        f"openssl genpkey -algorithm ed25519 -out {private}",
        f"openssl pkey -in {private} -pubout -out {public}",
        f"chmod 600 {private}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)  # noqa: ASYNC221
    async with filled(settings, with_triggers=True):
        await kept(run, private, file)
        done = await run("verify", "--against", str(file), "--public-key", str(public))
        assert (done.status, done.err) == (0, "")


async def forge(ledger: Ledger) -> None:
    """Another amount paid in at the end: every hash, the head and the views fit it."""
    records = await ledger.records()
    assert records[-1].type == "wallet.credited"
    await rewrite(ledger, forged(records, len(records), data=encode_payload(WalletCredited(900))))


async def test_a_kept_head_finds_a_rewritten_tail(
    run: Run, settings: Settings, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "head.json"
    async with filled(settings) as ledger:
        head = await kept(run, keys[0], file)
        await forge(ledger)
        found = (await verified(ledger)).ledger
        assert found
        assert found.position == head.position
        done = await run("verify", "--against", str(file), "--public-key", str(keys[1]))
        assert done.status == 1
        assert f"position {head.position}: " in done.said_one_sentence()
        assert "rewritten" in done.err
        await ledger.write(orders(2))
        await project(ledger)
        assert (await wrong(ledger, against=head)).position == head.position
        quick = await wrong(ledger, against=head, quick=True)
        assert quick.position == head.position


async def test_a_kept_head_finds_a_truncated_tail(
    run: Run, settings: Settings, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    async with filled(settings) as ledger:
        head = await kept(run, keys[0], tmp_path / "head.json")
        await rewrite(ledger, (await ledger.records())[:-1])
        await verified(ledger)
        found = await wrong(ledger, against=head)
        assert (found.position, "are gone" in found.detail) == (head.position, True)


async def test_the_first_position_of_damage_and_kept_head_is_named(settings: Settings) -> None:
    async with filled(settings) as ledger:
        last = (await ledger.records())[-1]
        head = KeptHead(last.position, "ab" * 32, None)
        assert (await wrong(ledger, against=head)).position == last.position
        await ledger.execute("UPDATE events SET meta = '{}' WHERE position = 3")
        assert (await wrong(ledger, against=head)).position == 3
        assert (await wrong(ledger, against=KeptHead(2, "ab" * 32, None))).position == 2


async def test_records_before_a_kept_head_must_be_verified(settings: Settings) -> None:
    async with filled(settings) as ledger:
        last = (await ledger.records())[-1]
        earlier = KeptHead(5, "ab" * 32, None)
        with pytest.raises(BadStart, match="position 5"):
            await verified(ledger, since_position=9, quick=True, against=earlier)
        fits = KeptHead(last.position, last.hash.hex(), None)
        await verified(ledger, since_position=9, quick=True, against=fits)


def refusal(file: Path, public: Path) -> str:
    """Why a head is refused."""
    with pytest.raises(BadFile) as raised:
        load_head(file, public)
    return str(raised.value)


def test_a_forged_head_is_refused(tmp_path: Path) -> None:
    file, key, other = (tmp_path / name for name in ("head.json", "key", "other"))
    public = tmp_path / "key.pub"
    make_signing_keys(key)
    make_signing_keys(other)
    signed = sign_head(KeptHead(7, "ab" * 32, from_us(5)), load_signing_key(key))
    write_head(file, signed)
    assert load_head(file, public) == signed
    assert "is signed by key" in refusal(file, tmp_path / "other.pub")
    assert "is not an Ed25519 public key" in refusal(file, key)
    assert "can't read" in refusal(file, tmp_path / "none")
    head = json.loads(file.read_text())
    for changes, said in (
        ({"position": 3}, "was changed"),
        ({"hash": "cd" * 32}, "was changed"),
        ({"recorded_at": "1970-01-01T00:00:00Z"}, "was changed"),
        ({"signature": "AAAA"}, "was changed"),
        ({"signature": "?"}, "was changed"),
        ({"signature": None}, "is not signed"),
        ({"hash": "ab"}, "is not a head"),
        ({"more": 1}, "is not a head"),
    ):
        file.write_text(json.dumps(head | changes))
        assert said in refusal(file, public)


def test_unusable_keys_are_refused_with_the_remedy(tmp_path: Path) -> None:
    key, public, rsa = (tmp_path / name for name in ("key", "key.pub", "rsa"))
    make_signing_keys(key)
    with pytest.raises(BadFile, match="can't write"):
        make_signing_keys(key)
    command = f"openssl genrsa -out {rsa} 2048"
    subprocess.run(command.split(), check=True, capture_output=True)
    rsa.chmod(0o600)
    key.chmod(0o640)
    public.chmod(0o600)
    for path, said in (
        (key, f"chmod 600 {key}"),
        (public, "is not an Ed25519 private key"),
        (rsa, "another kind than Ed25519"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(BadFile, match=said):
            load_signing_key(path)


async def test_unusable_files_are_status_2(run: Run, tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    for arguments in (
        ("head", "--sign", "--key", none),
        ("verify", "--against", none),
        ("head", "--out", str(tmp_path / "no" / "head.json")),
    ):
        done = await run(*arguments)
        assert (done.status, str(tmp_path) in done.said_one_sentence()) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sign",),
        ("--key", "x"),
        ("--make-key", "x", "--json"),
        ("--make-key", "x", "--sign", "--key", "y"),
    ],
)
def test_invalid_arguments_are_status_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["head", *arguments]).exit_code == 2


async def test_a_head_that_is_not_the_last_record_is_never_signed(
    run: Run, settings: Settings, keys: tuple[Path, Path]
) -> None:
    async with filled(settings) as ledger:
        await ledger.execute("UPDATE ledger_head SET position = position - 1")
        done = await run("head", "--sign", "--key", str(keys[0]))
        assert (done.status, done.out) == (1, "")
        assert "ledger_head says" in done.said_one_sentence()
