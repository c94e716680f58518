"""An outcome that was acknowledged is on disk; one that could not be written was refused; each is read back as it was told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import page
from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused, FieldRefused, NotWritten, RequestRefused
from serving.feedback import read_feedback
from serving.outcomes import Given, OutcomeLog, latest, read_outcomes

JSON, NDJSON = b"application/json", b"application/x-ndjson"


def run(folder: Path, test: Callable[[OutcomeLog, page.Slot], Awaitable[None]], **knobs: Any) -> Path:
    async def held() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        slot = page.Page.create(folder / "s.page", 1).slot(0)
        log = OutcomeLog(folder / "outcomes", "s-0-0f", slot=slot, loop=asyncio.get_running_loop(), **knobs)
        await test(log, slot)
        assert log.close(20)

    asyncio.run(held())
    return folder / "outcomes"


def told(number: int, value: Any = 1.0) -> Given:
    return Given(number, 10 + number, f"r{number}", number % 3, value)


VALUES = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=20))


@given(values=st.lists(st.lists(VALUES, max_size=4), max_size=6))
def test_what_is_written_is_read_back(values: list[list[Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    async def test(log: OutcomeLog, slot: page.Slot) -> None:
        await asyncio.gather(*(log.write([told(n, value) for value in group]) for n, group in enumerate(values)))
        count = sum(map(len, values))
        assert slot.cells[page.OUTCOMES_WRITTEN] == slot.cells[page.OUTCOMES_RECEIVED] == count

    folder = run(tmp_path_factory.mktemp("outcomes"), test)
    got = list(read_outcomes(folder))
    assert [(o.ts_us, o.received_us, o.request_id, o.row, o.value, type(o.value)) for o in got] == [
        (*told(n, value), type(value)) for n, group in enumerate(values) for value in group
    ]
    assert [o.seq for o in got] == list(range(1, len(got) + 1))


def test_many_senders_share_a_sync_and_all_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    fsync = os.fsync

    def counted(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        fsync(handle)

    monkeypatch.setattr(os, "fsync", counted)

    async def test(log: OutcomeLog, _: page.Slot) -> None:
        await asyncio.gather(*(log.write([told(n)]) for n in range(2000)))

    folder = run(tmp_path, test)
    assert len({outcome.request_id for outcome in read_outcomes(folder)}) == 2000
    assert syncs < 200
    assert not list((folder / "open").iterdir())


def test_files_are_rotated_and_read_as_one(tmp_path: Path) -> None:
    async def test(log: OutcomeLog, _: page.Slot) -> None:
        for n in range(20):
            await log.write([told(n)])
        assert [outcome.seq for outcome in read_outcomes(tmp_path / "outcomes")] == list(range(1, 21))

    folder = run(tmp_path, test, rotate_bytes=300)
    assert len(list((folder / "sealed").iterdir())) > 3
    assert [outcome.seq for outcome in read_outcomes(folder)] == list(range(1, 21))


def test_a_file_cut_anywhere_has_the_whole_blocks_before_the_cut(tmp_path: Path) -> None:
    async def test(log: OutcomeLog, _: page.Slot) -> None:
        for n in range(5):
            await log.write([told(n)])

    (path,) = (run(tmp_path, test) / "sealed").iterdir()
    whole = path.read_bytes()
    block = (len(whole) - 8) // 5
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        got = [outcome.seq for outcome in read_outcomes(tmp_path / "outcomes")]
        assert got == list(range(1, 1 + max(0, cut - 8) // block)), cut
    path.write_bytes(b"COPPSEG2" + whole[8:])
    with pytest.raises(ValueError, match=path.name):
        list(read_outcomes(tmp_path / "outcomes"))


@pytest.mark.parametrize("refusing", ["write", "fsync"])
def test_what_a_disk_refuses_is_refused_and_the_next_is_written(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = {"write": os.write, "fsync": os.fsync}
    full = False

    def write(handle: int, data: bytes) -> int:
        if full:
            real["write"](handle, bytes(data[: len(data) // 2]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return real["write"](handle, data)  # type: ignore[no-any-return]

    def fsync(handle: int) -> None:
        if full:
            raise OSError(errno.EIO, "Input/output error")
        real["fsync"](handle)

    monkeypatch.setattr(os, refusing, {"write": write, "fsync": fsync}[refusing])

    async def test(log: OutcomeLog, slot: page.Slot) -> None:
        nonlocal full
        for n in range(6):
            full = n in (0, 2, 3)
            if full:
                with pytest.raises(NotWritten, match=r"space|output"):
                    await log.write([told(n)])
            else:
                await log.write([told(n)])
        assert (slot.cells[page.OUTCOMES_WRITTEN], slot.cells[page.OUTCOMES_REFUSED]) == (3, 3)

    folder = run(tmp_path, test)
    assert [outcome.request_id for outcome in read_outcomes(folder)] == ["r1", "r4", "r5"]


def test_more_than_may_wait_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.outcomes.MOST_WAITING", 10)

    async def test(log: OutcomeLog, slot: page.Slot) -> None:
        done = await asyncio.gather(*(log.write([told(n)] * 4) for n in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in done] == [type(None), type(None), NotWritten]
        assert slot.cells[page.OUTCOMES_REFUSED] == 4
        await log.write([told(9)])

    assert len(list(read_outcomes(run(tmp_path, test)))) == 9


def test_of_several_for_one_row_the_last_counts(tmp_path: Path) -> None:
    async def test(log: OutcomeLog, _: page.Slot) -> None:
        await log.write([Given(9, 20, "a", 0, "late"), Given(1, 30, "a", 0, "last"), Given(2, 30, "a", 1, "other row")])
        await log.write([Given(1, 30, "a", 0, "last, and sent again"), Given(3, 10, "a", 0, "overtaken")])

    found = latest(read_outcomes(run(tmp_path, test)))
    assert {key: outcome.value for key, outcome in found.items()} == {
        ("a", 0): "last, and sent again",
        ("a", 1): "other row",
    }


@pytest.mark.parametrize(
    ("kind", "body", "values"),
    [
        (JSON, b'{"request_id": "a", "value": 1}', [1.0]),
        (b"", b'{"request_id": "a", "value": true, "row": 3, "ts": 5.5}', [True]),
        (JSON, b'[{"request_id": "a", "value": "x"}, {"request_id": "b", "value": -0.5}]', ["x", -0.5]),
        (JSON, b"[]", []),
        (NDJSON, b'{"request_id": "a", "value": 1}\n\n{"request_id": "b", "value": "x"}\r\n', [1.0, "x"]),
    ],
)
def test_feedback_is_read_in_every_form(kind: bytes, body: bytes, values: list[Any]) -> None:
    assert [given.value for given in read_feedback(kind, body, 10)] == values


@pytest.mark.parametrize(
    ("ts", "us"),
    [("0", 0), ("1.5", 1_500_000), ('"1970-01-01T01:00:00+01:00"', 0), ('"2026-01-31T12:00:00Z"', 1769860800000000)],
)
def test_a_time_is_seconds_or_a_date(ts: str, us: int) -> None:
    (given,) = read_feedback(JSON, b'{"request_id": "a", "value": 1, "ts": %b}' % ts.encode(), 10)
    assert given.ts_us == us


GOOD = '{"request_id": "a", "value": 1}'


@pytest.mark.parametrize(
    ("kind", "body", "error", "field", "row"),
    [
        (JSON, "", BodyMalformed, None, None),
        (JSON, "{", BodyMalformed, None, None),
        (JSON, "7", BodyMalformed, None, None),
        (JSON, f"[{GOOD}, 7]", BodyMalformed, None, 1),
        (JSON, f"[{GOOD}", BodyMalformed, None, None),
        (JSON, "[" * 5000, BodyMalformed, None, None),
        (NDJSON, f"{GOOD}\nx", BodyMalformed, None, 1),
        (JSON, '{"value": 1}', FieldRefused, "request_id", None),
        (JSON, '{"request_id": "a"}', FieldRefused, "value", None),
        (JSON, f'[{GOOD}, {{"request_id": "a", "value": null}}]', FieldRefused, "value", 1),
        (JSON, '{"request_id": "a", "value": [1]}', FieldRefused, "value", None),
        (JSON, '{"request_id": "a b", "value": 1}', FieldRefused, "request_id", None),
        (JSON, '{"request_id": "é", "value": 1}', FieldRefused, "request_id", None),
        (JSON, '{"request_id": "a", "value": "%s"}' % ("x" * 257), FieldRefused, "value", None),
        (JSON, '{"request_id": "a", "value": 1, "row": -1}', FieldRefused, "row", None),
        (JSON, '{"request_id": "a", "value": 1, "row": 1.5}', FieldRefused, "row", None),
        (JSON, '{"request_id": "a", "value": 1, "ts": "2026-01-31T12:00:00"}', FieldRefused, "ts", None),
        (JSON, '{"request_id": "a", "value": 1, "ts": -1}', FieldRefused, "ts", None),
        (JSON, '{"request_id": "a", "value": 1, "ts": "soon"}', FieldRefused, "ts", None),
        (JSON, '{"request_id": "a", "value": 1, "when": 1}', FieldRefused, "when", None),
        (b"text/csv", GOOD, ContentTypeRefused, None, None),
        (JSON, f"[{GOOD},{GOOD},{GOOD}]", BodyTooLarge, None, None),
    ],
)
def test_what_is_no_outcome_is_refused_by_row_and_field(
    kind: bytes, body: str, error: type, field: str | None, row: int | None
) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_feedback(kind, body.encode(), 2)
    assert (type(refused.value), refused.value.field, refused.value.row) == (error, field, row), refused.value


@given(st.one_of(st.binary(max_size=40), st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists)))
def test_any_body_is_outcomes_or_a_refusal(body: Any) -> None:
    text = body if isinstance(body, bytes) else json.dumps([{"request_id": "a", "value": body, "ts": body}]).encode()
    for kind in (JSON, NDJSON):
        with contextlib.suppress(RequestRefused):
            assert len(read_feedback(kind, text, 10)) <= 10
