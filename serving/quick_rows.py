"""A FeatureSchema as C reads it: the `feature` array of quick.h."""

from __future__ import annotations

import ctypes
import json
import math
from typing import Any

from serving import quick_layout
from serving.decoding import fill_of, unseen_of
from serving.quick_layout import KINDS, MAX_WIDTH, array_of, text
from training.features import Feature, FeatureSchema


class QuickRows:
    """Made where a generation is loaded, off the loop: it takes some µs a feature."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.keep: list[Any] = []
        self.width = schema.width
        self.features = array_of(quick_layout.Feature, [_feature(f, self.keep) for f in schema.features], self.keep)
        self.order = array_of(ctypes.c_int32, range(schema.width), self.keep)

    @classmethod
    def of(cls, schema: FeatureSchema) -> QuickRows | None:
        fits = 1 <= schema.width <= MAX_WIDTH and all(map(_is_ascii, schema.names))
        return cls(schema) if fits else None


def _feature(feature: Feature, keep: list[Any]) -> quick_layout.Feature:
    known = sorted(enumerate(feature.categories), key=lambda pair: (len(pair[1]), pair[1].encode()))
    plain = [(float(code), name.encode()) for code, name in known if _is_ascii(name)]
    unseen = unseen_of(feature)
    return quick_layout.Feature(
        key=text(json.dumps(feature.name).encode(), keep),
        kind=KINDS.index(feature.kind),
        nullable=feature.missing != "refuse",
        missing=0.0 if feature.missing == "refuse" else fill_of(feature),
        low=-math.inf if feature.low is None else feature.low,
        high=math.inf if feature.high is None else feature.high,
        takes_unseen=unseen is not None,
        unseen=0.0 if unseen is None else unseen,
        categories=array_of(quick_layout.Text, [text(name, keep) for _, name in plain], keep),
        codes=array_of(ctypes.c_double, [code for code, _ in plain], keep),
        category_count=len(plain),
    )


def _is_ascii(name: str) -> bool:
    """Whether JSON spells it as it is."""
    return json.dumps(name) == f'"{name}"'
