"""`infer` of the Open Inference Protocol v2: tensors to rows, scores to tensors, as JSON and as raw bytes after it.

A model takes a tensor for each feature, named like it, of shape [n] or [n, 1]: numbers as any FP, INT or UINT, booleans as
BOOL, categories as BYTES. Where all features are numbers, it also takes them all as one tensor `input` of shape [n, width],
in the schema's order. The outputs are those of `serving.predictions`.

    inference-header-content-length: N   the body is N bytes of JSON, then the raw data of the inputs that have a
                                         `binary_data_size` in place of `data`, in their order; 0: no JSON, `input` alone
    binary_data of an output, or binary_data_output of the request: raw bytes in the answer, in the same way
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from serving.answers import Answer
from serving.batch_answers import marked
from serving.columns import Column, rows_of_columns, rows_of_matrix
from serving.errors import BodyMalformed, FieldRefused
from serving.live import Arm, Snapshot
from serving.many import Many
from serving.predictions import Output, outputs_of, scores_of
from serving.question import Question, Read
from serving.tensors import BOOL, BYTES, from_bytes, from_json, to_bytes
from training.features import FeatureSchema

MATRIX = "input"
LENGTH = "inference-header-content-length"
Parameters = dict[str, str | float | int | bool | None]


def triton_head(size: int) -> tuple[bytes, bytes]:
    """(content type, further header lines) of an answer whose JSON of that size is followed by raw bytes."""
    return b"application/octet-stream", b"%b: %d\r\n" % (LENGTH.encode(), size)


class Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class Wanted(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class Infer(msgspec.Struct):
    inputs: list[Tensor]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[Wanted] = []


_INFER = msgspec.json.Decoder(Infer)


def takes_matrix(schema: FeatureSchema) -> bool:
    return all(feature.kind == "number" for feature in schema.features) and MATRIX not in schema.names


def reader(
    now: Snapshot, arm: Arm, length: str | None, limit: int, head_of: Callable[[int], tuple[bytes, bytes]] = triton_head
) -> Read:
    """What reads the body of one request to the arm. `length`: the value of `LENGTH`, None without."""
    schema = arm.manifest.schema

    def read(body: bytes) -> Question:
        data = memoryview(body)
        at = _json_length(length, len(body))
        raw = at == 0 and length is not None
        asked = _raw(schema, len(body)) if raw else _parsed(data[:at])
        tensors = _tensors(asked.inputs, data[at:])
        chosen = _chosen(asked, outputs_of(arm.manifest), raw=raw)

        def write(many: Many) -> Answer:
            return _answer(now, arm, many, asked.id, chosen, head_of)

        return Question(_rows(schema, asked.inputs, tensors, limit), write, _timeout(asked.parameters))

    return read


def _json_length(length: str | None, size: int) -> int:
    if length is None:
        return size
    if not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= size):
        raise BodyMalformed(
            f"{LENGTH} (or json-header-size): must be a whole number of bytes, at most the body's {size}"
        )
    return int(length)


def _raw(schema: FeatureSchema, size: int) -> Infer:
    """A body of no JSON: rows of FP64."""
    if not takes_matrix(schema):
        raise BodyMalformed(f"{LENGTH}: raw bytes alone are taken by a model whose features are all numbers")
    if size % (8 * schema.width):
        raise BodyMalformed(f"the body has {size} bytes; a row of {schema.width} FP64 has {8 * schema.width}")
    shape = [size // (8 * schema.width), schema.width]
    return Infer([Tensor(MATRIX, shape, "FP64", {"binary_data_size": size})])


def _parsed(text: memoryview) -> Infer:
    try:
        asked = _INFER.decode(text)
    except RecursionError:
        raise BodyMalformed("the body is nested too deeply") from None
    except msgspec.ValidationError as unfit:
        raise BodyMalformed(f"the request is not of the protocol: {unfit}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as malformed:
        raise BodyMalformed(f"the body is not JSON: {malformed}") from None
    for what, names in (("input", [t.name for t in asked.inputs]), ("output", [w.name for w in asked.outputs])):
        if len(set(names)) != len(names):
            raise BodyMalformed(f"an {what} is named twice")
    return asked


def _tensors(inputs: Sequence[Tensor], raw: memoryview) -> dict[str, Column]:
    """The elements of each input. Raises BodyMalformed, also where raw bytes are missing or left over."""
    at = 0
    tensors: dict[str, Column] = {}
    for tensor in inputs:
        size = tensor.parameters.get("binary_data_size")
        data = bytes(tensor.data)
        if (size is None) == (not data):
            raise BodyMalformed(f"{tensor.name}: must have either data or the parameter binary_data_size")
        if size is None:
            tensors[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, data)
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - at:
            raise BodyMalformed(
                f"{tensor.name}: binary_data_size does not fit the {len(raw) - at} bytes that are there"
            )
        tensors[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[at : at + size])
        at += size
    if at != len(raw):
        raise BodyMalformed(f"{len(raw) - at} bytes after the last input are not said to be anyone's")
    return tensors


def _rows(schema: FeatureSchema, inputs: Sequence[Tensor], tensors: dict[str, Column], limit: int) -> list[bytes]:
    if takes_matrix(schema) and [tensor.name for tensor in inputs] == [MATRIX]:
        (matrix,) = inputs
        if matrix.datatype in (BYTES, BOOL):
            raise BodyMalformed(f"{MATRIX}: must be of numbers, got {matrix.datatype}")
        return rows_of_matrix(schema, np.asarray(tensors[MATRIX]).reshape(matrix.shape), limit)
    for tensor in inputs:
        if tensor.name not in schema.names:
            known = f"{MATRIX} or {schema.names[0]}, ..." if takes_matrix(schema) else ", ".join(schema.names)
            raise BodyMalformed(f"unexpected input {tensor.name[:80]!r}; this model takes {known}")
        if len(tensor.shape) == 2 and tensor.shape[1] != 1:
            raise FieldRefused(f"{tensor.name}: the shape must be [n] or [n, 1], got {tensor.shape}", tensor.name)
    return rows_of_columns(schema, tensors, limit)


def _timeout(parameters: Parameters) -> bytes:
    """The protocol has µs, and 0 for none; ours are whole ms."""
    asked = parameters.get("timeout", 0)
    if type(asked) is not int or not 0 <= asked < 10**12:
        raise BodyMalformed("timeout: must be a whole number of microseconds")
    return b"%d" % max(1, asked // 1000) if asked else b""


def _chosen(asked: Infer, known: Sequence[Output], *, raw: bool) -> list[tuple[Output, bool]]:
    """(output, as raw bytes?), as the request has them."""
    by_name = {output.name: output for output in known}
    always = raw or asked.parameters.get("binary_data_output") is True
    chosen: list[tuple[Output, bool]] = []
    for wanted in asked.outputs or [Wanted(name) for name in by_name]:
        if wanted.name not in by_name:
            raise BodyMalformed(f"unexpected output {wanted.name[:80]!r}; this model has {', '.join(by_name)}")
        if wanted.parameters.get("classification"):
            raise BodyMalformed(f"{wanted.name}: the classification extension is not served here")
        chosen.append((by_name[wanted.name], wanted.parameters.get("binary_data", always) is True))
    return chosen


def _answer(
    now: Snapshot,
    arm: Arm,
    many: Many,
    asked_id: str,
    chosen: Sequence[tuple[Output, bool]],
    head_of: Callable[[int], tuple[bytes, bytes]],
) -> Answer:
    scores = scores_of(arm.manifest, many)
    outputs, parts = [], []
    for output, binary in chosen:
        values = output.of(scores)
        told: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(values.shape)}
        flat = values.reshape(-1)
        if binary:
            parts.append(to_bytes(output.datatype, flat))
            told["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            told["data"] = flat.tolist()
        outputs.append(told)
    body: dict[str, Any] = {"model_name": arm.manifest.model, "model_version": arm.manifest.version}
    body |= {"id": asked_id} if asked_id else {}
    head = msgspec.json.encode(body | {"outputs": outputs})
    if not any(binary for _, binary in chosen):
        return marked(now, arm, many, b"application/json", head)
    kind, more = head_of(len(head))
    return marked(now, arm, many, kind, head + b"".join(parts), more=more)


def shape_of(columns: int) -> list[int]:
    return [-1, columns] if columns else [-1]


def inputs_of(schema: FeatureSchema) -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape) as metadata tells them."""
    if takes_matrix(schema):
        return [(MATRIX, "FP64", [-1, schema.width])]
    kinds = {"number": "FP64", "category": BYTES, "boolean": BOOL}
    return [(feature.name, kinds[feature.kind], [-1]) for feature in schema.features]
