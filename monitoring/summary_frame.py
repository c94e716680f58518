"""Stretches of summed-up traffic laid out as columns, to be picked from and added up over any span of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monitoring.latency_buckets import BUCKETS, Counts
from monitoring.summaries import BINS, Stretch

COUNTED = ("rows", "requests", "errors", "fallbacks", "overrides", "timed_us", "batch_rows")


@dataclass(frozen=True)
class Sums:
    """Of picked stretches, together."""

    rows: int
    requests: int
    errors: int
    fallbacks: int
    overrides: int
    timed_us: int
    batch_rows: int
    max_us: int
    last_us: int
    latency: Counts
    scores: Counts

    @property
    def timed(self) -> int:
        return int(self.latency.sum())


@dataclass(frozen=True)
class Frame:
    """One row a stretch, by time."""

    begin_us: npt.NDArray[np.int64]
    last_us: npt.NDArray[np.int64]
    max_us: npt.NDArray[np.int64]
    arm: npt.NDArray[Any]
    version: npt.NDArray[Any]
    shadow: npt.NDArray[np.bool_]
    counts: Counts  # (n, COUNTED)
    latency: Counts  # (n, BUCKETS)
    scores: Counts  # (n, BINS)

    def __len__(self) -> int:
        return len(self.begin_us)

    def pick(
        self,
        *,
        since_us: int,
        until_us: int,
        arm: str | None = None,
        version: str | None = None,
        shadow: bool | None = None,
    ) -> Frame:
        """Those that begin then, of that arm and version."""
        kept = (self.begin_us >= since_us) & (self.begin_us < until_us)
        if arm is not None:
            kept &= self.arm == arm
        if version is not None:
            kept &= self.version == version
        if shadow is not None:
            kept &= self.shadow == shadow
        return self._where(kept)

    def arms(self) -> list[tuple[str, str, bool]]:
        """(arm, version, whether a shadow's), each once: the answering ones first, by name."""
        found = set(zip(self.arm.tolist(), self.version.tolist(), self.shadow.tolist(), strict=True))
        return sorted(found, key=lambda each: (each[2], each[0] != "champion", each))

    def of(self, arm: str, version: str, shadow: bool) -> Frame:
        return self._where((self.arm == arm) & (self.version == version) & (self.shadow == shadow))

    def sums(self) -> Sums:
        counted = dict(zip(COUNTED, self.counts.sum(axis=0).tolist(), strict=True))
        return Sums(
            **counted,
            max_us=int(self.max_us.max(initial=0)),
            last_us=int(self.last_us.max(initial=0)),
            latency=self.latency.sum(axis=0, dtype=np.int64),
            scores=self.scores.sum(axis=0, dtype=np.int64),
        )

    def by_time(self, bucket_us: int) -> list[tuple[int, Sums]]:
        """(when it begins, sums) of each bucket of time that holds any."""
        begins = self.begin_us // bucket_us * bucket_us
        return [(int(begin), self._where(begins == begin).sums()) for begin in np.unique(begins)]

    def _where(self, kept: npt.NDArray[np.bool_]) -> Frame:
        return Frame(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))


def frame_of(stretches: Sequence[Stretch]) -> Frame:
    n = len(stretches)
    latency, scores = np.zeros((n, BUCKETS), np.int64), np.zeros((n, BINS), np.int64)
    for at, stretch in enumerate(stretches):
        for into, pairs in ((latency, stretch.latency), (scores, stretch.scores)):
            if pairs:
                places, counts = zip(*pairs, strict=True)
                into[at, list(places)] = counts
    return Frame(
        begin_us=np.array([each.begin_us for each in stretches], np.int64),
        last_us=np.array([each.last_us for each in stretches], np.int64),
        max_us=np.array([each.max_us for each in stretches], np.int64),
        arm=np.array([each.arm for each in stretches], object),
        version=np.array([each.version for each in stretches], object),
        shadow=np.array([each.shadow for each in stretches], bool),
        counts=np.array([[getattr(each, name) for name in COUNTED] for each in stretches], np.int64).reshape(
            n, len(COUNTED)
        ),
        latency=latency,
        scores=scores,
    )
