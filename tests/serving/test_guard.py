"""Who is let in, and how often: laws of the keys' file and of the bucket."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import page
from serving.api_keys import Key, Keys
from serving.guard import Bucket, Guard


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


@given(
    st.floats(0.1, 1000), st.floats(0.1, 50), st.lists(st.floats(0, 2, allow_subnormal=False), min_size=1, max_size=200)
)
def test_no_window_has_more_than_the_burst_and_its_rate(rate: float, burst: float, gaps: list[float]) -> None:
    now = 0.0
    bucket = Bucket(rate, burst, lambda: now)
    taken: list[float] = []
    for gap in gaps:
        now += gap
        wait_s = bucket.take()
        if not wait_s:
            taken.append(now)
        else:
            asked_at, now = now, now + wait_s * (1 + 1e-6) + 1e-9
            assert not bucket.take(), "whoever comes back when told is let in"
            taken.append(now)
            assert wait_s <= 1 / rate + 1e-9
            assert asked_at < now
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= max(1.0, burst) + rate * (taken[last] - taken[first]) + 1e-6


def test_a_file_says_who_may_and_what(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(
        f"# comment\n\n{digest(b'a')} shop front\n{digest(b'b')} tests rate=2.5 burst=10 override\n{digest(b'c')}\n"
    )
    keys = Keys(str(path), "COPPICE_API_KEYS")
    assert keys.who(b"a") == Key(digest(b"a"), "shop front")
    assert keys.who(b"b") == Key(digest(b"b"), "tests", 2.5, 10.0, True)
    assert keys.who(b"c") == Key(digest(b"c"), digest(b"c")[:8])
    for other in (b"", b"d", digest(b"a").encode()):
        assert keys.who(other) is None


@pytest.mark.parametrize(
    "line",
    [
        "secret-key shop",
        "{digest} shop rate=0",
        "{digest} shop rate=-1",
        "{digest} shop rate=nan",
        "{digest} shop rate=inf",
        "{digest} shop rate=",
        "{digest} shop rate=1 rate=2",
        "{digest} shop quota=5",
        "{digest}0 shop",
    ],
)
def test_a_line_that_is_none_lets_nobody_in_and_is_not_repeated(
    line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{digest(b'good')} good\n" + line.format(digest=digest(b"secret-key")))
    keys = Keys(str(path), "COPPICE_API_KEYS")
    assert keys.who(b"secret-key") is None
    assert keys.who(b"good") is not None
    assert "line 2" in caplog.text
    assert "secret-key" not in caplog.text


def test_a_key_is_forgotten_with_its_line_and_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{digest(b'old')} a\n{digest(b'new')} a\n")
    slot = page.Page.create(tmp_path / "a.page", 1).slot(0)
    guard = Guard(Keys(str(path), "COPPICE_API_KEYS"), slot, 1)
    assert guard.refuse(b"old") is guard.refuse(b"new") is None
    path.write_text(f"{digest(b'new')} a\n")
    told = guard.refuse(b"old")
    assert told is not None
    assert told.status == 403
    assert guard.refuse(b"new") is None
    path.write_bytes(b"\xff\xfe")
    assert guard.find(b"new") is None
    path.unlink()
    assert guard.find(b"new") is None
    path.write_text(f"{digest(b'new')} a\n")
    assert guard.find(b"new") is not None
    assert (slot.cells[page.KEYS_MISSING], slot.cells[page.KEYS_WRONG]) == (0, 1)
    told = guard.refuse(b"")
    assert told is not None
    assert (told.status, b"www-authenticate: Bearer\r\n" in told.head) == (401, True)
    assert slot.cells[page.KEYS_MISSING] == 1


def test_a_rate_is_shared_by_the_workers_and_kept_when_the_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{digest(b'a')} a rate=0.002 burst=8\n")
    slot = page.Page.create(tmp_path / "a.page", 1).slot(0)
    guard = Guard(Keys(str(path), "COPPICE_API_KEYS"), slot, 2)
    assert [guard.refuse(b"a") is None for _ in range(6)] == [True] * 4 + [False] * 2
    path.write_text(f"{digest(b'a')} a rate=0.002 burst=8\n{digest(b'b')} b\n")
    told = guard.refuse(b"a")
    assert told is not None
    assert told.status == 429
    (line,) = [line for line in told.head.split(b"\r\n") if line.startswith(b"retry-after: ")]
    assert 990 <= int(line.split()[1]) <= 1000
    assert slot.cells[page.SHED_RATE] == 3
    assert all(guard.refuse(b"b") is None for _ in range(100))
