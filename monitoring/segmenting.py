"""Parts of a window by the value of one feature, read from the encoded rows by the model's schema."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monitoring.errors import MonitoringError
from training.features import Feature, FeatureSchema, Matrix
from training.intervals import Labels

MISSING, OTHER = "(missing)", "(other)"


def segments_of(
    schema: FeatureSchema, name: str, features: Matrix | None, among: Labels
) -> Iterator[tuple[str, Labels]]:
    """(value, which rows) of each value that rows of `among` have. A category that was unseen is `(other)` where it has a code
    of its own, and `(missing)` where the schema makes it so. Raises MonitoringError for a feature without values to name."""
    if name not in schema.names:
        raise MonitoringError(f"--segment: the model has no feature {name!r}; it has {', '.join(schema.names)}")
    place = schema.names.index(name)
    feature = schema.features[place]
    if feature.kind == "number":
        raise MonitoringError(f"--segment: {name} is a number; segments are of categories and booleans")
    if features is None:
        raise MonitoringError(f"--segment: the rows came without features, which {name} is read from")
    column = features[:, place]
    there = np.unique(column[among & ~np.isnan(column)])
    for code in there.tolist():
        yield _named(feature, code), among & (column == code)
    if (missing := among & np.isnan(column)).any():
        yield MISSING, missing


def _named(feature: Feature, code: float) -> str:
    if feature.kind == "boolean":
        return "true" if code else "false"
    return feature.categories[int(code)] if 0 <= code < len(feature.categories) else OTHER
