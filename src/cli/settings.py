"""Every setting of every process, read from the environment and from `$LEDGER_HOME/stack.env`."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import quote

import yarl
from dotenv import dotenv_values
from pydantic import BaseModel, Field, ValidationError, field_validator
from sqlalchemy import URL

from ledger.runtime import failpoints

Port = Annotated[int, Field(ge=1, le=65535)]

DB_ROLES: Final = ("migrate", "writer", "projector", "api", "analyst")
AMQP_ROLES: Final = ("migrate", "writer", "projector", "api", "monitor")
SNAPSHOT_KEY: Final = "snapshot_key"
PREFIX: Final = "LEDGER_"
# What the local stack itself puts into the environment of its processes.
STACK_VARIABLES: Final = ("LEDGER_STACK", "LEDGER_EPMD_PORT", "LEDGER_AMQP_DIST_PORT")
# From this likeness on a name is taken for a misspelt one; 1 is the same.
NEARLY: Final = 0.75

_is_origin: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?").fullmatch


class MissingSecret(Exception):
    """A password file is missing: no stack was started here, or it has another home."""


class BadSettings(Exception):
    """A setting has a value that can't be used."""


class Settings(BaseModel):
    """The settings, each as `LEDGER_<NAME>` in the environment.

    The environment wins over `stack.env`, which the local stack writes with the ports it chose.
    Passwords are never settings: they are files in `secrets_dir`, one for each role.
    """

    home: Path = Field(Path(".ledger"), description="data, logs and secrets of the local stack")
    secrets_dir: Path | None = Field(
        None, description="password files; default `$LEDGER_HOME/secrets`"
    )
    api_host: str = Field("127.0.0.1", description="address the API listens on")
    api_port: Port = Field(8000, description="port the API listens on")
    api_shared: bool = Field(
        False, description="several API processes serve, and tell each other what they accepted"
    )
    auth: Literal["off", "outside", "required"] = Field(
        "off",
        description="`required`: an API key or token for all but products and health; `off`: none,"
        " on loopback only; `outside`: none, as a proxy in front of the API authenticates",
    )
    jwt_issuer: str | None = Field(
        None,
        description="`iss` of tokens accepted like API keys; set the next two as well",
    )
    jwt_audience: str | None = Field(None, description="`aud` that such tokens must have")
    jwt_key_file: Path | None = Field(
        None, description="public keys of the issuer: one as PEM, or several as JWKS"
    )
    rate_per_s: float = Field(
        2000,
        ge=0,
        description="rate limit of an API process for one client, in orders and other requests a"
        " second; 0: none",
    )
    concurrency: int = Field(
        2000,
        ge=0,
        description="orders and other requests of one client under way at once; 0: no limit",
    )
    cors_origins: str | None = Field(
        None,
        description="CORS: web origins whose pages may call the API, with spaces between; `*`: all",
    )
    amqp_host: str = Field("127.0.0.1", description="RabbitMQ's host")
    amqp_port: Port = Field(5672, description="RabbitMQ's port; the local stack picks a free one")
    amqp_ca_file: Path | None = Field(
        None, description="CA certificate of RabbitMQ; set: TLS, verified"
    )
    amqp_management_url: str | None = Field(
        None,
        description="RabbitMQ's management API, `http://host:15672`: where policies are looked up"
        " with the account `ledger_monitor`; the local stack needs none",
    )
    amqp_vhost: str = Field("ledger", description="RabbitMQ's virtual host")
    db_host: str = Field("127.0.0.1", description="MySQL's or MariaDB's host")
    db_port: Port = Field(3306, description="its port; the local stack picks a free one")
    db_name: str = Field("ledger", pattern=r"^[a-z][a-z0-9_]{0,30}$", description="its schema")
    db_ca_file: Path | None = Field(
        None, description="CA certificate of the database; set: TLS, verified"
    )
    snapshot_every: int = Field(
        50_000, ge=1, description="events between two snapshots of the writer"
    )
    lost_after: int | None = Field(
        None,
        ge=0,
        description="after a restore: where the restored ledger ended; the writer then decides"
        " orders that were accepted with later positions in sight, which it refuses otherwise",
    )
    clock_limit_s: float = Field(
        300,
        ge=0,
        description="seconds by which the writer's clock may differ from the database's, or the"
        " newest event be ahead of it, before it records nothing more; 0: any",
    )
    inbox_max_length: int = Field(
        100_000, ge=1, description="messages (groups of submitted events) the inbox holds at most"
    )

    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="how api, writer and projector log; `auto`: text on a terminal"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level that they log; `DEBUG` follows each event"
    )
    access_log: bool = Field(False, description="whether the API logs each request")
    metrics_host: str = Field(
        "127.0.0.1", description="address on which writer and projector serve `/metrics`"
    )
    writer_metrics_port: Port | None = Field(
        None, description="its port in the writer; the local stack picks a free one"
    )
    projector_metrics_port: Port | None = Field(
        None, description="its port in the projector; the local stack picks a free one"
    )
    otel_endpoint: str | None = Field(
        None,
        description="OTLP endpoint of traces: `http://127.0.0.1:4318`; needs `order-ledger[otel]`",
    )
    failpoints: str = Field("", description="for tests only: where the process fails on purpose")

    @field_validator("cors_origins")
    @classmethod
    def _refuse_malformed_origins(cls, text: str | None) -> str | None:
        for origin in (text or "").split():
            if origin != "*" and not _is_origin(origin):
                raise ValueError(f"{origin}: write each origin as https://shop.example")
        return text

    @field_validator("amqp_host", "db_host")
    @classmethod
    def _refuse_what_is_no_host(cls, text: str) -> str:
        host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        try:
            yarl.URL.build(scheme="amqp", host=host, port=1)
        except ValueError:
            raise ValueError(
                "write a name, or an address such as 127.0.0.1 or ::1, without the port"
            ) from None
        return host

    @field_validator("failpoints")
    @classmethod
    def _refuse_unknown_failpoints(cls, text: str) -> str:
        failpoints.parse(text)
        return text

    def amqp_account(self, role: str) -> tuple[str, str]:
        """Name and password of one role's account."""
        return f"ledger_{role}", self._secret(f"amqp_{role}")

    def amqp_url(self, role: str) -> str:
        """The AMQP URL of one role's account, with every part escaped as RFC 3986 wants it."""
        if self.amqp_ca_file and not self.amqp_ca_file.is_file():
            raise BadSettings(f"LEDGER_AMQP_CA_FILE={self.amqp_ca_file}: there is no such file")
        user, password = self.amqp_account(role)
        server = yarl.URL.build(
            scheme="amqps" if self.amqp_ca_file else "amqp",
            user=user,
            password=password,
            host=self.amqp_host,
            port=self.amqp_port,
        )
        url = server.with_path("/" + quote(self.amqp_vhost, safe=""), encoded=True)
        return str(url.with_query(cafile=str(self.amqp_ca_file)) if self.amqp_ca_file else url)

    def db_url(self, role: str) -> URL:
        """The SQLAlchemy URL of one role's account."""
        return URL.create(
            "mysql+asyncmy",
            f"ledger_{role}",
            self._secret(f"db_{role}"),
            self.db_host,
            self.db_port,
            self.db_name,
            {"charset": "utf8mb4"},
        )

    def db_passwords(self) -> dict[str, str]:
        """The password of each database role, for the command that creates the accounts."""
        return {role: self._secret(f"db_{role}") for role in DB_ROLES}

    def snapshot_key(self) -> bytes | None:
        """The key that snapshots are sealed with; None without one that can be read."""
        try:
            return (self._secrets_path() / SNAPSHOT_KEY).read_bytes().strip() or None
        except OSError:
            return None

    def _secrets_path(self) -> Path:
        return self.secrets_dir or self.home / "secrets"

    def _secret(self, name: str) -> str:
        path = self._secrets_path() / name
        try:
            password = path.read_text("utf-8").strip()
        except UnicodeDecodeError:
            # Its message would show a part of the password.
            raise BadSettings(f"{path} is no password: it is not UTF-8 text") from None
        except OSError as error:
            raise MissingSecret(
                f"can't read {path}: `make run` makes it at its first start; for a stack with"
                " another home set LEDGER_HOME, for passwords elsewhere LEDGER_SECRETS_DIR"
            ) from error
        if not password or not password.isprintable():
            raise BadSettings(f"{path} is no password: it is empty, or has more than one line")
        return password


def load_settings() -> Settings:
    """Read the settings; raises BadSettings naming each variable that can't be used."""
    if hints := [f"{name} is no setting: did you mean {known}?" for name, known in misspelt()]:
        raise BadSettings(" ".join(hints))
    home = os.environ.get("LEDGER_HOME", str(Settings.model_fields["home"].default))
    if not home:
        raise BadSettings("LEDGER_HOME is empty: name a directory, or unset it")
    return _settings_of({**_read_stack_env(Path(home)), **os.environ})


def unknown_variables() -> list[str]:
    """The variables that begin with LEDGER_ and are no setting: another program's, or misspelt."""
    known = {*STACK_VARIABLES, *(PREFIX + name.upper() for name in Settings.model_fields)}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def misspelt() -> list[tuple[str, str]]:
    """Unknown variables that are nearly a setting, each with the nearest one.

    Working without what was meant to be set would be worse than not working, as with LEDGER_AUHT.
    """
    names = {name.upper(): PREFIX + name.upper() for name in Settings.model_fields}
    nearest = [
        (name, get_close_matches(name.removeprefix(PREFIX), names, 1, NEARLY))
        for name in unknown_variables()
    ]
    return [(name, names[near[0]]) for name, near in nearest if near]


def _read_stack_env(home: Path) -> dict[str, str | None]:
    file = home / "stack.env"
    try:
        return dotenv_values(file)
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"can't read {file}: {error}") from error


def load_other_settings(home: Path) -> Settings:
    """The settings of another ledger, from `stack.env` of its home alone; raises BadSettings."""
    file = home / "stack.env"
    if not file.is_file():
        raise BadSettings(f"there is no {file}: name the LEDGER_HOME of the other ledger")
    return _settings_of({**_read_stack_env(home), "LEDGER_HOME": str(home)})


def _settings_of(environment: Mapping[str, str | None]) -> Settings:
    values = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX)
    }
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # pydantic names the field: whoever reads this has to change a variable.
        problems = (
            f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}={e['input']}:"
            f" {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise BadSettings("; ".join(problems)) from error
