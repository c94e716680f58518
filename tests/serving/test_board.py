"""The board keeps what is committed while the next is offered, shows no half-written text, and says when it is full."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from serving import board as boards
from serving.board import Board, BoardFull, Release
from serving.page import Page


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Page.create(tmp_path / "a.page", 1).board


def test_what_is_committed_survives_any_number_of_offers(board: Board) -> None:
    rng, committed = random.Random(1), Release(0, "", {})
    assert board.release(board.committed) is None
    for generation in range(1, 200):
        offered = board.offer("m", {"m": generation, "other": 1})
        assert board.release(board.offered) == offered
        if committed.number:
            assert board.release(board.committed) == committed
        if rng.random() < 0.5:
            board.commit()
            committed = offered
        elif rng.random() < 0.5:
            board.withdraw()
        assert offered.number == generation
        assert board.committed == committed.number


def test_a_text_that_is_half_written_is_not_shown(board: Board) -> None:
    offered = board.offer("m", {"m": 1})
    cells = board.cells
    assert board.release(offered.number) == offered
    for place in (576, 4672):
        cells[place + 1] += 1  # as a reader meets it that comes between the text and its checksum
    assert board.release(offered.number) is None


def test_more_models_than_there_is_room_for_are_refused_and_nothing_is_lost(board: Board) -> None:
    board.offer("m", {"m": 1})
    board.commit()
    with pytest.raises(BoardFull, match="bytes"):
        board.offer("m", {f"model-{n:060}": 1 for n in range(1000)})
    assert board.release(board.committed) == Release(1, "m", {"m": 1})
    assert board.offered == 0
    board.offer("m", {f"model-{n}": 1 for n in range(1000)})


def test_what_is_told_is_read_back_or_left_out(board: Board) -> None:
    assert board.told() == {}
    board.tell({"store": "reached", "refused": {"m 2": "why"}})
    board.tell({"store": "x" * 5000})
    assert board.told() == {"store": "reached", "refused": {"m 2": "why"}}
    assert board.cells[boards.COMMITTED] == 0
