"""The answer to many rows: as JSON rows, as JSON columns, or as an Arrow stream. Any thread.

Columns are the fields of the rows, null where a row has none. In Arrow a field of fields becomes columns named
`probabilities.<label>`, and the labels of a multilabel row, which are those above the threshold, are left out.
"""

from __future__ import annotations

import io
from typing import Any

import msgspec

from serving.answers import MODEL_FAILED, SCORE_NOT_FINITE, Answer, spelled
from serving.live import Arm, Snapshot
from serving.many import Many
from serving.scoring import has_nan
from serving.tasks import row_schema, speller

JSON, ARROW = b"application/json", b"application/vnd.apache.arrow.stream"
NONE_SCORED = "the model could score none of these rows; the server's log has the cause"


def answer_of(now: Snapshot, many: Many, split: bool, shape: str) -> Answer:
    """`shape`: rows, columns or arrow. With a `split`, each row names its arm and version."""
    rows = _spelled_rows(many, split)
    if many.failed and len(many.failed) == len(rows):
        return _answer(now, many, split, JSON, b'{"error":%b}' % spelled(NONE_SCORED), 500)
    if shape == "arrow":
        return _answer(now, many, split, ARROW, _arrow(_flat(now, _columns(now, rows, many, split)), len(rows)))
    if shape == "columns":
        answered = b'"columns":' + msgspec.json.encode(_columns(now, rows, many, split))
    else:
        answered = b'"predictions":[%b]' % b",".join(rows)
    marks = b"" if split else _marks(now.champion)
    body = b'{%b%b,"failed":%d,"request_id":"%b"}' % (answered, marks, len(many.failed), many.request_id)
    return _answer(now, many, split, JSON, body)


def _spelled_rows(many: Many, split: bool) -> list[bytes]:
    arms = {id(arm): arm for arm in many.arms}
    spell = {key: speller(arm.manifest) for key, arm in arms.items()}
    endings = {key: (_marks(arm) if split else b"") + b"}" for key, arm in arms.items()}
    failed = set(many.failed)
    rows = []
    for place, (arm, scores) in enumerate(zip(many.arms, many.scores, strict=True)):
        key = id(arm)
        if place in failed:
            error = spelled(MODEL_FAILED if has_nan(scores) else SCORE_NOT_FINITE)
            rows.append(b'{"error":' + error + endings[key])
        else:
            rows.append(spell[key](scores) + endings[key])
    return rows


def _marks(arm: Arm) -> bytes:
    return b',"model_version":%b,"arm":%b' % (spelled(arm.manifest.version), spelled(arm.name))


def _columns(now: Snapshot, rows: list[bytes], many: Many, split: bool) -> dict[str, list[Any]]:
    """Each field that a row may have, whether or not one of these has it: the columns depend on the model alone, and on
    what was asked."""
    names = list(row_schema(now.champion.manifest)["properties"])
    names += ["model_version", "arm"] if split else []
    names += ["error"] if many.failed else []
    parsed = [msgspec.json.decode(row) for row in rows]
    return {name: [row.get(name) for row in parsed] for name in names}


def _flat(now: Snapshot, columns: dict[str, list[Any]]) -> list[tuple[str, bool, list[Any]]]:
    """(name, is it text, values) of each column as Arrow has it."""
    fields = row_schema(now.champion.manifest)["properties"]
    flat: list[tuple[str, bool, list[Any]]] = []
    for name, values in columns.items():
        field = fields.get(name, {"type": "string"})
        if field["type"] == "object":
            flat += [
                (f"{name}.{key}", False, [value and value[key] for value in values]) for key in field["properties"]
            ]
        elif field["type"] != "array":
            flat.append((name, field["type"] == "string", values))
    return flat


def _arrow(columns: list[tuple[str, bool, list[Any]]], rows: int) -> bytes:
    import nanoarrow
    from nanoarrow.ipc import StreamWriter

    fields = {name: nanoarrow.string() if text else nanoarrow.float64() for name, text, _ in columns}
    arrays = [nanoarrow.c_array(values, fields[name]) for name, _, values in columns]
    batch = nanoarrow.c_array_from_buffers(nanoarrow.struct(fields), rows, [None], children=arrays)
    out = io.BytesIO()
    with StreamWriter.from_writable(out) as stream:
        stream.write_stream(batch)
    return out.getvalue()


def _answer(now: Snapshot, many: Many, split: bool, kind: bytes, body: bytes, status: int = 200) -> Answer:
    return marked(now, None if split else now.champion, many, kind, body, status)


def marked(
    now: Snapshot, arm: Arm | None, many: Many, kind: bytes, body: bytes, status: int = 200, more: bytes = b""
) -> Answer:
    """The body as an answer with the marks of a single one; `arm` None: the rows were answered by several."""
    head = b"content-length: %d\r\ncontent-type: %b\r\nx-request-id: %b\r\n%b" % (
        len(body), kind, many.request_id, more,
    )  # fmt: skip
    if arm is not None:
        head += f"x-model-version: {arm.manifest.version}\r\nx-arm: {arm.name}\r\n".encode("latin-1")
    times = [f"{name};dur={us / 1000:.3f}" for name, us in zip(("parse", "queue", "score"), _times(many), strict=True)]
    head += f"x-routes-generation: {now.routes.generation}\r\nserver-timing: {', '.join(times)}\r\n".encode("latin-1")
    return Answer(status, head, body)


def _times(many: Many) -> tuple[int, int, int]:
    return many.parse_us, many.queue_us, many.score_us
