"""`/predict/batch`: many rows in one request, in the body that suits its sender.

    POST /predict/batch                         the default model
    POST /v1/models/{model}/predict/batch
        ?split=1          the experiment's arms answer, each row by its unit: `x-unit`, else the row's field
                          COPPICE_UNIT_FIELD, else the request's id; otherwise the champion answers all
        ?answer=columns   {"columns": {"prediction": [...], ...}} instead of {"predictions": [{...}, ...]}

    application/json                      {"rows": [{...}, ...]}, a list of rows, or {"columns": {name: [...], ...}}
    text/csv, Arrow streams and Parquet   as `serving.tables` says

The answer is JSON, or an Arrow stream where `accept` names one. A row has the fields that it has alone, but for what the
whole request has once: `model_version`, `arm` (with a split, each row its own) and `request_id`. A row that no model could
score has `{"error": ...}` in its place, and `failed` counts them; the status is 200 as long as a row is answered, else 500.
A row that the schema refuses makes the whole request a 422 that names row and field, before any is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter_ns, time_ns
from typing import Any, NamedTuple

import msgspec
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serving.answers import Answer, failed, refusal
from serving.batch_answers import answer_of
from serving.columns import parse, rows_of_columns, rows_of_objects
from serving.errors import ContentTypeRefused, FieldRefused, RequestRefused
from serving.heads import JSON_TYPES, named_headers
from serving.live import Snapshot
from serving.many import Context, sane_id
from serving.question import Question, answer_question
from serving.responses import AnswerResponse, no_model, told_length
from serving.scoring import MAX_UNIT_BYTES, unit_finder
from serving.served import Served
from serving.tables import READERS
from training.features import Feature, FeatureSchema

logger = logging.getLogger("coppice")

PATHS = ("/predict/batch", "/v1/models/{model}/predict/batch")


class Rows(NamedTuple):
    """Decoded. `units` is empty where the request has no unit by row."""

    rows: list[bytes]
    units: list[bytes]


def add_batch(app: FastAPI, served: Served) -> None:
    for path in PATHS:
        app.add_api_route(path, _endpoint(served), methods=["POST"], name=path.strip("/"))


def _endpoint(served: Served) -> Callable[[Request], Awaitable[Response]]:
    context = served.many

    async def endpoint(request: Request) -> Response:
        arrived = perf_counter_ns()
        name = request.path_params.get("model", served.release.default)
        if name not in served.models:
            raise HTTPException(404, no_model(name))
        now = served.models[name].snapshot
        request_id, unit, content_type, timeout = named_headers(request.headers.raw)[:4]
        request_id = sane_id(context, request_id, time_ns() // 1000)
        try:
            with context.body(told_length(request)):
                answer = await _answer(context, now, request, request_id, unit, content_type, timeout, arrived)
        except RequestRefused as refused:
            answer = refusal(refused, request_id)
        except Exception:  # endpoint edge: this request fails, its connection and its worker go on
            logger.exception("a request of many rows failed")
            answer = failed()
        return AnswerResponse(answer)

    return endpoint


async def _answer(
    context: Context,
    now: Snapshot,
    request: Request,
    request_id: bytes,
    unit: bytes,
    content_type: bytes,
    timeout: bytes,
    arrived: int,
) -> Answer:
    split, shape = _asked(request)
    decode = _reader(context, now, content_type, context.unit_field if split and not unit else "")

    def read(body: bytes) -> Question:
        rows, units = decode(body)
        return Question(rows, lambda many: answer_of(now, many, split, shape), units=units)

    arm = None if split else now.champion
    return await answer_question(
        context, request, now, arm, read, request_id=request_id, unit=unit, timeout=timeout, arrived=arrived
    )


def _asked(request: Request) -> tuple[bool, str]:
    """(by the split?, the shape of the answer). Raises RequestRefused."""
    split, answer = request.query_params.get("split", "0"), request.query_params.get("answer", "rows")
    if split not in ("0", "1"):
        raise RequestRefused("split: must be 1 or 0")
    if answer not in ("rows", "columns"):
        raise RequestRefused("answer: must be rows or columns")
    arrow = "application/vnd.apache.arrow.stream" in request.headers.get("accept", "")
    return split == "1", "arrow" if arrow else answer


def _reader(context: Context, now: Snapshot, content_type: bytes, field: str) -> Callable[[bytes], Rows]:
    """What decodes a body of this type, with the units that `field` names, if any; any thread. Raises ContentTypeRefused."""
    schema, limit = now.champion.manifest.schema, context.max_rows
    kind = content_type.split(b";")[0].strip().lower()
    if not kind or kind in JSON_TYPES:
        find_unit = unit_finder(field)

        def read_json(body: bytes) -> Rows:
            parsed = parse(schema, body)
            if isinstance(parsed, dict):
                rows = rows_of_columns(schema, parsed, limit)
                return Rows(rows, _units(field, parsed, len(rows)))
            return Rows(rows_of_objects(now.decode, parsed, limit), _units_of(find_unit, parsed) if field else [])

        return read_json
    read_table = READERS.get(kind.decode("latin-1"))
    if read_table is None:
        known = ", ".join(["application/json", *READERS])
        raise ContentTypeRefused(f"content-type: must be one of {known}; got {content_type.decode('latin-1')!r}")
    wanted = schema
    if field and field not in schema.names:
        wanted = FeatureSchema((*schema.features, Feature(name=field, kind="category", categories=("",))))

    def read(body: bytes) -> Rows:
        columns = read_table(wanted, body, limit, context.max_bytes)
        rows = rows_of_columns(schema, columns, limit)
        return Rows(rows, _units(field, columns, len(rows)))

    return read


def _units_of(find_unit: Callable[[bytes], bytes], objects: Sequence[msgspec.Raw]) -> list[bytes]:
    units: list[bytes] = []
    for row in objects:
        try:
            units.append(find_unit(bytes(row)))
        except RequestRefused as refused:
            raise refused.of_row(len(units)) from None
    return units


def _units(field: str, columns: Mapping[str, Any], count: int) -> list[bytes]:
    """A column's values as units: text, or whole numbers, whose kind a table may have widened to a float."""
    column = columns.get(field) if field else None
    if column is None:
        return []
    if not isinstance(column, list | np.ndarray):
        raise FieldRefused(f"{field}: must be an array of units", field)
    if len(column) != count:
        raise FieldRefused(f"{field}: has {len(column)} values; there are {count} rows", field)
    units: list[bytes] = []
    for value in column:
        whole = isinstance(value, float | int) and not isinstance(value, bool) and float(value).is_integer()
        if value is None or value != value:
            unit = b""
        elif isinstance(value, str) or whole:
            unit = (value if isinstance(value, str) else str(int(value))).encode()
        else:
            message = f"{field}: the unit must be a string or a whole number"
            raise FieldRefused(message, field).of_row(len(units))
        if len(unit) > MAX_UNIT_BYTES:
            raise FieldRefused(f"{field}: the unit must be at most {MAX_UNIT_BYTES} bytes", field).of_row(len(units))
        units.append(unit)
    return units
