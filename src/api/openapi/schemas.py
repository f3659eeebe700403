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
    """The schemas of the models and of the models in their fields, by name."""
    schemas: Json = {}
    for model in models:
        schema = model.model_json_schema(ref_template=f"{SCHEMAS}{{model}}")
        for name, part in {**schema.pop("$defs", {}), model.__name__: schema}.items():
            # pydantic makes titles of the names, and descriptions of the docstrings.
            for field in part.get("properties", {}).values():
                field.pop("title", None)
            schemas[name] = {k: v for k, v in part.items() if k not in ("title", "description")}
    return schemas


def answer_schemas(structs: Iterable[type[Struct]]) -> Json:
    """The schemas of the structs and of the structs in their fields, by name."""
    listed = list(structs)
    _, schemas = msgspec.json.schema_components(listed, ref_template=f"{SCHEMAS}{{name}}")
    complete = {
        struct.__name__
        for struct in _with_nested(listed)
        if not struct.__struct_config__.omit_defaults
    }
    return {name: _as_sent(schema, name in complete) for name, schema in schemas.items()}


def _with_nested(structs: list[type[Struct]]) -> set[type[Struct]]:
    """These structs and those that their fields hold."""
    seen: set[type[Struct]] = set()
    left: list[Any] = list(structs)
    while left:
        kind = left.pop()
        if isinstance(kind, type) and issubclass(kind, Struct):
            if kind not in seen:
                seen.add(kind)
                left += [field.type for field in msgspec.structs.fields(kind)]
        else:
            left += getattr(kind, "__args__", ())
    return seen


def _as_sent(schema: Json, is_complete: bool) -> Json:
    """The schema of the JSON on the wire, where `is_complete` structs have all their fields."""
    sent: Json = _with_numbers(schema)
    sent["description"] = cleandoc(sent.get("description", ""))
    if is_complete and "properties" in sent:
        sent["required"] = list(sent["properties"])
        for part in sent["properties"].values():
            part.pop("default", None)
    return sent


def _with_numbers(part: Any) -> Any:
    """The schema with Decimals as numbers, as they are encoded, and without titles."""
    if isinstance(part, list):
        return [_with_numbers(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("format") == "decimal":
        return {"type": "number"}
    # A property may be called title: then it is a schema, and not a text.
    is_titled = isinstance(part.get("title"), str)
    return {
        name: _with_numbers(value)
        for name, value in part.items()
        if not (is_titled and name == "title")
    }
