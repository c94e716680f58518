"""The oracle: the native library's own answers on encoded rows. Everything compiled is held against these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.forest import native_booster
from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NativeModel:
    """An XGBoost or LightGBM booster behind two calls; rows are float64 (n, width), answers float64 (n, 1)."""

    library: str
    version: str
    booster: Any
    feature_types: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, schema: FeatureSchema) -> NativeModel:
        import importlib

        library = type(model).__module__.split(".")[0]
        version = importlib.import_module(library).__version__
        kinds = tuple("c" if feature.kind == "category" else "q" for feature in schema.features)
        return cls(library, version, native_booster(model), kinds)

    def margin(self, rows: Matrix) -> Matrix:
        return self._predict(rows, margin=True)

    def score(self, rows: Matrix) -> Matrix:
        return self._predict(rows, margin=False)

    def _predict(self, rows: Matrix, *, margin: bool) -> Matrix:
        if self.library == "lightgbm":
            answers = self.booster.predict(rows, raw_score=margin, num_threads=1)
        else:
            answers = self.booster.predict(self._dmatrix(rows), output_margin=margin)
        return np.asarray(answers, dtype=np.float64).reshape(len(rows), 1)

    def _dmatrix(self, rows: Matrix) -> Any:
        import xgboost

        types = list(self.booster.feature_types or self.feature_types)
        return xgboost.DMatrix(
            rows, feature_names=self.booster.feature_names, feature_types=types, enable_categorical=True
        )
