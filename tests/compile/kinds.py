"""The matrix: every kind of model that the law is asked of."""

from __future__ import annotations

from kind import Kind
from kinds_columns import COLUMNS
from kinds_lightgbm import LIGHTGBM
from kinds_pipelines import PIPELINES
from kinds_sklearn import SKLEARN
from kinds_xgboost import XGBOOST

KINDS: tuple[Kind, ...] = (*XGBOOST, *LIGHTGBM, *SKLEARN, *PIPELINES, *COLUMNS)
