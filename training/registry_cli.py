"""`coppice models show|alias|diff|lineage`: what a registered version is, how two differ, and where one came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from training.errors import NotRegistered

if TYPE_CHECKING:
    from training.features import Feature, FeatureSchema
    from training.registry import Facts

Reference = Annotated[str, typer.Argument(metavar="NAME[@ALIAS|@VERSION]", help="a registered version")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]
NONE = "-"


def show(reference: Reference, as_json: AsJson = False) -> None:
    """Say what a version is: its figures with intervals, threshold, inputs, aliases and bundle.

    \b
        coppice models show churn@champion
    """
    from training import registry

    registered, (facts, schema) = registry.resolve(reference), registry.described(reference)
    if as_json:
        told = {
            "model": registered.model,
            "version": registered.version,
            "aliases": registered.aliases,
            "algorithm": facts.algorithm,
            "classes": facts.classes,
            "threshold": facts.threshold,
            "metrics": facts.metrics,
            "intervals": facts.intervals,
            "schema": json.loads(schema.to_json()),
            "bundle": registered.tags.get("bundle"),
        }
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{registered.reference}  {', '.join(registered.aliases)}")
    typer.echo(f"  algorithm  {facts.algorithm}, {_answers(facts)}")
    typer.echo(f"  inputs     {', '.join(f'{f.name} ({f.kind})' for f in schema.features)}")
    typer.echo(f"  bundle     {registered.tags.get('bundle', 'not compiled yet')}")
    for name in facts.metrics:
        typer.echo(f"  {name:20} {_figure(facts, name)}")


def alias(
    reference: Reference,
    name: Annotated[str, typer.Argument(help="the alias, such as champion")],
    drop: Annotated[bool, typer.Option("--drop", help="remove the alias from the model instead")] = False,
) -> None:
    """Point an alias at a version, or remove it. Routes, not aliases, decide who serves.

    \b
        coppice models alias churn@3 candidate
        coppice models alias churn candidate --drop
    """
    from training import registry

    registered = registry.resolve(reference)
    if not drop:
        if not name or "@" in name or name.isdigit():
            raise NotRegistered(f"{name}: can't be an alias: it has an @, or reads as a version")
        registry.alias(registered, name)
        typer.echo(f"{registered.model}@{name} is version {registered.version}")
        return
    if name not in registry.aliases(registered.model):
        raise NotRegistered(f"{registered.model}@{name}: there is no such alias")
    registry.drop_alias(registered.model, name)
    typer.echo(f"{registered.model}@{name} is no more")


def diff(
    before: Reference,
    after: Annotated[str, typer.Argument(metavar="NAME[@ALIAS|@VERSION]", help="the version to hold against it")],
) -> None:
    """How two versions differ: inputs, settings, data, and figures with intervals. What is the same is left out.

    Each version's figures are of its own holdout; where the data or the split differ, so do the rows.

    \b
        coppice models diff churn@champion churn@4
    """
    from training import registry

    names = [registry.resolve(reference).reference for reference in (before, after)]
    (facts, schema), (other, other_schema) = (registry.described(reference) for reference in names)
    typer.echo(f"{'':28} {names[0]:34} {names[1]}")
    rows = [*_inputs(schema, other_schema), *_settings(facts, other)]
    for title, one, two in rows:
        typer.echo(f"{title:28} {one:34} {two}")
    for metric in {**facts.metrics, **other.metrics}:
        one, two = _figure(facts, metric), _figure(other, metric)
        if one != two:
            typer.echo(f"{metric:28} {one:34} {two}")
            rows.append((metric, one, two))
    if not rows:
        typer.echo("no difference")
    elif facts.data_sha256 != other.data_sha256:
        typer.echo("the data differ: these figures are of different rows")


def lineage(
    reference: Annotated[
        str,
        typer.Argument(metavar="NAME[@ALIAS|@VERSION] or DIGEST", help="a registered version, or a bundle's digest"),
    ],
    as_json: AsJson = False,
) -> None:
    """Where a version came from: bundle, version, run, data hash, recipe, commit. A bundle's digest leads back, too.

    \b
        coppice models lineage churn@champion
        coppice models lineage 3f2a91c0
    """
    from training import registry

    registered = registry.find(reference)
    facts, schema = registry.described(registered.reference)
    told = {
        "bundle": registered.tags.get("bundle", NONE),
        "version": registered.reference,
        "run": registered.run_id,
        "data": facts.source,
        "data_sha256": facts.data_sha256,
        "schema": schema.fingerprint,
        "commit": facts.git_commit,
        **{f"recipe.{key}": value for key, value in facts.recipe.items()},
    }
    if as_json:
        typer.echo(json.dumps(told))
        return
    for title, value in told.items():
        typer.echo(f"{title:28} {value}")


def _answers(facts: Facts) -> str:
    if facts.recipe.get("task") == "ranking":
        return f"a score by {facts.target}, the highest first"
    if not facts.classes:
        return f"the value of {facts.target}"
    if len(facts.classes) > 2:
        return f"one of {', '.join(facts.classes)}"
    return f"{facts.classes[0]} or {facts.classes[1]} above {facts.threshold:g}"


def _figure(facts: Facts, name: str) -> str:
    if name not in facts.metrics:
        return NONE
    low, high = facts.intervals.get(name, (None, None))
    ends = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
    return f"{facts.metrics[name]:.4f}{ends}"


def _inputs(schema: FeatureSchema, other: FeatureSchema) -> list[tuple[str, str, str]]:
    ours, theirs = ({feature.name: feature for feature in each.features} for each in (schema, other))
    rows = []
    for name in {**ours, **theirs}:
        one, two = ours.get(name), theirs.get(name)
        if one != two:
            rows.append((f"input {name}", _kind(one), _kind(two)))
    if not rows and schema.names != other.names:
        rows.append(("inputs", ", ".join(schema.names), ", ".join(other.names)))
    return rows


def _kind(feature: Feature | None) -> str:
    if feature is None:
        return NONE
    return f"{feature.kind}, {len(feature.categories)} categories" if feature.categories else feature.kind


def _settings(facts: Facts, other: Facts) -> list[tuple[str, str, str]]:
    rows = []
    for field in ("data_sha256", "git_commit", "target", "threshold"):
        one, two = str(getattr(facts, field)), str(getattr(other, field))
        if one != two:
            rows.append((field, one[:16], two[:16]))
    for key in sorted(facts.recipe.keys() | other.recipe.keys()):
        one, two = facts.recipe.get(key, NONE), other.recipe.get(key, NONE)
        if one != two:
            rows.append((key, one, two))
    return rows
