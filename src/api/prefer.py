"""`Prefer: wait=N` (RFC 7240): how long a client wants to wait for the decision."""

from typing import Final

from msgspec import Struct
from starlette.requests import Request

from api.parameters import MAX_WAIT_S

DEFAULT_WAIT_S: Final = 2


class Preference(Struct, frozen=True):
    """How long to wait, and whether the client asked for it."""

    wait_s: int
    asked: bool

    def applied(self, decided: bool) -> dict[str, str]:
        """The header that says which of the preferences was honoured."""
        if not self.asked:
            return {}
        honoured = f"wait={self.wait_s}" if decided and self.wait_s else "respond-async"
        return {"Preference-Applied": honoured}


def preference(request: Request, default_wait_s: int) -> Preference:
    """What the client prefers; what can't be read is passed over, as the RFC wants it."""
    header = b",".join(v for name, v in request.scope["headers"] if name == b"prefer")
    if not header:
        return Preference(default_wait_s, False)
    found = _preferences(header.decode("latin-1").lower())
    wait = found.get("wait", "")
    if wait.isascii() and wait.isdigit():
        return Preference(min(int(wait[:9]), MAX_WAIT_S), True)
    if "respond-async" in found:
        return Preference(0, True)
    return Preference(default_wait_s, False)


def _preferences(header: str) -> dict[str, str]:
    """Name to value; of a name given twice the first counts."""
    found: dict[str, str] = {}
    for part in header.split(","):
        name, _, value = part.split(";")[0].partition("=")
        found.setdefault(name.strip(), value.strip().strip('"'))
    return found
