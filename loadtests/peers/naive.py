"""The endpoint as tutorials write it: pydantic model -> DataFrame -> `XGBClassifier.predict_proba`; and through NumPy.

The model is read from the file that BENCH_MODEL names. `frame` and `matrix` are the two apps.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, create_model
from xgboost import XGBClassifier

WIDTH = 30
NAMES = [f"x{n:02d}" for n in range(WIDTH)]


class Row(BaseModel):
    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([self.model_dump()])


FIELDS: Any = dict.fromkeys(NAMES, (float, ...))
Features: Any = create_model("Features", __base__=Row, **FIELDS)

model = XGBClassifier(n_jobs=1)
model.load_model(os.environ["BENCH_MODEL"])

frame = FastAPI()
matrix = FastAPI()


async def by_frame(features: Any) -> dict[str, Any]:
    probability = float(model.predict_proba(features.to_dataframe())[0, 1])
    return {"prediction": int(probability > 0.5), "probability": probability, "model_version": "1"}


async def by_matrix(features: Any) -> dict[str, Any]:
    row = np.array([list(features.model_dump().values())])
    probability = float(model.predict_proba(row)[0, 1])
    return {"prediction": int(probability > 0.5), "probability": probability, "model_version": "1"}


for endpoint in (by_frame, by_matrix):
    endpoint.__annotations__["features"] = Features
frame.post("/predict/ab")(by_frame)
matrix.post("/predict/ab")(by_matrix)
