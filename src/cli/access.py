"""What the settings say about who may call the API."""

import logging
import re
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth.api_keys import api_key_cache
from api.auth.guard import Exposed, Guard, refuse_exposed
from api.auth.rate_limit import RateLimit
from api.auth.tokens import BadKeyFile, Tokens, load_signing_keys
from cli.settings import BadSettings, Settings

log = logging.getLogger(__name__)

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?").fullmatch

OPEN: Final = {
    "off": "LEDGER_AUTH=off: requests need no API key, from this machine only",
    "outside": "LEDGER_AUTH=outside: requests need no API key, from whoever gets through",
}


def make_guard(settings: Settings, engine: AsyncEngine) -> Guard | None:
    """Who asks for keys; nobody where none are required. Raises BadSettings."""
    try:
        refuse_exposed(settings.api_host, settings.auth)
        tokens = _tokens(settings)
    except (Exposed, BadKeyFile) as error:
        raise BadSettings(str(error)) from error
    if settings.auth != "required":
        log.warning(OPEN[settings.auth])
        return None
    rate_limit = RateLimit(settings.rate_per_s, settings.concurrency)
    return Guard(api_key_cache(engine), tokens, rate_limit)


def _tokens(settings: Settings) -> Tokens | None:
    issuer, audience, path = settings.jwt_issuer, settings.jwt_audience, settings.jwt_key_file
    if issuer is None and audience is None and path is None:
        return None
    if not issuer or not audience or path is None:
        raise BadSettings("of LEDGER_JWT_ISSUER, _AUDIENCE and _KEY_FILE set all three, or none")
    if settings.auth != "required":
        raise BadSettings("LEDGER_JWT_ISSUER is set, so LEDGER_AUTH must be `required`")
    return Tokens(issuer, audience, load_signing_keys(path))


def origins(settings: Settings) -> tuple[str, ...]:
    """The origins whose pages may call; raises BadSettings for what no browser would send."""
    found = tuple((settings.cors_origins or "").split())
    for origin in found:
        if origin != "*" and not _ORIGIN(origin):
            raise BadSettings(
                f"LEDGER_CORS_ORIGINS has {origin}: write each origin as https://shop.example"
            )
    return found
