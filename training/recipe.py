"""A recipe: everything that decides what a training run makes, but the data. TOML, validated, frozen, copied into lineage.

model = "churn"                     the registered name; --name overrides
algorithm = "xgboost"               or "lightgbm"
seed = 7                            of the split and the booster

[data]                              what to train on unless --data is given
simulated_rows = 20000              the built-in churn world ...
path = "rows.csv"                   ... or a file, with its
target = "churned"
positive = "yes"                    optional: the label whose probability is served
features = "var/features"           optional: a feature repository; the file has labels, and the features are those of
time = "event_time"                 [lookup] as they were known at the label's instant, which this column of it holds

[lookup]                            optional: the server may look the features up (`training.view.Lookup`)
view = "churn"
entity = "customer_id"
override = ["plan"]                 features that a request may give beside its entity; none by default
default = { plan = "basic" }        an unknown entity's features, null where not named; without it, a 404

[split]                             shares of all rows, stratified by the target
holdout = 0.2                       measured on, never trained on
validation = 0.15                   early stopping alone

[rounds]
most = 2000
patience = 50                       rounds without improvement before stopping

[params]                            handed to the library as they stand

[gates]                             min_ or max_ and a metric; a model that fails one is not registered
min_accuracy = 0.85                 without any gate: accuracy must beat the majority class,
                                    or, with costs, decisions must save against treating nobody and everybody

[costs], [evaluation]               what decisions are worth (`training.costs`); groups to look at (`training.segments`)

[card]                              words that figures can't give: description, intended_use, limitations,
                                    ethical_considerations

[[features]]                        optional: the declared FeatureSchema; without it, it is inferred
name = "tenure_months"
kind = "number"
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from training.costs import Costs
from training.errors import RecipeRefused
from training.features import Feature, FeatureSchema, InputRefused
from training.segments import Evaluation
from training.view import Lookup

METRICS = ("accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "brier")
RESERVED = {
    "xgboost": ("objective", "num_class", "enable_categorical", "seed", "nthread", "eval_metric"),
    "lightgbm": ("objective", "num_class", "categorical_feature", "seed", "num_threads", "metric", "verbosity"),
}
Algorithm = Literal["xgboost", "lightgbm"]


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    simulated_rows: int = 0
    path: str = ""
    target: str = ""
    positive: str | None = None
    features: str = ""
    time: str = ""


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    holdout: float = 0.2
    validation: float = 0.15


class Rounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    most: int = 2000
    patience: int = 50


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    description: str = ""
    intended_use: str = ""
    limitations: str = ""
    ethical_considerations: str = ""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: Algorithm
    model: str = ""
    seed: int = 7
    data: Data = Data()
    split: Split = Split()
    rounds: Rounds = Rounds()
    params: dict[str, bool | int | float | str] = {}
    gates: dict[str, float] = {}
    costs: Costs | None = None
    evaluation: Evaluation = Evaluation()
    card: Words = Words()
    lookup: Lookup | None = None
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        for key in self.params:
            if key in RESERVED[self.algorithm]:
                raise RecipeRefused(f"params.{key}: is set by the training itself")
        for key, bound in self.gates.items():
            kind, _, metric = key.partition("_")
            if kind not in ("min", "max") or metric not in METRICS:
                raise RecipeRefused(f"gates.{key}: is not min_ or max_ and one of {', '.join(METRICS)}")
            if not math.isfinite(bound):
                raise RecipeRefused(f"gates.{key}: must be finite")
        if not (0 < self.split.holdout < 0.9 and 0 < self.split.validation < 0.9):
            raise RecipeRefused("split: holdout and validation must lie between 0 and 0.9")
        if self.split.holdout + self.split.validation > 0.9:
            raise RecipeRefused("split: holdout and validation leave less than a tenth to train on")
        if self.data.features and not (self.lookup and self.data.time and self.data.path):
            raise RecipeRefused("data.features: needs data.path with the labels, data.time, and [lookup] with the view")
        if self.rounds.most < 1 or self.rounds.patience < 1:
            raise RecipeRefused("rounds: most and patience must be at least 1")

    @property
    def schema(self) -> FeatureSchema | None:
        """The declared input contract, or None where it is to be inferred."""
        return FeatureSchema(self.features) if self.features else None


def built_in() -> tuple[str, ...]:
    """Names of the recipes that come with Coppice."""
    return tuple(
        sorted(
            Path(file.name).stem
            for file in resources.files("training.recipes").iterdir()
            if file.name.endswith(".toml")
        )
    )


def load(name: str | Path) -> Recipe:
    """A built-in recipe by its name, or a TOML file by its path. Raises RecipeRefused, naming the file and the key."""
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in built_in():
            raise RecipeRefused(f"{name}: is neither a .toml file nor a built-in recipe ({', '.join(built_in())})")
        return parse((resources.files("training.recipes") / f"{name}.toml").read_text(encoding="utf-8"), str(name))
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise RecipeRefused(f"{path}: {unreadable}") from None


def parse(text: str, where: str = "recipe") -> Recipe:
    try:
        return msgspec.convert(tomllib.loads(text), Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecipeRefused, InputRefused) as wrong:
        raise RecipeRefused(f"{where}: {wrong}") from None


def flat(recipe: Recipe) -> Mapping[str, str]:
    """The recipe's settings as dotted names, for a run's parameters."""
    settings: dict[str, str] = {"algorithm": recipe.algorithm, "seed": str(recipe.seed)}
    for table in ("split", "rounds", "params", "gates", "costs"):
        values = msgspec.to_builtins(getattr(recipe, table)) or {}
        settings |= {f"{table}.{key}": str(value) for key, value in values.items()}
    return settings
