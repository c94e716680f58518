"""The verbs of trust: `coppice keys`, `sign`, `verify` and `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compile import bundle, keys, signing
from compile.runtime import open_predictor
from compile.summary import as_json, as_text
from compile.trust import Trust

keys_app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="What signs bundles, and whom this user trusts."
)

Bundle = Annotated[Path, typer.Argument(help="a bundle's folder, as var/releases/bundles/3f2a...")]
Folder = Annotated[Path | None, typer.Option(help="folder of the keys; default: ~/.config/coppice/keys")]


@keys_app.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="what to call it, such as release-2026")], folder: Folder = None
) -> None:
    """Make a key pair: NAME.key is secret and signs, NAME.pub verifies. Both are this user's, who trusts it from now on.

    \b
        coppice keys new release-2026
        coppice compile churn@champion --key release-2026
        scp ~/.config/coppice/keys/release-2026.pub server:    # there: coppice keys trust release-2026.pub
    """
    folder = folder or keys.key_folder()
    typer.echo(f"{keys.new_key(folder, name)}  {folder / (name + keys.PUBLIC)}")


@keys_app.command("list")
def list_keys(folder: Folder = None) -> None:
    """List the trusted keys: fingerprint, name, and whether the half that signs is here. To trust one no longer, delete it."""
    folder = folder or keys.key_folder()
    known = keys.public_keys(folder)
    for fingerprint, file in known.items():
        signs = "signs" if file.with_suffix(keys.PRIVATE).is_file() else "verifies"
        typer.echo(f"{fingerprint}  {signs:8}  {file.stem}")
    if not known:
        typer.echo(f"{folder}: no keys yet: coppice keys new NAME")


@keys_app.command("trust")
def trust_key(
    file: Annotated[Path, typer.Argument(help="another's public key, NAME.pub")], folder: Folder = None
) -> None:
    """Trust another's key from now on. Compare the fingerprint that is printed with the one that its owner tells you.

    \b
        coppice keys trust release-2026.pub
        COPPICE_TRUST=signed coppice serve
    """
    folder = folder or keys.key_folder()
    typer.echo(f"{keys.add_key(folder, file)}  {file.stem}")


def sign_bundle(
    path: Bundle,
    key: Annotated[str, typer.Option(envvar="COPPICE_SIGNING_KEY", help="a private key: its name, or its file")],
) -> None:
    """Sign a bundle, or sign it anew by another key. The signature covers every file, measured.json too.

    \b
        coppice sign var/releases/bundles/3f2a... --key release-2026
    """
    typer.echo(f"signed by {signing.sign(path.absolute(), keys.private_key(key))}")


def verify_bundle(
    path: Bundle,
    trust: Annotated[
        str, typer.Option(envvar="COPPICE_TRUST", help="hashed, signed, or signed:PATH of the trusted keys")
    ] = "hashed",
) -> None:
    """Verify a bundle: every file's hash, its signature, and by each backend the probe. Exit code 2, and which file, if not.

    What a trusted key signed is written down for this host: its workers open it under COPPICE_TRUST=signed, and may run
    the native library in it.

    \b
        coppice verify var/releases/bundles/3f2a...
        coppice verify var/releases/bundles/3f2a... --trust signed
    """
    path = path.absolute()
    manifest = bundle.read(path)
    typer.echo(f"{'manifest.json':20} {'':>12}  {path.name[:16]}...  ok")
    for name, entry in manifest.files.items():
        typer.echo(f"{name:20} {entry.bytes:>12,}  {entry.sha256[:16]}...  ok")
    if bundle.measured(path) is not None:
        typer.echo(f"{bundle.MEASURED:20} {(path / bundle.MEASURED).stat().st_size:>12,}  outside the digest")
    typer.echo(f"{'signature':20} {_signature(path, Trust.of(trust))}")
    for backend in sorted(manifest.backends):
        rows = len(open_predictor(path, backend).probe_rows)
        typer.echo(f"{backend:20} {rows:>12,} probe rows, margins equal bit for bit")


def inspect_bundle(
    path: Bundle, json: Annotated[bool, typer.Option("--json", help="everything, as one JSON object")] = False
) -> None:
    """Say what a bundle is: model, inputs, backends and their proof, tools, lineage, sizes. Its hashes are verified first.

    \b
        coppice inspect var/releases/bundles/3f2a...
        coppice inspect var/releases/bundles/3f2a... --json | jq .lineage
    """
    path = path.absolute()
    manifest = bundle.read(path)
    told = as_json if json else as_text
    typer.echo(told(path, manifest, bundle.measured(path), signing.signer(path)))


def _signature(path: Path, trust: Trust) -> str:
    """Under `hashed` a signature need not be there or be known; one that is known must be right."""
    known = trust.fingerprints() if trust.keys_at else keys.public_keys(keys.key_folder())
    claimed = signing.signer(path)
    if not trust.keys_at and bundle.signature(path) is None:
        return "none"
    if not trust.keys_at and claimed and claimed not in known:
        return f"by {claimed}, which is not among the keys of {keys.key_folder()}: not checked"
    found = signing.verify(path, known)
    return f"by {known[found].stem} ({found[:16]}...), over every file  ok"
