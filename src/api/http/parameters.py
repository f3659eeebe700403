"""Every parameter of a request, declared once: its name, place, form, default and description.

An operation lists the parameters that it takes. The same objects parse the request, give the
handler its typed values (`call[LIMIT]`) and describe the parameter in the OpenAPI document.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, overload
from uuid import UUID

import msgspec
from starlette.requests import Request

from api.http.problems import invalid
from api.schemas import UUID_PATTERN
from ledger.core.decider import Status
from ledger.core.events import DECIDED, SUBMITTED
from ledger.runtime.timestamps import BadTimestamp, parse_rfc3339

Json = dict[str, Any]
T = TypeVar("T")
Body = TypeVar("Body")

MAX_POSITION: Final = 2**63 - 1
MAX_LIMIT: Final = 500
DEFAULT_LIMIT: Final = 50
MAX_WAIT_S: Final = 30
MAX_IDEMPOTENCY_KEY: Final = 255
UUID_LENGTH: Final = 36

# A key as it is, or as a string of RFC 8941, 3.3.3, in which each character may be escaped.
KEY_PATTERN: Final = r'^([!#-~][!-~]{0,254}|"([ !#-\[\]-~]|\\["\\]){1,255}")$'
MAX_QUOTED_KEY: Final = 2 * MAX_IDEMPOTENCY_KEY + 2

_UUID: Final = re.compile(UUID_PATTERN[1:-1]).fullmatch
_KEY: Final = re.compile(KEY_PATTERN[1:-1]).fullmatch
_ESCAPED: Final = re.compile(r"\\(.)")
# The end of the ETag of a body in gzip: other bytes need another strong ETag (RFC 9110, 8.8.3.3).
GZIP_SUFFIX: Final = "-gzip"
_GZIP_END: Final = f'{GZIP_SUFFIX}"'
# An element up to its separator, which means nothing in a quoted string (RFC 9110, 5.6.4). A string
# without an end takes all that follows, or looking for its end would be done again and again.
_UP_TO: Final = r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^"%s])++'
_ELEMENTS: Final = re.compile(_UP_TO % ",").findall
_PARTS: Final = re.compile(_UP_TO % ";").findall
_ETAG: Final = re.compile(r'(?:W/)?"[!#-~\x80-\xff]*"')


@dataclass(frozen=True)
class Form(Generic[T]):
    """How a value is written: the JSON schema that says so, and the function that reads it.

    `parse` takes the name of the parameter and its text, and raises Problem.
    """

    schema: Json
    parse: Callable[[str, str], T]


# The products that are read most are read by the same text: that saves a tenth of such a request.
@lru_cache(maxsize=1024)
def _uuid(text: str) -> UUID:
    if not _UUID(text):
        raise ValueError
    return msgspec.convert(text, UUID)


def parse_uuid(name: str, text: str) -> UUID:
    """The UUID in its one form, of 36 ASCII characters (RFC 9562, 4); raises Problem."""
    try:
        # Longer texts would fill the cache.
        if len(text) == UUID_LENGTH:
            return _uuid(text)
    except ValueError:
        pass
    raise invalid(name, "must be a UUID such as 43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")


def whole_number(low: int, high: int, **schema: int) -> Form[int]:
    """A whole number between `low` and `high`, in decimal digits."""

    def parse(name: str, text: str) -> int:
        # int() takes time that grows with the square of the digits: count them first.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_POSITION))):
            raise invalid(name, f"must be a whole number from {low} to {high}")
        number = int(text)
        if not low <= number <= high:
            raise invalid(name, f"must be from {low} to {high}", low if number < low else high)
        return number

    return Form({"type": "integer", "minimum": low, "maximum": high, **schema}, parse)


def one_of(values: Iterable[str], component: str = "") -> Form[str]:
    """One of these words, which a component of the OpenAPI document may describe."""
    words = list(values)
    reference = {"$ref": f"#/components/schemas/{component}"}

    def parse(name: str, text: str) -> str:
        if text not in words:
            raise invalid(name, f"must be one of {', '.join(words)}")
        return text

    return Form(reference if component else {"type": "string", "enum": words}, parse)


def several_of(values: Iterable[str], component: str = "") -> Form[tuple[str, ...]]:
    """One or more of these words, with commas between; each once and in order when parsed."""
    one = one_of(values, component)

    def parse(name: str, text: str) -> tuple[str, ...]:
        return tuple(sorted({one.parse(name, word) for word in text.split(",")}))

    return Form({"type": "array", "items": one.schema, "minItems": 1, "uniqueItems": True}, parse)


def parse_boolean(name: str, text: str) -> bool:
    """True or false; raises Problem."""
    if text not in ("true", "false"):
        raise invalid(name, "must be true or false")
    return text == "true"


def parse_instant(name: str, text: str) -> int:
    """An RFC 3339 time with its zone, in µs since the Unix epoch; raises Problem."""
    try:
        return parse_rfc3339(text)
    except BadTimestamp as error:
        raise invalid(name, f"{error}; in a query + is %2B") from None


def list_elements(text: str) -> Iterator[list[str]]:
    """The elements of a list as headers have it (RFC 9110, 5.6.1), each with its parameters."""
    for element in _ELEMENTS(text):
        if element.strip():
            yield _PARTS(element) if element.lstrip()[0] != ";" else ["", *_PARTS(element)]


class Preferences(NamedTuple):
    """What `Prefer` states: the seconds to wait for the decision, and whether not to wait."""

    wait_s: int | None
    respond_async: bool


def parse_prefer(name: str, text: str) -> Preferences:
    """The preferences; what can't be read is passed over, as RFC 7240 wants it."""
    preferences: dict[str, str] = {}
    for stated, *_ in list_elements(text.lower()):
        preference, _, value = stated.partition("=")
        # Of a name given twice the first counts.
        preferences.setdefault(preference.strip(), value.strip().strip('"'))
    wait = preferences.get("wait", "")
    wait_s = min(int(wait[:9]), MAX_WAIT_S) if wait.isascii() and wait.isdigit() else None
    return Preferences(wait_s, "respond-async" in preferences)


def parse_idempotency_key(name: str, text: str) -> str:
    """The key; in quotes, as draft-ietf-httpapi-idempotency-key-header has it, it is the same one.

    Raises Problem.
    """
    if len(text) > MAX_QUOTED_KEY or not _KEY(text):
        detail = f"must be 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters, as they are or"
        detail = f'{detail} as a string in quotes, in which \\" and \\\\ stand for " and \\'
        raise invalid(name, detail, MAX_IDEMPOTENCY_KEY)
    return _ESCAPED.sub(r"\1", text[1:-1]) if text[0] == '"' else text


def parse_etags(name: str, text: str) -> frozenset[str]:
    """The ETags as they are compared weakly: without the mark of a weak one, or that of gzip."""
    return frozenset(_identity(tag.strip().removeprefix("W/")) for tag in text.split(","))


def parse_if_match(name: str, text: str) -> frozenset[str]:
    """`*`, or the ETags that can match by the strong comparison; raises Problem.

    Weak ones never match (RFC 9110, 8.8.3.2). That of gzip counts for the one without: both stand
    for the same state, and the body is chosen by another header.
    """
    if text == "*":
        return frozenset(text)
    tags = _ETAG.findall(text)
    if not tags or _ETAG.sub("", text).strip(", \t"):
        raise invalid(name, "must be * or ETags as GET gives them, with their double quotes")
    return frozenset(_identity(tag) for tag in tags if tag.startswith('"'))


def _identity(tag: str) -> str:
    return f'{tag[: -len(_GZIP_END)]}"' if tag.endswith(_GZIP_END) else tag


UUID_FORM: Final = Form({"type": "string", "format": "uuid"}, parse_uuid)
POSITION_FORM: Final = whole_number(0, MAX_POSITION)
TEXT_SCHEMA: Final[Json] = {"type": "string"}


@dataclass(frozen=True, eq=False, slots=True)
class Parameter(Generic[T]):
    """One parameter, whose value in a call is a T; `default` is what it is if it isn't given.

    `wire_name` is that of a header as it stands in an ASGI scope; one that `is_list` may come in
    several lines, which are joined (RFC 9110, 5.3).
    """

    name: str
    place: Literal["path", "query", "header"]
    form: Form[Any]
    description: str
    default: Any = None
    wire_name: bytes = b""
    is_list: bool = False


def path(name: str, form: Form[T], description: str) -> Parameter[T]:
    """A part of the path, in braces there."""
    return Parameter(name, "path", form, description)


@overload
def query(name: str, form: Form[T], description: str) -> Parameter[T | None]: ...
@overload
def query(name: str, form: Form[T], description: str, default: T) -> Parameter[T]: ...
def query(name: str, form: Form[T], description: str, default: T | None = None) -> Parameter[Any]:
    """A query parameter, which may always be left out."""
    return Parameter(name, "query", form, description, default)


def header(
    name: str,
    schema: Json,
    description: str,
    parse: Callable[[str, str], T],
    *,
    is_list: bool = False,
) -> Parameter[T | None]:
    """A header that changes what the operation does. It is parsed where it is obeyed, if it is."""
    form = Form({**TEXT_SCHEMA, **schema}, parse)
    return Parameter(name, "header", form, description, None, name.lower().encode(), is_list)


class Call(Generic[Body]):
    """One request, parsed by the declaration of its operation: every value in it is valid."""

    __slots__ = ("_values", "body", "headers", "query", "request")

    def __init__(
        self,
        request: Request,
        headers: Mapping[bytes, bytes],
        query: Mapping[str, str],
        values: Mapping[str, Any],
        body: Body,
    ) -> None:
        self.request = request
        self.headers = headers
        self.query = query
        self.body = body
        self._values = values

    def __getitem__(self, parameter: Parameter[T]) -> T:
        """The value of a path or query parameter, or its default."""
        value: T = self._values.get(parameter.name, parameter.default)
        return value

    def header(self, parameter: Parameter[T]) -> T | None:
        """The value of a header, or None; raises Problem."""
        given = self.headers.get(parameter.wire_name)
        if given is None:
            return None
        value: T = parameter.form.parse(parameter.name, given.decode("latin-1").strip())
        return value


ORDER_ID: Final = path("order_id", UUID_FORM, "an order")
PRODUCT_ID: Final = path("product_id", UUID_FORM, "a product")
CUSTOMER_ID: Final = path("customer_id", UUID_FORM, "a customer")

OF_CUSTOMER: Final = query("customer_id", UUID_FORM, "only this customer's orders")
OF_PRODUCT: Final = query("product_id", UUID_FORM, "only orders of this product")
IN_STATUS: Final = query(
    "status", one_of(Status.__members__, "OrderStatus"), "only orders in this status"
)
OF_TYPES: Final = query(
    "type",
    several_of((*SUBMITTED, *DECIDED), "EventType"),
    "only events of these types, with commas between",
    default=(),
)
OF_SUBJECT: Final = query(
    "subject", UUID_FORM, "only events of this stream: a customer, product or order"
)
DRY_RUN: Final = query(
    "dry_run",
    Form({"type": "boolean"}, parse_boolean),
    "only say what would be decided now",
    default=False,
)
AFTER_ORDER: Final = query(
    "after", whole_number(1, MAX_POSITION), "`next_after` of the page before"
)
AFTER_PRODUCT: Final = query(
    "after", UUID_FORM, "`next_after` of the page before: only products listed after this one"
)
AFTER_EVENT: Final = query("after", POSITION_FORM, "only events after this position", default=0)
LIMIT: Final = query(
    "limit",
    whole_number(1, MAX_LIMIT, default=DEFAULT_LIMIT),
    "at most this many",
    default=DEFAULT_LIMIT,
)
MIN_POSITION: Final = query(
    "min_position",
    POSITION_FORM,
    "answer from a view that is at least at this position; waits up to 2 s for it",
    default=0,
)
AS_OF_POSITION: Final = query(
    "as_of_position",
    POSITION_FORM,
    "answer as of this position, which the ledger must have reached",
)
AS_OF_TIME: Final = query(
    "as_of_time",
    Form({"type": "string", "format": "date-time"}, parse_instant),
    "answer as of the last position that was recorded at this time or before it",
)

PREFER: Final = header(
    "Prefer",
    {"examples": ["wait=5", "respond-async"]},
    f"`wait=N` waits up to N s ({MAX_WAIT_S} at most) for the decision (RFC 7240)",
    parse_prefer,
    is_list=True,
)
IDEMPOTENCY_KEY: Final = header(
    "Idempotency-Key",
    {"pattern": KEY_PATTERN, "minLength": 1, "maxLength": MAX_QUOTED_KEY},
    "the same key and body make the same event, for ever: a retry can't happen twice",
    parse_idempotency_key,
)
IF_NONE_MATCH: Final = header(
    "If-None-Match",
    {},
    "ETags of the versions that the client has: 304 if one is current",
    parse_etags,
    is_list=True,
)
IF_MATCH: Final = header(
    "If-Match",
    {
        "pattern": r'^(\*|(W/)?"[!#-~]*"(, ?(W/)?"[!#-~]*")*)$',
        "examples": ["*", '"4711-9a3f00c2"'],
    },
    "the ETag of the state that the client saw, or `*`: 412 if there is another by now",
    parse_if_match,
    is_list=True,
)
LAST_EVENT_ID: Final = header(
    "Last-Event-ID",
    {},
    "of a stream: go on after this position, whatever `after` says",
    POSITION_FORM.parse,
)
X_REQUEST_ID: Final = header(
    "X-Request-Id",
    {},
    "up to 128 visible ASCII characters, which come back; otherwise the answer has a new one",
    lambda _, text: text,
)

HEADERS: Final = (PREFER, IDEMPOTENCY_KEY, IF_MATCH, IF_NONE_MATCH, LAST_EVENT_ID, X_REQUEST_ID)
PAGE: Final = (LIMIT, MIN_POSITION)
AS_OF: Final = (MIN_POSITION, AS_OF_POSITION, AS_OF_TIME)
SUBMIT: Final = (PREFER, IDEMPOTENCY_KEY)
# Of an operation that changes what has an ETag, or shows it.
CHANGE: Final = (*SUBMIT, IF_MATCH)
VERSIONED: Final = (IF_MATCH, IF_NONE_MATCH)


# Headers that are no list: of two lines nobody could tell which one counts.
_ONCE: Final = {
    b"authorization": "Authorization",
    b"content-type": "Content-Type",
    **{header.wire_name: header.name for header in HEADERS if not header.is_list},
}


def read_headers(lines: Sequence[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """The headers by name, with the lines of a list joined; raises Problem for two of another."""
    headers = dict(lines)
    if len(headers) < len(lines):
        headers = {}
        for name, value in lines:
            if name not in headers:
                headers[name] = value
            elif name in _ONCE:
                raise invalid(_ONCE[name], "stands twice: give it once")
            else:
                headers[name] += b"," + value
    return headers


# The headers of preconditions by their wire names (RFC 9110, 13.1).
CONDITIONS: Final = {
    name.lower().encode(): name
    for name in (
        "If-Match",
        "If-None-Match",
        "If-Unmodified-Since",
        "If-Modified-Since",
        "If-Range",
    )
}
