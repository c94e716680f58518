"""The panels of what is released: which arm has which share of the traffic, and where each model came from.

arms      {"generation", "at", "by", "note", "plan", "arms": [Arm], "shadows": [Arm], "history": [{"generation", "at", "by",
          "note", "shares": {arm: share}}]}
          Arm: arm, version, bundle, share (a shadow's is of what it is asked to watch), and what it did in the asked span:
          rows, requests, errors, error_rate, p50_ms, p95_ms, p99_ms; null where it did nothing
lineage   {"bundles": [{"arms", "bundle", "version", "task", "native", "backends", "lineage", "toolchain", "card"}]}
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from compile.bundle import Manifest
from compile.errors import BundleRefused
from monitoring import dashboard_words as say
from monitoring.dashboard_charts import shares, table
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_panels import Figures, Nothing, Panel, Sources
from monitoring.dashboard_traffic import answered
from serving.routes import CHAMPION, POINTS, Routes

RECIPE = "recipe."  # how a lineage names a recipe's settings
DID = ("rows", "requests", "errors", "error_rate", "p50_ms", "p95_ms", "p99_ms")


def arms(sources: Sources, asked: Asked) -> Panel:
    now = _present(sources, asked)
    did = answered(sources, asked)
    told = _shares(now)
    answering = [
        _arm(sources, name, digest, told.get(name, 0.0), did, shadow=False) for name, digest in now.arms.items()
    ]
    shadows = [_arm(sources, each.name, each.bundle, each.sample, did, shadow=True) for each in now.shadow]
    history = [
        {"generation": each.generation, "at": each.at, "by": each.by, "note": each.note, "shares": _shares(each)}
        for each in sources.releases.history(asked.model)
    ]
    head = ["arm", "version", "share", "rows", "failed", "p50", "p95", "p99"]
    body = shares("Share of requests by arm", sorted(told.items(), key=lambda item: item[0] != CHAMPION))
    body += table(head, [_row(each) for each in answering])
    if shadows:
        body += "<h3>Shadows</h3>" + table(["shadow", *head[1:]], [_row(each) for each in shadows])
    body += f"<h3>Experiment</h3>{_plan(now)}{_history(history)}"
    figures = {
        "generation": now.generation,
        "at": now.at,
        "by": now.by,
        "note": now.note,
        "plan": now.plan,
        "arms": answering,
        "shadows": shadows,
        "history": history,
    }
    source = f"Generation {now.generation} of the release store {sources.releases.store}"
    source += (f", published {now.at}" if now.at else "") + (f" by {now.by}" if now.by else "")
    source += f". What arms did: {say.span(asked.since_us, asked.until_us)}, from the lake."
    return Panel(figures, body, source, f"generation {now.generation}")


def lineage(sources: Sources, asked: Asked) -> Panel:
    now = _present(sources, asked)
    named = {**now.arms, **{f"{shadow.name} (shadow)": shadow.bundle for shadow in now.shadow}}
    bundles, body = [], ""
    for digest in now.bundles:
        arms_of = [name for name, bundle in named.items() if bundle == digest]
        try:
            bundle = sources.releases.bundle(digest)
        except BundleRefused as refused:
            body += f'<p class="trouble">{html.escape(", ".join(arms_of))}: {html.escape(str(refused))}</p>'
            continue
        if asked.version in (None, bundle.manifest.version) and (asked.arm is None or asked.arm in arms_of):
            found = _lineage(arms_of, digest, bundle.manifest, card=bundle.has_card)
            bundles.append(found)
            body += _lineage_body(found, asked.model)
    body = body or '<p class="empty">No bundle that is routed now fits the filters.</p>'
    return Panel(
        {"bundles": bundles}, body, f"From the manifests of the bundles that generation {now.generation} routes."
    )


def _present(sources: Sources, asked: Asked) -> Routes:
    now = sources.releases.present(asked.model) if asked.model else None
    if now is None:
        whom = asked.model or "any model"
        verb = f"coppice routes publish {asked.model or 'MODEL'}"
        raise Nothing(f"The release store {sources.releases.store} has no routes of {whom} yet. Run `{verb}`.")
    return now


def _shares(now: Routes) -> dict[str, float]:
    found = dict.fromkeys(now.arms, 0.0)
    for slot in now.slots:
        found[slot.arm] += (slot.hi - slot.lo) / POINTS
    return found


def _arm(
    sources: Sources,
    name: str,
    digest: str,
    share: float,
    did: dict[tuple[str, str, bool], Figures],
    *,
    shadow: bool,
) -> Figures:
    version = sources.releases.version(digest)
    own = did.get((name, version or "", shadow), {})
    return {"arm": name, "version": version, "bundle": digest, "share": share, **{each: own.get(each) for each in DID}}


def _row(each: Figures) -> list[str]:
    times = [say.ms(each[name]) for name in ("p50_ms", "p95_ms", "p99_ms")]
    return [
        each["arm"],
        each["version"] or "?",
        say.share(each["share"]),
        say.count(each["rows"]),
        say.share(each["error_rate"]),
        *times,
    ]


def _history(generations: Sequence[Figures]) -> str:
    rows = [
        [*(str(each[name]) for name in ("generation", "at", "by", "note")), _told_shares(each["shares"])]
        for each in generations
    ]
    return table(["generation", "at", "by", "note", "shares"], rows, summary="History of generations")


def _told_shares(of: Mapping[str, float]) -> str:
    return ", ".join(f"{arm} {say.share(share)}" for arm, share in of.items())


def _plan(now: Routes) -> str:
    if now.plan is None:
        return '<p class="note">No plan is registered with these routes.</p>'
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in now.plan.items()
    ]
    return table(["plan", ""], rows)


def _lineage(arms_of: list[str], digest: str, manifest: Manifest, *, card: bool) -> Figures:
    native = manifest.native
    return {
        "arms": arms_of,
        "bundle": digest,
        "version": manifest.version,
        "task": manifest.task,
        "native": f"{native.library} {native.version}, {native.kind}, {native.trees} trees",
        "backends": sorted(manifest.backends),
        "lineage": dict(manifest.lineage),
        "toolchain": dict(manifest.toolchain),
        "card": card,
    }


def _lineage_body(found: Figures, model: str) -> str:
    told: dict[str, Any] = {
        "bundle": found["bundle"],
        "task": found["task"],
        "trained by": found["native"],
        "backends": ", ".join(found["backends"]),
        **{name: value for name, value in found["lineage"].items() if not name.startswith(RECIPE)},
        "toolchain": ", ".join(f"{name} {version}" for name, version in found["toolchain"].items()),
    }
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in told.items()
        if value
    )
    title = f"{', '.join(found['arms'])}: {model} version {found['version']}"
    card = f'<p><a href="cards/{html.escape(found["bundle"])}">Model card</a></p>' if found["card"] else ""
    recipe = [[name.removeprefix(RECIPE), value] for name, value in found["lineage"].items() if name.startswith(RECIPE)]
    folded = table(["setting", "value"], recipe, summary="Recipe") if recipe else ""
    return f'<h3>{html.escape(title)}</h3><dl class="lineage">{rows}</dl>{folded}{card}'
