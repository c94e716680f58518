"""`coppice predict`: ask a running server from the shell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from serving.errors import ServingError


class RowRefused(ServingError):
    """A line that is no JSON object; says which."""


def predict(
    rows: Annotated[str, typer.Argument(help="a JSON object, a file of one a line, or - for standard input")],
    url: Annotated[str, typer.Option(envvar="COPPICE_URL", help="the server")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="which model; default: the server's default one")] = "",
    ab: Annotated[bool, typer.Option("--ab", help="ask the experiment's split, not the champion")] = False,
    batch: Annotated[int, typer.Option(min=0, help="rows of one request; 0: each row is a request of its own")] = 0,
    unit: Annotated[str, typer.Option(help="the experiment's unit: the same one gets the same arm")] = "",
    key: Annotated[str, typer.Option(envvar="COPPICE_KEY", help="API key, where the server asks for one")] = "",
    deadline_s: Annotated[float, typer.Option(help="seconds for each row, with all attempts")] = 10.0,
) -> None:
    """Score rows on a running server; one answer a line, as JSON, in their order.

    A server that sheds load is asked again after the time that it names; a row that it refuses ends the command with exit
    code 2 and the field's name.

    \b
        coppice predict '{"tenure_months": 3, "plan": "basic", ...}'
        coppice simulate --rows 5 --out rows.jsonl && coppice predict rows.jsonl --ab
        coppice predict rows.jsonl --batch 1000
    """
    from serving.client import Client

    with Client(url, model=model, key=key, deadline_s=deadline_s) as client:
        if batch:
            for several in _in_parts(_rows(rows), batch):
                for told in client.predict_batch(several, unit=unit, split=ab)["predictions"]:
                    typer.echo(msgspec.json.encode(told).decode())
            return
        for row in _rows(rows):
            typer.echo(msgspec.json.encode(client.predict(row, unit=unit, ab=ab).body).decode())


def _in_parts(rows: Iterator[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    while part := list(islice(rows, most)):
        yield part


def _rows(given: str) -> Iterator[dict[str, Any]]:
    if given.lstrip().startswith("{"):
        yield _row("the row", given)
        return
    try:
        lines = sys.stdin if given == "-" else Path(given).open(encoding="utf-8")  # noqa: SIM115  # read to its end
    except OSError as unreadable:
        raise RowRefused(f"{given}: {unreadable.strerror}") from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(f"{given} line {number}", line)


def _row(where: str, text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as malformed:
        raise RowRefused(f"{where}: {malformed}") from None
