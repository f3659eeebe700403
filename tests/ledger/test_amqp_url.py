"""Passwords, virtual hosts and addresses of RabbitMQ may be any, and the way there may be TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from cli.settings import BadSettings, Settings
from ledger.messaging.rabbitmq import BROKER_ERRORS, Connection
from tests.harness import broker_admin
from tests.private_servers import Servers

PASSWORDS = ["a/b", "a#b", "a?b", "a@b", "a:b", "a%41b", "a%", "a[b", "p@s/w#rd%41", "ü ß+&=;'\"\\"]


@pytest.mark.parametrize("password", PASSWORDS)
async def test_a_password_may_hold_any_character(
    servers: Servers, tmp_path: Path, password: str
) -> None:
    await may_connect(await account(servers, tmp_path, password))


@pytest.mark.parametrize("vhost", ["a/b", "a%2fb", "a?b#c", "ü b"])
async def test_a_virtual_host_may_have_any_name(
    servers: Servers, tmp_path: Path, vhost: str
) -> None:
    await may_connect(await account(servers, tmp_path, "secret", vhost))


@pytest.mark.parametrize("host", ["::1", "[::1]", "127.0.0.1", "localhost"])
async def test_the_broker_may_be_named_by_any_address(
    servers: Servers, tmp_path: Path, host: str
) -> None:
    settings = await account(servers, tmp_path, "secret")
    if "::1" in host:
        async with passing_on(settings.amqp_port, "::1") as port:
            await may_connect(with_changes(settings, amqp_host=host, amqp_port=port))
    else:
        await may_connect(with_changes(settings, amqp_host=host))


async def test_tls_is_used_and_the_certificate_is_verified(
    servers: Servers, tmp_path: Path
) -> None:
    settings = await account(servers, tmp_path, "secret")
    context, certificate = tls(tmp_path, "ours", "127.0.0.1")
    async with passing_on(settings.amqp_port, "127.0.0.1", context) as port:
        await may_connect(with_changes(settings, amqp_port=port, amqp_ca_file=certificate))
        _, other = tls(tmp_path, "other", "127.0.0.1")
        with pytest.raises(BROKER_ERRORS, match="certificate verify failed"):
            await may_connect(with_changes(settings, amqp_port=port, amqp_ca_file=other))


async def test_a_certificate_for_another_host_is_refused(servers: Servers, tmp_path: Path) -> None:
    settings = await account(servers, tmp_path, "secret")
    context, certificate = tls(tmp_path, "ours", "127.0.0.2")
    async with passing_on(settings.amqp_port, "127.0.0.1", context) as port:
        with pytest.raises(BROKER_ERRORS, match="certificate verify failed"):
            await may_connect(with_changes(settings, amqp_port=port, amqp_ca_file=certificate))


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xffSECRET", b"SECRET\0x"])
def test_a_file_without_a_password_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "amqp_api").write_bytes(content)
    with pytest.raises(BadSettings, match="amqp_api") as raised:
        Settings(secrets_dir=tmp_path).amqp_url("api")
    assert "SECRET" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("host", ["rabbit:5672", "amqp://rabbit", "user@rabbit", "a b", "", "a/b"])
@pytest.mark.parametrize("name", ["amqp_host", "db_host"])
def test_what_is_no_host_is_refused(name: str, host: str) -> None:
    with pytest.raises(ValidationError, match="without the port"):
        Settings.model_validate({name: host})


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "amqp_api").write_text("secret")
    settings = Settings(secrets_dir=tmp_path, amqp_ca_file=tmp_path / "none.pem")
    with pytest.raises(BadSettings, match=r"LEDGER_AMQP_CA_FILE.*none\.pem"):
        settings.amqp_url("api")


def with_changes(settings: Settings, **changes: object) -> Settings:
    return Settings.model_validate(settings.model_dump() | changes)


async def account(
    servers: Servers, directory: Path, password: str, vhost: str = "ledger"
) -> Settings:
    """Settings of an account `ledger_odd` that may do all in one virtual host."""
    (directory / "amqp_odd").write_text(password)
    every = {"configure": ".*", "write": ".*", "read": ".*"}
    async with broker_admin(servers) as http:
        body = {"password": password, "tags": ""}
        (await http.put("/users/ledger_odd", json=body)).raise_for_status()
        name = quote(vhost, safe="")
        (await http.put(f"/vhosts/{name}")).raise_for_status()
        (await http.put(f"/permissions/{name}/ledger_odd", json=every)).raise_for_status()
    return Settings(secrets_dir=directory, amqp_port=servers.amqp_port, amqp_vhost=vhost)


async def may_connect(settings: Settings) -> None:
    async with Connection(settings.amqp_url("odd"), "t").channel(confirms=True) as channel:
        await channel.declare_queue("odd", exclusive=True)


@asynccontextmanager
async def passing_on(
    target: int, host: str, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A port of a host that leads to one of 127.0.0.1, with TLS if there is a context."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", target)
        both = pump(reader, to_server), pump(from_server, writer)
        await asyncio.gather(*both, return_exceptions=True)

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def tls(directory: Path, name: str, address: str) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for an address, and the file of its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate_file, key_file = directory / f"{name}.pem", directory / f"{name}.key"
    certificate_file.write_bytes(certificate.public_bytes(pem))
    format_ = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, format_, serialization.NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file
