"""Features made of events, as declared in a feature repository, and never with knowledge of the future.

A value belongs to an entity and an instant, the cut-off. It is made of the entity's events in the window

    cut-off - offset_days - window_days  <  time  <=  cut-off - offset_days

so an event at the very instant of the cut-off counts, as it does in the as-of join of a feature store, and one exactly a
window earlier does not. `window_days` 0: all events before.

    count     how many events; with a `column`, how many in which it is filled
    sum       of the column's filled cells; 0 where there is none
    mean, min, max    of the filled cells; missing where there is none
    recency   days from the newest event to the cut-off; missing where there is none
    ratio     `of` over `to`, two transformations declared above it; missing where `to` is missing or 0

`where` keeps the events whose column has that value, or one of those values. Then, in this order: `times` multiplies,
`at_most` caps, `digits` rounds. `hidden`: is a step on the way to others, and no feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from training.errors import DataRefused, RecipeRefused

Floats = npt.NDArray[np.float64]
Compute = Literal["count", "sum", "mean", "min", "max", "recency", "ratio"]

DAY_US = 86_400_000_000
NEEDS_COLUMN = ("sum", "mean", "min", "max")


class Transform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    compute: Compute
    column: str = ""
    where: dict[str, str | list[str]] = {}
    window_days: float = 0.0
    offset_days: float = 0.0
    of: str = ""
    to: str = ""
    times: float = 1.0
    at_most: float | None = None
    digits: int | None = None
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.compute in NEEDS_COLUMN and not self.column:
            raise RecipeRefused(f"transforms.{self.name}: {self.compute} needs a column")
        if self.compute in ("recency", "ratio") and self.column:
            raise RecipeRefused(f"transforms.{self.name}: {self.compute} takes no column")
        if (self.compute == "ratio") != bool(self.of and self.to):
            raise RecipeRefused(f"transforms.{self.name}: `of` and `to` belong to a ratio, which needs both")
        if self.compute == "ratio" and (self.where or self.window_days or self.offset_days):
            raise RecipeRefused(f"transforms.{self.name}: a ratio has no events of its own, so no where and no window")
        if not (0 <= self.window_days < 1e6 and 0 <= self.offset_days < 1e6):  # NaN is neither
            raise RecipeRefused(f"transforms.{self.name}: window_days and offset_days must be 0 or more")


def refuse_impossible(transforms: Sequence[Transform], where: str) -> None:
    """Raises RecipeRefused, naming the transformation: of a name that is there twice, or a ratio of what is not above it."""
    above: set[str] = set()
    for transform in transforms:
        if transform.name in above:
            raise RecipeRefused(f"{where}: transforms.{transform.name}: is declared twice")
        for part in filter(None, (transform.of, transform.to)):
            if part not in above:
                raise RecipeRefused(f"{where}: transforms.{transform.name}: {part!r} is not declared above it")
        above.add(transform.name)


def compute(
    transforms: Sequence[Transform], events: pd.DataFrame, entity: str, time: str, cutoffs: pd.DataFrame
) -> pd.DataFrame:
    """A column for each transformation that is not hidden, a row for each of `cutoffs`, in its order.

    Both frames have an `entity` (text) and a `time` (UTC). Raises DataRefused where the events lack a column.
    """
    values: dict[str, Floats] = {}
    for transform in transforms:
        if transform.compute == "ratio":
            made = _ratio(values[transform.of], values[transform.to])
        else:
            made = _Windows(transform, events, entity, time, cutoffs).values()
        values[transform.name] = _finished(transform, made)
    shown = {transform.name: values[transform.name] for transform in transforms if not transform.hidden}
    return pd.DataFrame(shown, index=cutoffs.index)


def microseconds(times: pd.Series[pd.Timestamp]) -> npt.NDArray[np.int64]:
    """Since 1970, of a column of UTC instants."""
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)


def _ratio(of: Floats, to: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((to == 0) | np.isnan(to), np.nan, of / to)


def _finished(transform: Transform, values: Floats) -> Floats:
    values = values * transform.times
    if transform.at_most is not None:
        values = np.minimum(values, transform.at_most)
    return values if transform.digits is None else values.round(transform.digits)


class _Windows:
    """The events of one transformation, in order of entity and time, and which of them each cut-off's window holds.

    Order is kept in one integer: the entity's number times more than there are distinct times, plus the time's rank.
    """

    def __init__(
        self, transform: Transform, events: pd.DataFrame, entity: str, time: str, cutoffs: pd.DataFrame
    ) -> None:
        self._compute = transform.compute
        kept = events[_mask(transform, events)]
        owners = pd.Index(pd.unique(kept[entity]))
        when = microseconds(kept[time])
        distinct = np.unique(when)
        span = len(distinct) + 1
        order = owners.get_indexer(pd.Index(kept[entity])) * span + np.searchsorted(distinct, when)
        by_order = np.argsort(order, kind="stable")
        order, self._when = order[by_order], when[by_order]
        self._cells = _cells(transform, kept)[by_order]
        self._filled = ~np.isnan(self._cells)
        owner = owners.get_indexer(pd.Index(cutoffs[entity]))
        self._cut = microseconds(cutoffs[time])
        to = self._cut - round(transform.offset_days * DAY_US)
        since = to - round(transform.window_days * DAY_US)

        def place(bound: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
            """Of the first event after that instant."""
            return np.searchsorted(order, owner * span + np.searchsorted(distinct, bound, side="right"))

        self._end = place(to)
        self._begin = place(since) if transform.window_days else np.searchsorted(order, owner * span)
        self._end = np.where(owner < 0, self._begin, self._end)  # an entity without events

    def values(self) -> Floats:
        count = self._reduced(np.add, self._filled.astype(np.float64), 0.0)
        if self._compute == "count":
            return count
        if self._compute == "recency":
            newest = self._when[np.maximum(self._end - 1, 0)] if len(self._when) else np.zeros(len(self._end))
            return np.where(self._end > self._begin, (self._cut - newest) / DAY_US, np.nan)
        if self._compute in ("sum", "mean"):
            total = self._reduced(np.add, np.where(self._filled, self._cells, 0.0), 0.0)
            return total if self._compute == "sum" else _ratio(total, count)
        worst, of = (np.inf, np.minimum) if self._compute == "min" else (-np.inf, np.maximum)
        found = self._reduced(of, np.where(self._filled, self._cells, worst), worst)
        return np.where(count > 0, found, np.nan)

    def _reduced(self, by: np.ufunc, cells: Floats, empty: float) -> Floats:
        """By window. `reduceat` takes pairs of bounds; what lies between two windows is every other answer."""
        bounds = np.column_stack((self._begin, np.maximum(self._end, self._begin))).ravel()
        answers = by.reduceat(np.append(cells, empty), bounds)[::2] if len(bounds) else np.empty(0)
        return np.where(self._end > self._begin, answers, empty)


def _mask(transform: Transform, events: pd.DataFrame) -> npt.NDArray[np.bool_]:
    mask = np.ones(len(events), dtype=bool)
    for column, wanted in transform.where.items():
        if column not in events.columns:
            raise _lacks(transform, column, events)
        mask &= events[column].isin([wanted] if isinstance(wanted, str) else wanted).to_numpy()
    return mask


def _cells(transform: Transform, kept: pd.DataFrame) -> Floats:
    if not transform.column:
        return np.ones(len(kept))
    if transform.column not in kept.columns:
        raise _lacks(transform, transform.column, kept)
    column = kept[transform.column]
    if transform.compute == "count":
        return np.where(column.isna(), np.nan, 1.0)
    if not pd.api.types.is_numeric_dtype(column):
        raise DataRefused(f"transforms.{transform.name}: the events' column {transform.column!r} holds no numbers")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _lacks(transform: Transform, column: str, events: pd.DataFrame) -> DataRefused:
    there = ", ".join(map(str, events.columns))
    return DataRefused(f"transforms.{transform.name}: the events have no column {column!r}; they have {there}")
