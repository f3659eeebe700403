"""The JSON schemas of bodies (by pydantic) and answers (by msgspec), as both are on the wire."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from inspect import cleandoc
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Struct
from pydantic import BaseModel

from api.parameters import Json
from api.responses import JSON
from ledger.eventlog.codec import BATCH_CONTENT_TYPE

SCHEMAS: Final = "#/components/schemas/"
# What answers of a media type hold that come as bytes already.
MEDIA: Final[Mapping[str, Json]] = {
    JSON: {"type": "object"},
    BATCH_CONTENT_TYPE: {"type": "array", "items": {"$ref": f"{SCHEMAS}CloudEvent"}},
}
_TEMPLATE: Final = f"{SCHEMAS}{{name}}"


class CloudEvent(Struct, frozen=True, omit_defaults=True):
    """A CloudEvent 1.0 with this ledger's extensions; `data` as its type says."""

    specversion: Literal["1.0"]
    id: UUID
    source: str
    type: str
    subject: UUID
    time: datetime
    data: dict[str, int | str]
    datacontenttype: Literal["application/json"]
    schemaversion: int
    position: int
    version: int
    recordedtime: datetime
    hash: str
    causationid: UUID | None = None
    rules: int = 1
    submitter: str | None = None
    traceparent: str | None = None
    atomicid: UUID | None = None


def body_schemas(models: Iterable[type[BaseModel]]) -> Json:
    """Name to schema, with what the models are made of."""
    found: Json = {}
    for model in models:
        schema = model.model_json_schema(ref_template=f"{SCHEMAS}{{model}}")
        for name, part in {**schema.pop("$defs", {}), model.__name__: schema}.items():
            found[name] = _plain(part)
    return found


def _plain(schema: Json) -> Json:
    """Without what a reader of the document has no use for: titles made of the names."""
    parts = schema.get("properties", {})
    for part in parts.values():
        part.pop("title", None)
    return {name: value for name, value in schema.items() if name not in ("title", "description")}


def answer_schemas(structs: Iterable[type[Struct]]) -> Json:
    """Name to schema, with what the structs are made of."""
    listed = list(structs)
    _, found = msgspec.json.schema_components(listed, ref_template=_TEMPLATE)
    whole = {s.__name__ for s in _all(listed) if not s.__struct_config__.omit_defaults}
    return {name: _as_sent(schema, name in whole) for name, schema in found.items()}


def _all(structs: Iterable[type[Struct]]) -> set[type[Struct]]:
    """These structs and those that their fields hold."""
    found: set[type[Struct]] = set()
    left = list(structs)
    while left:
        struct = left.pop()
        if struct not in found:
            found.add(struct)
            left += [s for f in msgspec.structs.fields(struct) for s in _structs_in(f.type)]
    return found


def _structs_in(kind: Any) -> list[type[Struct]]:
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [kind]
    return [s for part in getattr(kind, "__args__", ()) for s in _structs_in(part)]


def _as_sent(schema: Json, whole: bool) -> Json:
    """Amounts are sent as numbers, and unless defaults are left out, every field is there."""
    sent: Json = _with_numbers(schema)
    sent["description"] = cleandoc(sent.get("description", ""))
    if whole and "properties" in sent:
        sent["required"] = list(sent["properties"])
        for part in sent["properties"].values():
            part.pop("default", None)
    return sent


def _with_numbers(part: Any) -> Any:
    if isinstance(part, list):
        return [_with_numbers(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("format") == "decimal":
        return {"type": "number"}
    titled = isinstance(part.get("title"), str)
    return {n: _with_numbers(v) for n, v in part.items() if not (titled and n == "title")}
