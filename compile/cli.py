"""The verbs of compile: `coppice compile` and `coppice score`."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from compile.bundle import locate, publish
from compile.errors import BundleRefused, CompileError
from compile.runtime import open_predictor
from training.features import Feature, FeatureSchema, InputRefused, encode


def compile_model(
    model: Annotated[str, typer.Argument(help="registered model: NAME@ALIAS, NAME@VERSION, or NAME for the newest")],
    store: Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store to publish the bundle to")] = Path(
        "var/releases"
    ),
    key: Annotated[
        str | None, typer.Option(envvar="COPPICE_SIGNING_KEY", help="sign the bundle: a private key's name or file")
    ] = None,
) -> None:
    """Compile a registered model to ONNX and Treelite, prove it equal to the original, and publish the bundle.

    The proof asks both compiled forms and the native library the same awkward rows: every split threshold and one ulp to
    either side, missing values, every category, the holdout. Margins must be equal bit for bit or there is no bundle.
    The last line printed is the bundle's digest, which `coppice routes publish` takes.

    \b
        coppice compile churn@champion
        coppice compile churn@3 --store /mnt/releases
        coppice compile churn@3 --key release-2026           # `coppice keys new release-2026` made it
    """
    from compile import keys, signing
    from compile.build import build_bundle
    from training.registry import download

    signs = keys.private_key(key) if key else None
    if signs:
        keys.public_half(signs)  # a key that can't sign is refused now, not after the proof
    began = perf_counter()

    def progress(text: str) -> None:
        typer.echo(f"  {perf_counter() - began:6.1f} s  {text}")

    shelf = download(model)
    progress(f"downloaded {shelf.model} version {shelf.version} ({shelf.algorithm})")
    with tempfile.TemporaryDirectory() as folder:
        built = build_bundle(
            shelf.native,
            shelf.schema,
            shelf.rows,
            folder,
            name=shelf.model,
            version=shelf.version,
            classes=shelf.classes,
            threshold=shelf.threshold,
            reference=shelf.reference,
            card=shelf.card,
            lineage=shelf.lineage,
            progress=progress,
        )
        digest = publish(built, store)
    progress(f"published to {locate(store, digest)}")
    if signs:
        progress(f"signed by {signing.sign(locate(store, digest), signs)}")
    typer.echo(digest)


def score_file(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    rows: Annotated[Path, typer.Argument(help="CSV with a header; an empty cell is a missing value")],
    backend: Annotated[str | None, typer.Option(help="treelite or onnx; default: the faster one")] = None,
    margin: Annotated[bool, typer.Option(help="raw scores instead of probabilities")] = False,
) -> None:
    """Score a CSV with the very runtime that serves; one number a line on standard output.

    \b
        coppice score var/releases/bundles/3f2a... rows.csv > scores.txt
    """
    predictor = open_predictor(bundle, backend)
    schema = predictor.manifest.schema
    try:
        with rows.open(newline="", encoding="utf-8") as file:
            matrix = encode(schema, list(_typed(schema, csv.DictReader(file))))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise BundleRefused(f"{rows}: {unreadable}") from None
    except InputRefused as refused:
        raise CompileError(f"{rows}: {refused}") from None
    scores = predictor.margin(matrix) if margin else predictor.score(matrix)
    sys.stdout.writelines(f"{score!r}\n" for score in scores[:, 0].tolist())


def _typed(schema: FeatureSchema, rows: Iterable[dict[str, str]]) -> Iterable[dict[str, object]]:
    """CSV knows strings alone: each cell becomes what the schema says its column is."""
    for number, row in enumerate(rows, start=2):
        try:
            yield {f.name: _cell(f, row[f.name]) for f in schema.features if row.get(f.name) is not None}
        except ValueError as wrong:
            raise InputRefused(f"line {number}", str(wrong)) from None


def _cell(feature: Feature, text: str) -> object:
    text = text.strip()
    if not text:
        return None
    if feature.kind == "number":
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{feature.name}: {text!r} is not a number") from None
    if feature.kind == "boolean":
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{feature.name}: {text!r} is not true or false")
        return text.lower() in ("true", "1")
    return text
