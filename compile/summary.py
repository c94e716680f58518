"""What a bundle is, in words for a reader or as JSON for a program.

The manifest's texts are whoever's made it: what a terminal would obey is replaced before it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from compile.bundle import Backend, Manifest, Measured
from compile.links import Link
from training.features import Feature
from training.view import Lookup

WIDTH = 14


def as_text(path: Path, manifest: Manifest, measured: Measured | None, signer: str | None) -> str:
    """Some twenty lines and one for each input. `signer` is what the signature claims."""
    native = manifest.native
    lines = [
        f"{manifest.model} version {manifest.version}: {manifest.task}, {', '.join(manifest.outputs)}",
        *_row("bundle", [path.name, f"format {manifest.format}"]),
        *_row("signed by", [f"{signer} (as it claims; `coppice verify` looks)" if signer else "nobody"]),
        *_row("native", [f"{native.library} {native.version}, {native.kind}, {native.trees} trees"]),
        *_row("link", [_members(manifest.link), *_labels(manifest)]),
        *_row("inputs", [f"{manifest.schema.width}, schema {manifest.schema.fingerprint[:16]}..."]),
        *_row("", _inputs(manifest.schema.features)),
        *_row("looked up", _looked_up(manifest.lookup)),
        *_row("backends", (_backend(name, backend) for name, backend in sorted(manifest.backends.items()))),
        *_row("cross-checks", _pairs(manifest.cross_checks)),
        *_row("measured", _measured(measured)),
        *_row("toolchain", [", ".join(f"{tool} {version}" for tool, version in manifest.toolchain.items())]),
        *_row("lineage", _pairs(manifest.lineage)),
        *_row("files", (f"{name:20} {entry.bytes:>12,} bytes" for name, entry in manifest.files.items())),
    ]
    return "\n".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines)


def as_json(path: Path, manifest: Manifest, measured: Measured | None, signer: str | None) -> str:
    """The manifest's members, and beside them `digest`, `measured` and `signer`; ASCII escapes for what can't be printed."""
    beside = {"digest": path.name, "measured": measured, "signer": signer}
    whole = msgspec.to_builtins(manifest) | msgspec.to_builtins(beside)
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def _row(title: str, values: Iterable[str]) -> Iterator[str]:
    for number, value in enumerate(values):
        yield f"  {title if number == 0 else '':{WIDTH}}{value}"


def _pairs(pairs: Mapping[str, str]) -> Iterator[str]:
    return (f"{name}: {value}" for name, value in pairs.items())


def _looked_up(lookup: Lookup | None) -> Iterator[str]:
    if lookup is not None:
        yield f"by {lookup.entity}, in the view {lookup.view}"
        unknown = "a 404" if lookup.default is None else "the default"
        yield f"beside it: {', '.join(lookup.override) or 'nothing'}; the unknown: {unknown}"


def _members(link: Link) -> str:
    """What differs from the plain link of its kind."""
    plain = msgspec.structs.asdict(Link(link.kind))
    members = msgspec.structs.asdict(link)
    odd = (f"{name} {str(value)[:80]}" for name, value in members.items() if value != plain[name])
    return ", ".join([link.kind, *odd])


def _labels(manifest: Manifest) -> list[str]:
    labels = f"classes {', '.join(manifest.classes)}"
    return (
        [labels + f"; above {manifest.threshold:g}" if manifest.task == "binary" else labels]
        if manifest.classes
        else []
    )


def _inputs(features: tuple[Feature, ...]) -> Iterator[str]:
    longest = min(32, max(len(feature.name) for feature in features))
    for feature in features:
        told = [f"{feature.name:{longest}}  {feature.kind:8}"]
        if feature.categories:
            shown = ", ".join(feature.categories[:6]) + (", ..." if len(feature.categories) > 6 else "")
            told.append(f"{len(feature.categories)} ({shown}); unseen: {feature.unseen};")
        if feature.low is not None or feature.high is not None:
            told.append(f"{feature.low} to {feature.high};")
        told.append(f"null: {feature.missing}")
        yield " ".join(told)


def _backend(name: str, backend: Backend) -> str:
    parity = backend.parity
    rows = sum(parity.rows.values())
    return (
        f"{name:10} {backend.file}: {parity.bad_rows} of {rows:,} rows differ; margins within "
        f"{parity.max_margin_difference:g}, scores within {parity.max_score_difference:.2g}"
    )


def _measured(measured: Measured | None) -> Iterator[str]:
    if measured is None:
        yield "nothing"
        return
    yield f"{measured.chosen} serves, being the fastest on {measured.machine or 'an unnamed machine'}"
    for name, us in measured.us.items():
        yield f"{name:10} " + ", ".join(f"{value:g} µs a call of {rows}" for rows, value in us.items())
