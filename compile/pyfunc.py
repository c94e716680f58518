"""A bundle as MLflow's `python_function`: the runtime that serves behind `predict`, for batch jobs, Spark and MLflow's server.

`coppice compile` adds the bundle to the registered version that it was made from (`training.registry.add_compiled`); then

    mlflow.pyfunc.load_model("models:/churn@champion").predict(frame)
    mlflow models serve -m models:/churn@champion --env-manager local

answer by the compiled model, where Coppice is installed. The native flavour stays beside it.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compile.bundle import Manifest
from compile.runtime import open_predictor
from training.features import encode_frame

if TYPE_CHECKING:
    import pandas as pd


class BundleModel:
    """Any thread."""

    def __init__(self, path: Path) -> None:
        """Raises BundleRefused."""
        self._predictor = open_predictor(path)
        self._lock = Lock()

    @property
    def manifest(self) -> Manifest:
        return self._predictor.manifest

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> npt.NDArray[np.float64]:  # noqa: ARG002  # MLflow's signature
        """A frame with the features as columns, by name, raw as at `/predict`; other columns are passed over. The
        positive class's probability or the value, float64 (n,); of several outputs (n, k). Raises InputRefused,
        naming the column.
        """
        if not hasattr(model_input, "columns"):
            raise TypeError(
                f"a DataFrame with the model's features as columns is needed, got {type(model_input).__name__}"
            )
        rows = encode_frame(self.manifest.schema, model_input)
        if not len(rows):
            return np.empty((0,) if self._predictor.outputs == 1 else (0, self._predictor.outputs))
        with self._lock:
            scores = self._predictor.score(rows)
        return scores[:, 0] if scores.shape[1] == 1 else scores


def _load_pyfunc(path: str) -> BundleModel:
    """What MLflow calls, with the bundle's folder."""
    return BundleModel(Path(path))
