"""The verbs of compile: `coppice compile`, `coppice parity` and `coppice score`."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from compile.bundle import Manifest, locate, publish, read
from compile.errors import BundleRefused, CompileError
from compile.report import parity_lines
from compile.rows_file import read_rows
from compile.runtime import open_predictor

if TYPE_CHECKING:
    from training.registry import Registered


def compile_model(
    model: Annotated[str, typer.Argument(help="registered model: NAME@ALIAS, NAME@VERSION, or NAME for the newest")],
    store: Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store to publish the bundle to")] = Path(
        "var/releases"
    ),
    backend: Annotated[
        list[str] | None,
        typer.Option(help="a form to make: treelite, onnx, native; repeat it; default: treelite and onnx"),
    ] = None,
    cross_check: Annotated[
        bool, typer.Option(help="also ask what the usual converters make of the model; some seconds for a large one")
    ] = True,
    key: Annotated[
        str | None, typer.Option(envvar="COPPICE_SIGNING_KEY", help="sign the bundle: a private key's name or file")
    ] = None,
) -> None:
    """Compile a registered model to ONNX and Treelite, prove it equal to the original, and publish the bundle.

    The proof asks both compiled forms and the native library the same awkward rows: every split threshold and one ulp to
    either side, missing values, every category, the holdout. Margins must be equal bit for bit or there is no bundle.
    The last line printed is the bundle's digest, which `coppice routes publish` takes.

    Forms: `treelite` is walked by a C kernel and is nearly always the fastest; `onnx` runs in ONNX Runtime, also where no
    kernel was built; `native` is machine code, made by gcc in seconds to a minute, and opened only where it was built or
    came signed.

    \b
        coppice compile churn@champion
        coppice compile churn@3 --store /mnt/releases
        coppice compile churn@3 --backend treelite --backend onnx --backend native
        coppice compile churn@3 --key release-2026           # `coppice keys new release-2026` made it
    """
    from compile import keys, signing
    from compile.build import build_bundle
    from compile.candidates import BACKENDS, NAMES
    from training.registry import download, resolve

    wanted = [name for name in NAMES if name in (backend or BACKENDS)]
    for name in backend or ():
        if name not in NAMES:
            raise CompileError(f"--backend {name}: is none of {', '.join(NAMES)}")
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
            pictures=shelf.pictures,
            lineage=shelf.lineage,
            lookup=shelf.facts.lookup,
            backends=wanted,
            cross_check=cross_check,
            progress=progress,
        )
        digest = publish(built, store)
    published = locate(store, digest)
    progress(f"published to {published}")
    if signs:
        progress(f"signed by {signing.sign(published, signs)}")
    manifest, registered = read(published), resolve(f"{shelf.model}@{shelf.version}")
    _record(registered, digest, manifest)
    _add_to_version(registered, published, manifest, progress)
    typer.echo(digest)


def parity(
    target: Annotated[str, typer.Argument(help="a bundle's folder, the digest of one in the store, or NAME[@VERSION]")],
    store: Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store")] = Path("var/releases"),
) -> None:
    """Print how the compiled forms of a model compare with the trained model, and what the usual converters make of it.

    Of a bundle, the table that was made when it was proved, which travels in it. Of a registered model, a new one: every
    form is compiled and held against the native library here and now, and nothing is written. Exit code 1 where no form
    answers as the trained model does, with the row that differs.

    \b
        coppice parity churn@champion
        coppice parity var/releases/bundles/3f2a...
    """
    path = _bundle(target, store)
    manifest = _proved_now(target) if path is None else read(path)
    typer.echo(f"{manifest.model} version {manifest.version}, {manifest.task}")
    for line in parity_lines(manifest):
        typer.echo(line)


def _bundle(target: str, store: Path) -> Path | None:
    """The bundle that is meant, or None where it is a registered model. Raises BundleRefused for a digest of several."""
    if Path(target).is_dir():
        return Path(target)
    if not re.fullmatch("[0-9a-f]{6,64}", target):
        return None
    found = sorted(locate(store, "").glob(f"{target}*"))
    if len(found) > 1:
        raise BundleRefused(f"{target}: {len(found)} bundles in {store} begin so")
    return found[0] if found else None


def _proved_now(reference: str) -> Manifest:
    from compile.build import prove_model
    from training.registry import download

    began = perf_counter()
    shelf = download(reference)
    proven = prove_model(
        shelf.native,
        shelf.schema,
        shelf.rows,
        name=shelf.model,
        version=shelf.version,
        classes=shelf.classes,
        progress=lambda text: typer.echo(f"  {perf_counter() - began:6.1f} s  {text}", err=True),
    )
    return proven.manifest


def _record(registered: Registered, digest: str, manifest: Manifest) -> None:
    """The parity table among the run's artifacts, and the digest and the count of rows with the registered version."""
    from training import registry

    registry.attach(registered.run_id, f"compiled/{digest[:12]}/parity.md", "\n".join(parity_lines(manifest)) + "\n")
    registry.tag(registered, "bundle", digest)
    rows = {name: sum(backend.parity.rows.values()) for name, backend in manifest.backends.items()}
    registry.tag(registered, "parity", ", ".join(f"{name}: 0 of {count} rows differ" for name, count in rows.items()))


def _add_to_version(registered: Registered, bundle: Path, manifest: Manifest, progress: Callable[[str], None]) -> None:
    """So that MLflow's own ways to load the version answer by the bundle; a registry that can't hold it keeps what it has."""
    from training.errors import NotRegistered
    from training.registry import add_compiled

    schema, outputs = manifest.schema, len(manifest.outputs)
    try:
        add_compiled(registered, bundle, loader="compile.pyfunc", schema=schema, outputs=outputs)
        progress(f"models:/{registered.model}/{registered.version} answers by it, in MLflow too")
    except NotRegistered as refused:
        progress(f"MLflow goes on answering by the native model: {refused}")


def score_file(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    rows: Annotated[Path, typer.Argument(help="CSV with a header; an empty cell is a missing value")],
    backend: Annotated[str | None, typer.Option(help="treelite or onnx; default: the faster one")] = None,
    margin: Annotated[bool, typer.Option(help="raw scores instead of probabilities")] = False,
) -> None:
    """Score a CSV with the very runtime that serves; a row's scores a line on standard output, with commas between them.

    \b
        coppice score var/releases/bundles/3f2a... rows.csv > scores.txt
    """
    predictor = open_predictor(bundle, backend)
    matrix = read_rows(rows, predictor.manifest.schema)
    scores = predictor.margin(matrix) if margin else predictor.score(matrix)
    sys.stdout.writelines(",".join(map(repr, row)) + "\n" for row in scores.tolist())
