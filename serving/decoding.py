"""A request body, decoded into one row of float64: built once per bundle from its FeatureSchema.

`decoder(schema)` gives the fast function; `decode_slowly` is its obvious twin, over the reference encoder. They are held
equal by a property test, and every refusal is worded by the twin, so a client reads one wording on any path.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from serving.errors import BodyMalformed, FieldRefused
from training.features import Feature, FeatureSchema, InputRefused, encode

PARSER = msgspec.json.Decoder(float_hook=float)  # 1e400 is JSON: infinite, where it is read at all
MAX_DEPTH = 32
BRACKET, BRACE = b"[{"
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)  # from a quote on it never fails: linear in any body
ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

Decode = Callable[[bytes], bytes]
"""body -> the row, `8 * width` bytes of native float64: the form in which lanes and the log take it. Raises RequestRefused."""


def decoder(schema: FeatureSchema) -> Decode:
    """The decoder of one bundle."""
    decode_body = msgspec.json.Decoder(_row_type(schema)).decode
    values_of = msgspec.structs.astuple
    pack = struct.Struct(f"={schema.width}d").pack
    codes = [(i, codes_of(feature)) for i, feature in enumerate(schema.features) if feature.kind == "category"]
    ranges = [(i, *_range(f)) for i, f in enumerate(schema.features) if f.low is not None or f.high is not None]
    filled = _filler([fill_of(feature) for feature in schema.features])

    def decode(body: bytes) -> bytes:
        """1.4 µs for 30 numbers, 2.5 µs where some are null, 22 µs by the twin: `python -m serving.bench`."""
        # as numbers and from the end: 0.2 µs; `b"[" in body` and `count` took 1.0 (`python -m serving.bench`)
        if not body.isascii() or BRACKET in body or body.rfind(BRACE) > 0:
            refuse_odd(body)
        try:
            values: Any = values_of(decode_body(body))
            if codes:
                values = list(values)
                for i, code_of in codes:
                    values[i] = code_of[values[i]]
            for i, low, high in ranges:
                if values[i] is not None and not low <= values[i] <= high:
                    raise ValueError
            try:
                return pack(*values)
            except struct.error:  # a None among them: a missing value
                return pack(*filled(values))
        except (msgspec.MsgspecError, LookupError, ValueError, RecursionError, struct.error):
            return pack(*decode_slowly(schema, body))

    return decode


def decode_slowly(schema: FeatureSchema, body: bytes) -> list[float]:
    """The row that the reference encoder makes of the body. Raises BodyMalformed or FieldRefused."""
    refuse_odd(body)
    fields = _parse(schema, body)
    if not isinstance(fields, dict):
        raise BodyMalformed("the body must be one JSON object of named features")
    try:
        row: list[float] = encode(schema, [fields])[0].tolist()
    except InputRefused as refused:
        raise FieldRefused(str(refused), refused.field) from None
    return row


def refuse_odd(body: bytes) -> None:
    """What the parser would judge by the path it is on: it skips a field of no use without decoding it, and its limit of
    depth is what is left of the interpreter's stack. Flat ASCII, the usual body, has neither."""
    try:
        str(body, "utf-8")
    except UnicodeDecodeError:
        raise BodyMalformed("the body is not UTF-8") from None
    levels = STRINGS.sub(b"", body).translate(ONE_BRACKET, NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        levels = levels.replace(b"[]", b"")  # takes the innermost level away
    if b"[]" in levels or levels.count(b"[") > MAX_DEPTH:
        raise BodyMalformed(f"the body is nested too deeply; {MAX_DEPTH} levels are read")


def _parse(schema: FeatureSchema, body: bytes) -> object:
    if not body.strip():
        raise BodyMalformed("the body is empty; send one JSON object of named features")
    try:
        return PARSER.decode(body)
    except RecursionError:
        raise BodyMalformed("the body is nested too deeply") from None
    except msgspec.DecodeError as malformed:
        _refuse_non_finite(schema, body)
        raise BodyMalformed(f"the body is not JSON: {malformed}") from None


def _refuse_non_finite(schema: FeatureSchema, body: bytes) -> None:
    """NaN and Infinity are Python's spelling, not JSON: name the field that carries one, since its sender can't tell."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(fields, dict):
        return
    for name in schema.names:
        value = fields.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldRefused(f"{name}: {value} is not a JSON number; send null for a missing value", name)


def _row_type(schema: FeatureSchema) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any]] = [(f"f{i}", _json_type(feature)) for i, feature in enumerate(schema.features)]
    renamed = {f"f{i}": feature.name for i, feature in enumerate(schema.features)}
    return msgspec.defstruct("Row", fields, rename=renamed, gc=False)


def _json_type(feature: Feature) -> Any:
    of_kind: dict[str, Any] = {"number": float, "category": str, "boolean": bool}
    return of_kind[feature.kind] if feature.missing == "refuse" else of_kind[feature.kind] | None


def codes_of(feature: Feature) -> dict[str | None, float]:
    """What each category, and null, becomes. KeyError: it is refused."""
    known: dict[str | None, float] = {name: float(code) for code, name in enumerate(feature.categories)}
    if feature.missing != "refuse":
        known[None] = fill_of(feature)
    unseen = unseen_of(feature)
    return known if unseen is None else _Defaulting(known, unseen)


class _Defaulting(dict[str | None, float]):
    """Inheritance, because a dict's own look-up of a known key costs nothing and only a miss calls Python."""

    def __init__(self, known: dict[str | None, float], default: float) -> None:
        super().__init__(known)
        self.default = default

    def __missing__(self, key: str | None) -> float:
        return self.default


def _filler(fills: list[float]) -> Callable[[Sequence[float | None]], list[float]]:
    """Missing values put in; nearly always NaN for every feature, which is the quicker question."""
    nan = math.nan
    if all(math.isnan(fill) for fill in fills):
        return lambda values: [nan if value is None else value for value in values]
    return lambda values: [fills[i] if value is None else value for i, value in enumerate(values)]


def unseen_of(feature: Feature) -> float | None:
    """What a category outside the list becomes; None: a refusal."""
    if feature.unseen == "refuse" or (feature.unseen == "missing" and feature.missing == "refuse"):
        return None
    return float(len(feature.categories)) if feature.unseen == "other" else fill_of(feature)


def fill_of(feature: Feature) -> float:
    """What a missing value becomes, where it may be missing."""
    return math.nan if isinstance(feature.missing, str) else float(feature.missing)


def _range(feature: Feature) -> tuple[float, float]:
    low = -math.inf if feature.low is None else feature.low
    high = math.inf if feature.high is None else feature.high
    return low, high
