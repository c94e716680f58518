"""docs/kinds.md: which kinds are served, by what, how exactly, and why the others are refused."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from judge import EXACT, Verdict

LIBRARIES = ("xgboost", "lightgbm", "scikit-learn", "onnxruntime", "treelite", "numpy", "pandas")
HEAD = (
    "Every kind is trained, built into a bundle, opened as a server opens it, and asked rows at each of its thresholds and "
    "beside them, missing, tiny, huge, infinite and of unknown categories where its library answers those. Wanted are "
    "the library's own answers to the original rows: margins (raw scores) equal bit for bit, scores within 1e-6 of "
    "max(1, |score|). A kind that can't be held to this is refused with the reason, and no bundle is made."
)


def page(verdicts: list[list[Verdict]], command: str) -> str:
    """Markdown; one list of verdicts a kind, one verdict a seed."""
    wrong = [seeds for seeds in verdicts if any(verdict.wrong for verdict in seeds)]
    served = [seeds for seeds in verdicts if seeds not in wrong and all(verdict.backends for verdict in seeds)]
    rows = sum(verdict.rows for seeds in served for verdict in seeds)
    exact = [off for seeds in served for verdict in seeds for off in _exact(verdict) if not seeds[0].kind.twofold]
    lines = [
        "# Kinds of models",
        "",
        HEAD,
        "",
        f"**{len(verdicts)} kinds: {len(served)} served, {len(verdicts) - len(served) - len(wrong)} refused, {len(wrong)} "
        f"wrong.** {rows:,} rows asked of what is served; margins differ by {max(exact, default=0.0):g} at most, scores by "
        f"{max((verdict.score_off for seeds in served for verdict in seeds), default=0.0):.2g}.",
        "",
        f"`{command}`, commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python "
        f"{platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + ".",
        "",
    ]
    for library in dict.fromkeys(seeds[0].kind.library for seeds in verdicts):
        lines += [f"## {library}", "", "| kind | what | served by, or why not | rows | margins off | scores off |"]
        lines.append("|---|---|---|---:|---:|---:|")
        lines += [_row(seeds) for seeds in verdicts if seeds[0].kind.library == library]
        lines.append("")
    return "\n".join(lines)


def _row(seeds: list[Verdict]) -> str:
    kind = seeds[0].kind
    start = f"| `{kind.id}` | {_cell(kind.says)} |"
    wrong = next((verdict.wrong[0] for verdict in seeds if verdict.wrong), None)
    if wrong is not None:
        return f"{start} WRONG: {_cell(wrong)} | | | |"
    refused = next((verdict.refused for verdict in seeds if verdict.refused is not None), None)
    if refused is not None:
        return f"{start} refused: {_cell(refused)} | | | |"
    margins = [off for verdict in seeds for off in _exact(verdict)]
    return (
        f"{start} {', '.join(seeds[0].backends)} | {sum(verdict.rows for verdict in seeds):,} | "
        f"{f'{max(margins):.2g}' if margins else ''} | {max(verdict.score_off for verdict in seeds):.2g} |"
    )


def _exact(verdict: Verdict) -> list[float]:
    """What the compiled backends' margins are off; the native library behind its own cast may be an ulp."""
    return [off for backend, off in verdict.margins_off.items() if backend in EXACT]


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= 200 else line[:197] + "..."


def _commit() -> str:
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return head.stdout.strip() or "unknown"
