"""What C answers is what Python answers; and no bytes make it read or write where it must not."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import random
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_requests import BAD
from cases import Release, mixed_body, mixed_rows
from hypothesis import given
from hypothesis import strategies as st
from inprocess import InProcess

from compile.bundle import locate
from compile.runtime import open_predictor
from monitoring.compaction import compact
from monitoring.lake import window
from serving import page, quick_layout
from serving.cost import Cost
from serving.decoding import decoder
from serving.errors import RequestRefused
from serving.quick_rows import QuickRows
from training.features import Feature, FeatureSchema

ROOT = Path(__file__).parents[2]
POWERS = quick_layout.powers_of_ten()
CHANGING = re.compile(rb'"request_id":"[0-9a-f]{14}[^"]*"|x-request-id: [0-9a-f]{14}\S*\r\n|server-timing: [^\r]*\r\n')
NUMBERS = st.one_of(
    st.none(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1, 1),
    st.sampled_from([0, -0.0, 5e-324, 1e308, 0.1, 1e22, 1e23, 9007199254740993]),
)


def written(rng: random.Random) -> str:
    """A number as people and programs write it, half-way cases between two doubles among them."""
    kind = rng.randrange(7)
    if kind == 0:
        return repr(struct.unpack("d", struct.pack("Q", rng.getrandbits(64)))[0])
    if kind == 1:
        return str(rng.randrange(10 ** rng.randrange(1, 20)))
    if kind == 2:
        return f"{rng.gauss(0, 10 ** rng.randrange(-5, 6)):.{rng.randrange(1, 18)}f}"
    if kind == 3:
        return f"{rng.gauss(0, 1) * 10.0 ** rng.randrange(-250, 250):.{rng.randrange(18)}e}"
    if kind == 4:
        exponent, odd = rng.randrange(-3, 9), (2 * (rng.getrandbits(rng.randrange(30, 52)) | 1 << 51) + 1) * 2 + 1
        near = (odd * 2**exponent if exponent > 0 else odd * 5**-exponent) + rng.choice([0, 0, 1, -1])
        return f"{near}e{min(exponent, 0)}"
    return repr(rng.random() if kind == 5 else rng.gauss(0, 1))


def test_a_number_is_read_as_python_reads_it(size: Callable[[int, int], int]) -> None:
    read, value, rng = quick_layout.library().coppice_read_number, ctypes.c_double(), random.Random(3)
    count, taken = size(100_000, 5_000_000), 0
    for _ in range(count):
        text = written(rng)
        length = read(ctypes.addressof(POWERS), text.encode(), len(text), ctypes.addressof(value))
        if length:
            taken += 1
            assert length == len(text), text
            assert struct.pack("d", value.value) == struct.pack("d", float(text)), text
    assert taken > 0.8 * count


@pytest.mark.parametrize("text", ["", "-", "01", "1.", ".5", "1e", "1e+", "+1", "- 1", "0x1", "NaN", "Infinity", "1_0"])
def test_what_is_no_json_number_is_not_read_as_one(text: str) -> None:
    value = ctypes.c_double()
    got = quick_layout.library().coppice_read_number(
        ctypes.addressof(POWERS), text.encode(), len(text), ctypes.addressof(value)
    )
    assert got < len(text) or not text


def test_a_unit_has_the_point_that_hashlib_gives_it() -> None:
    rng, salted, found = random.Random(4), (ctypes.c_uint64 * 8)(), quick_layout.library()
    for length in itertools.chain(range(1, 129), [rng.randrange(1, 129) for _ in range(2_000)]):
        salt, unit = rng.randbytes(rng.randrange(1, 65)), rng.randbytes(length)
        found.coppice_salt(salt, len(salt), ctypes.addressof(salted))
        digest = hashlib.blake2b(unit, digest_size=8, key=salt).digest()
        expected = int.from_bytes(digest, "big") * 10_000 >> 64
        assert found.coppice_point_of(ctypes.addressof(salted), unit, len(unit)) == expected


@st.composite
def schemas(draw: st.DrawFn) -> FeatureSchema:
    names = draw(st.lists(st.text("abcXYZ_ 019", min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
    return FeatureSchema(tuple(draw(features(name)) for name in names))


@st.composite
def features(draw: st.DrawFn, name: str) -> Feature:
    kind = draw(st.sampled_from(["number", "boolean", "category"]))
    missing = draw(st.sampled_from(["nan", "refuse", 2.0]))
    if kind == "number":
        return Feature(name=name, kind=kind, missing=missing, low=draw(st.sampled_from([None, -1.0])))
    if kind == "boolean":
        return Feature(name=name, kind=kind, missing=missing)
    known = draw(st.lists(st.sampled_from(["a", "b", "bb", "é", 'q"', "", "x y"]), min_size=1, unique=True))
    unseen = draw(st.sampled_from(["missing", "other", "refuse"]))
    return Feature(name=name, kind=kind, missing=missing, categories=tuple(known), unseen=unseen)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[FeatureSchema, bytes, bool]:
    """A schema, a body for it, and whether the body is altogether plain: then C must take it if Python does."""
    schema = draw(schemas())
    of_kind: dict[str, Any] = {
        "number": NUMBERS,
        "boolean": st.sampled_from([True, False, None]),
        "category": st.sampled_from(["a", "b", "bb", "x y", "", "other", None, "é", 'q"']),
    }
    values = {f.name: draw(of_kind[f.kind]) for f in draw(st.permutations(schema.features))}
    body = json.dumps(values, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])))
    if draw(st.booleans()):
        return schema, body.encode(), all(map(is_plain, values.values()))
    at = draw(st.integers(0, len(body) - 1))
    put = draw(st.sampled_from(["", ",", "}", "{", '"', "\\", "0", "-", "e", ".", "é", "null", ' "a":1,', "\n"]))
    return schema, (body[:at] + put + body[at + draw(st.integers(0, 2)) :]).encode(), False


def is_plain(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and '"' not in value
    if isinstance(value, float):
        return value == 0 or 1e-200 < abs(value) < 1e200
    return value is None or abs(int(value)) < 10**19  # type: ignore[call-overload]  # a number or a boolean


@given(bodies())
def test_a_row_is_what_the_decoder_makes_of_the_body(case: tuple[FeatureSchema, bytes, bool]) -> None:
    schema, body, plain = case
    rows = QuickRows.of(schema)
    assert rows is not None
    endpoint = quick_layout.Endpoint(features=rows.features, width=rows.width, order=rows.order)
    row = np.zeros(schema.width)
    taken = [
        quick_layout.library().coppice_read_row(
            ctypes.addressof(endpoint), ctypes.addressof(POWERS), body, len(body), row.ctypes.data
        )
        for _ in range(2)  # the second time it expects the order of the first
    ]
    assert taken[0] == taken[1]
    try:
        expected = decoder(schema)(body)
    except RequestRefused:
        assert not taken[0]
        return
    if taken[0]:
        assert row.tobytes() == expected
    assert taken[0] or not plain


@pytest.fixture
def asked(release: Release, tmp_path: Path) -> Iterator[InProcess]:
    started = InProcess(release.store, "mixed", tmp_path / "traffic")
    yield started
    started.finish()


def head(path: bytes, body: bytes, *lines: bytes) -> bytes:
    plain = b"host: x\r\ncontent-type: application/json\r\n" + b"".join(line + b"\r\n" for line in lines)
    return b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (path, plain, len(body), body)


def requests(count: int, seed: int) -> Iterator[bytes]:
    """Usual ones, unusual ones, and some that a byte was changed in."""
    rng = random.Random(seed)
    lines: list[tuple[bytes, ...]] = [
        (),
        (b"x-unit: customer 17",),
        (b"X-Unit: customer-18",),
        (b"x-request-id: mine",),
        (b"X-Request-ID: \xff",),
        (b"x-unit: " + b"u" * 200,),
        (b"x-unit:",),
        (b"connection: Keep-Alive",),
        (b"connection: close",),
        (b"x-request-timeout-ms: 5000",),
        (b"expect: 100-continue",),
        (b"content-length: 5",),
        (b"user-agent: any/1.0 (thing; other)", b"accept: */*", b"accept-encoding: gzip, deflate"),
        (b"cookie: a=b",),
        (b" folded: x",),
        (b"bad name: x",),
        (b"transfer-encoding: chunked",),
        (b"upgrade: h2c", b"connection: upgrade"),
    ]
    for row in mixed_rows(count, seed):
        path = rng.choice([b"/predict", b"/v1/models/mixed/predict", b"/predict?x=1", b"/else"])
        split = rng.choice([b"/predict/ab", b"/v1/models/mixed/predict/ab"])
        body = mixed_body(row) + rng.choice([b"", b" ", b"\r\n"])
        yield head(split, body, b"x-unit: %d" % rng.randrange(99))
        request = head(path, body, *rng.choice(lines))  # the arm of a request without a unit hangs on its random id
        yield request
        at = rng.randrange(len(request))
        yield request[:at] + rng.choice([b"", b"\0", b"\r", b" ", b"9", b'"', b"\xe9"]) + request[at + 1 :]


def counting(asked: InProcess) -> list[int]:
    """Grows by an entry for each request that C answers."""
    quick, taken = asked.quick, list[int]()
    call = quick.answer

    def answer(*given: Any) -> int:
        length = int(call(*given))
        taken.extend([length] if length else [])
        return length

    quick.answer = answer
    return taken


def test_a_request_is_answered_as_without_c(asked: InProcess, size: Callable[[int, int], int]) -> None:
    """The same bytes but for times and ids, whatever was sent; and C did take the usual ones."""
    taken = counting(asked)
    sent = list(requests(size(400, 20_000), 7))
    for method, path, body, headers, _, _ in BAD.values():
        if (method or "POST") == "POST":
            sent.append(head(path.encode(), body or b"", *(f"{n}: {v}".encode() for n, v in headers.items())))
    for request in sent:
        quick = asked.raw(request)
        assert CHANGING.sub(b"", quick) == CHANGING.sub(b"", asked.raw(request, quick=False)), request
    assert len(taken) > len(sent) / 5


def test_c_logs_and_counts_what_python_does(asked: InProcess) -> None:
    """Row by row; over several blocks, and while both write."""
    taken, cells = counting(asked), asked.slot.cells
    rows = mixed_rows(1500, 9)
    counters = [page.ROWS, page.REQUESTS_2XX, page.DISPATCH_INLINE, *series_cells(asked)]
    grown: dict[bool, list[int]] = {}
    for quick in (True, False):
        before = [cells[cell] for cell in counters]
        for n, row in enumerate(rows):
            lines = (b"x-request-id: %d-%d" % (quick, n), b"x-unit: unit-%d" % n)
            assert asked.raw(head(b"/predict/ab", mixed_body(row), *lines), quick=quick).startswith(b"HTTP/1.1 200")
            if n % 100 == 0:
                assert asked.raw(
                    head(b"/predict", mixed_body(row), b"x-request-id: other-%d-%d" % (quick, n)), quick=quick
                )
        grown[quick] = [cells[cell] - was for cell, was in zip(counters, before, strict=True)]
    assert len(taken) == 1515
    assert grown[True] == grown[False]
    assert sum(cells[page.REQUEST_SECONDS : page.REQUEST_SECONDS + page.HISTOGRAM_CELLS - 1].tolist()) == 3030
    asked.finish()
    compact(asked.traffic, asked.traffic / "lake")
    logged = window(asked.traffic / "lake", "mixed").to_pylist()
    served = {row["request_id"]: row for row in logged if row["role"] == "served"}
    assert len(served) == 3030
    assert len({row["seq"] for row in logged}) == len(logged) == cells[page.ROWS_LOGGED]
    for n in range(len(rows)):
        ours, theirs = served[f"1-{n}"], served[f"0-{n}"]
        for name in set(ours) - {"request_id", "ts_us", "seq", "parse_us", "score_us", "date", "hour"}:
            assert repr(ours[name]) == repr(theirs[name]), name
        assert 0 <= theirs["ts_us"] - ours["ts_us"] < 600e6
        assert 0 < ours["parse_us"] + ours["score_us"] < 1e6 or ours["parse_us"] == 0


def series_cells(asked: InProcess) -> list[int]:
    return [arm.rows_cell for arm in asked.live.snapshot.arms]


def test_where_the_loop_is_late_python_decides_of_what_is_dearer_than_a_refusal(
    asked: InProcess, release: Release
) -> None:
    request = head(b"/predict", mixed_body(mixed_rows(1)[0]))
    kept = asked.quick.lateness[2]
    for row_us, cheap in ((1.0, True), (50.0, False)):
        bundle = asked.live.snapshot.routes.arms["champion"]
        asked.replace_lane("champion", open_predictor(locate(release.store, bundle)), Cost(0.0, row_us))
        assert asked.live.snapshot.champion.inline
        taken = counting(asked)
        asked.quick.lateness[2] = -1_000_000_000_000  # ns after which a loop is late
        assert asked.raw(request).startswith(b"HTTP/1.1 200")
        assert bool(taken) == cheap
        asked.quick.lateness[2] = kept
        assert asked.raw(request).startswith(b"HTTP/1.1 200")
        assert len(taken) == 1 + cheap


@pytest.fixture
def batching(asked: InProcess, release: Release) -> InProcess:
    """Its arms' models are as if a batch paid: their rows wait for each other, eight at most."""
    for arm, bundle in asked.live.snapshot.routes.arms.items():
        asked.replace_lane(arm, open_predictor(locate(release.store, bundle)), Cost(50.0, 1.0))
    assert {arm.lane.reason for arm in asked.live.snapshot.arms} == {"tick"}
    return asked


def together(count: int, seed: int) -> list[list[bytes]]:
    """What `count` connections read at once; every fifth sends a second request behind its first."""
    sent = []
    for n, row in enumerate(mixed_rows(count, seed)):
        lines = (b"x-unit: u%d" % n, b"x-request-id: r%d-%d" % (seed, n))
        path = b"/predict/ab" if n % 3 else b"/predict"
        sent.append([head(path, mixed_body(row), *lines)] * (2 if n % 5 == 0 else 1))
    return sent


def test_rows_that_wait_for_each_other_are_answered_as_alone(batching: InProcess) -> None:
    taken = counting(batching)
    cells = batching.slot.cells
    for seed, count in enumerate((1, 2, 7, 8, 9, 40, 100)):
        sent = together(count, seed)
        rows, requests_ok = cells[page.ROWS], cells[page.REQUESTS_2XX]
        quick = batching.raw_together(sent)
        asked_for = sum(map(len, sent))
        assert (cells[page.ROWS] - rows, cells[page.REQUESTS_2XX] - requests_ok) == (asked_for, asked_for)
        for ours, theirs in zip(quick, batching.raw_together(sent, quick=False), strict=True):
            assert CHANGING.sub(b"", ours) == CHANGING.sub(b"", theirs)
            assert ours.count(b"HTTP/1.1 200") >= 1
    assert len(taken) > 150
    batching.finish()
    compact(batching.traffic, batching.traffic / "lake")
    logged = window(batching.traffic / "lake", "mixed").to_pylist()
    assert max(row["batch_rows"] for row in logged) == 8
    assert len({row["seq"] for row in logged}) == len(logged) == cells[page.ROWS_LOGGED]


def test_a_score_that_can_not_be_told_is_left_to_python(batching: InProcess) -> None:
    """In the midst of a batch, whose other rows are answered by C."""
    lane = batching.live.snapshot.champion.lane
    assert lane.native is not None
    call = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)
    scores = (ctypes.c_double * 8).from_address(lane.native.scores)

    def run(_: int, count: int) -> None:
        scores[:count] = [math.inf if n == 1 else math.nan if n == 3 else 0.25 for n in range(count)]

    spoiled = call(run)
    address = ctypes.cast(spoiled, ctypes.c_void_p).value
    lane.native = lane.native._replace(function=address or 0)
    batching.flip_again()
    sent = [[head(b"/predict", mixed_body(row), b"x-request-id: r%d" % n)] for n, row in enumerate(mixed_rows(5, 3))]
    got = batching.raw_together(sent)
    right = batching.raw_together(sent, quick=False)
    for n in range(5):
        assert (b'"probability":0.25' in got[n]) == (n not in (1, 3))
        assert got[n].startswith(b"HTTP/1.1 200")
    for n in (1, 3):
        assert CHANGING.sub(b"", got[n]) == CHANGING.sub(b"", right[n])


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """quick.c under AddressSanitizer and UndefinedBehaviorSanitizer."""
    program = tmp_path_factory.mktemp("harness") / "harness"
    sources = sorted(map(str, (ROOT / "serving").glob("quick*.c")))
    flags = ["-std=c99", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", "serving"]
    call = ["gcc", *flags, *sources, str(Path(__file__).with_name("quick_harness.c")), "-o", str(program), "-lm"]
    subprocess.run(call, cwd=ROOT, check=True)
    return program


def mutated(rng: random.Random, usual: list[bytes]) -> bytes:
    request = bytearray(rng.choice(usual))
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at = rng.randrange(len(request) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            request[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del request[at:]
        elif kind == 2:
            del request[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            request[at:at] = rng.choice([b"\r\n", b"x: y\r\n", b"9" * 300, b'"', b"{", b"1e", b"-", b":", b"\0" * 9])
        else:
            other = rng.choice(usual)
            request[at:] = other[rng.randrange(len(other)) :]
    return bytes(request)


def test_no_bytes_make_it_read_or_write_where_it_must_not(
    harness: Path, tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    rng = random.Random(13)
    plans = [b'"a"', b'"bb"', b'"zz"', b"null", b'"c\\u0063"']
    usual = []
    for _ in range(300):
        fields = [
            b'"x": %b' % written(rng).encode(), b'"flag":%b' % rng.choice([b"true", b"false"]), b'"plan":' + rng.choice(plans)
        ]  # fmt: skip
        rng.shuffle(fields)
        lines = [b"x-unit: %b" % (b"u" * rng.randrange(1, 129)), b"x-request-id: %b" % (b"i" * rng.randrange(1, 129))]
        body = b"{" + b",".join(fields) + b"}"
        usual.append(head(rng.choice([b"/predict", b"/predict/ab"]), body, *rng.sample(lines, rng.randrange(3))))
    asked = [mutated(rng, usual) for _ in range(size(20_000, 2_000_000))]
    corpus, powers = tmp_path / "corpus", tmp_path / "powers"
    corpus.write_bytes(b"".join(struct.pack("<I", len(request)) + request for request in asked))
    powers.write_bytes(bytes(POWERS))
    ran = subprocess.run([harness, corpus, powers], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:] or ran.returncode
    count, answered = map(int, ran.stdout.split())
    assert count == len(asked)
    assert count / 20 < answered < count
