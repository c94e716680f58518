"""The parity table: in words for people, from a manifest."""

from __future__ import annotations

from compile.bundle import Manifest


def parity_lines(manifest: Manifest) -> list[str]:
    """A Markdown table of backends, then what was refused and what the usual converters do."""
    lines = [
        f"Held against {manifest.native.library} {manifest.native.version} ({manifest.native.kind}) on the original rows; "
        "margins bit for bit where promised, scores within 1e-6.",
        "",
        "| backend | rows asked | rows that differ | largest margin difference | largest score difference | promise |",
        "|---|---|---|---|---|---|",
    ]
    for name, backend in manifest.backends.items():
        parity = backend.parity
        margin = "-" if parity.max_margin_difference is None else f"{parity.max_margin_difference:.3g}"
        lines.append(
            f"| {name} | {sum(parity.rows.values()):,} | {parity.bad_rows} | {margin} | "
            f"{parity.max_score_difference:.3g} | {parity.promise} |"
        )
    first = next(iter(manifest.backends.values())).parity.rows
    lines += ["", "Rows: " + ", ".join(f"{count:,} {kind}" for kind, count in first.items()) + "."]
    lines += [f"- refused {name}: {reason[:300]}" for name, reason in manifest.refused_backends.items()]
    lines += [f"- {tool}: {finding}" for tool, finding in manifest.cross_checks.items()]
    return lines


def with_parity(card: str, manifest: Manifest) -> str:
    """The model card, with what the compiled model was held against."""
    return "\n".join([card.rstrip("\n"), "", "## Compiled model", *parity_lines(manifest), ""])
