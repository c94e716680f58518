"""A recipe: everything that decides what a training run makes, but the data. TOML, validated, frozen, copied into lineage.

model = "churn"                     the registered name; --name overrides
algorithm = "xgboost"               or "lightgbm"; or scikit-learn's "random_forest", "extra_trees" (`training.forests`)
task = "binary"                     or "multiclass", "regression", "ranking": by relevance, 0 and up, within a query
weights = "equal"                   or "balanced": each class weighs the same in the fit (where there are classes)
calibration = "none"                or "platt", "isotonic", "best": of two classes, by the validation rows
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
by = "rows"                         or "time": the latest are held out; or "group": no group is in two parts
column = "day"                      what time or group is; it is no feature. By time without one: the file's order
                                    A ranking is split by group, and the group is the query
holdout = 0.2                       measured on, never trained on
validation = 0.15                   early stopping alone

[rounds]
most = 2000
patience = 50                       rounds without improvement before stopping; 0: no early stop, all of `most` are kept.
                                    Of a forest, most is the number of trees, and patience must be 0
refit = false                       true: fit again, on the validation rows too, for the rounds that were kept

[params]                            handed to the library as they stand

[monotone]                          1: the answer never falls as the feature grows; -1: it never rises
tenure_months = -1

[search]                            what `coppice tune` tries; a name in params, or n_estimators for rounds.most
folds = 5
pruner = "median"                   or "hyperband", "none"
[search.space]
max_depth = { low = 3, high = 10 }
learning_rate = { low = 0.01, high = 0.3, log = true }
n_estimators = { low = 100, high = 1000 }
grow_policy = { choices = ["depthwise", "lossguide"] }

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

METRICS = {
    "binary": ("accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "brier"),
    "multiclass": ("accuracy", "roc_auc", "log_loss"),
    "regression": ("mae", "rmse", "r2"),
    "ranking": ("ndcg_5", "ndcg_10", "first_relevant"),
}
RESERVED = {
    "xgboost": ("objective", "num_class", "enable_categorical", "seed", "nthread", "eval_metric"),
    "lightgbm": ("objective", "num_class", "categorical_feature", "seed", "num_threads", "metric", "verbosity"),
    "random_forest": ("n_jobs", "random_state", "class_weight", "monotonic_cst", "warm_start", "verbose"),
    "extra_trees": ("n_jobs", "random_state", "class_weight", "monotonic_cst", "warm_start", "verbose"),
}
FORESTS = ("random_forest", "extra_trees")
Algorithm = Literal["xgboost", "lightgbm", "random_forest", "extra_trees"]
Task = Literal["binary", "multiclass", "regression", "ranking"]
Value = bool | int | float | str
LEARNING_RATE = ("eta", "learning_rate", "shrinkage_rate")


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
    by: Literal["rows", "time", "group"] = "rows"
    column: str = ""

    def __post_init__(self) -> None:
        if self.by == "group" and not self.column:
            raise RecipeRefused("split.column: name the column that holds the group")
        if self.by == "rows" and self.column:
            raise RecipeRefused('split.column: is for by = "time" or by = "group"')


class Rounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    most: int = 2000
    patience: int = 50
    refit: bool = False


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a setting may be: one of `choices`, or from `low` to `high`, whole where both are."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise RecipeRefused("search.space: choices stand alone, without low, high and log")
        elif self.low is None or self.high is None:
            raise RecipeRefused("search.space: low and high, or choices, are needed")
        elif not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise RecipeRefused("search.space: low must be at most high, and both finite")
        elif self.log and self.low <= 0:
            raise RecipeRefused("search.space: low must be above 0 where log is true")


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    folds: int = 5
    pruner: Literal["median", "hyperband", "none"] = "median"
    space: dict[str, Range] = {}


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    description: str = ""
    intended_use: str = ""
    limitations: str = ""
    ethical_considerations: str = ""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: Algorithm
    model: str = ""
    task: Task = "binary"
    weights: Literal["equal", "balanced"] = "equal"
    calibration: Literal["none", "platt", "isotonic", "best"] = "none"
    seed: int = 7
    data: Data = Data()
    split: Split = Split()
    rounds: Rounds = Rounds()
    params: dict[str, Value] = {}
    monotone: dict[str, Literal[-1, 0, 1]] = {}
    search: Search = Search()
    gates: dict[str, float] = {}
    costs: Costs | None = None
    evaluation: Evaluation = Evaluation()
    card: Words = Words()
    lookup: Lookup | None = None
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        for key in (*self.params, *self.search.space):
            if key in RESERVED[self.algorithm]:
                raise RecipeRefused(f"{key}: is set by the training itself")
        self._refuse_unfit_for_forests()
        for key, bound in self.gates.items():
            kind, _, metric = key.partition("_")
            if kind not in ("min", "max") or metric not in METRICS[self.task]:
                raise RecipeRefused(f"gates.{key}: is not min_ or max_ and one of {', '.join(METRICS[self.task])}")
            if not math.isfinite(bound):
                raise RecipeRefused(f"gates.{key}: must be finite")
        if self.task in ("regression", "ranking") and self.weights != "equal":
            raise RecipeRefused(f"weights: a {self.task} has no classes to balance")
        if self.task == "ranking" and self.split.by != "group":
            raise RecipeRefused('split.by: a ranking is split by = "group", whose column is the query')
        if self.calibration != "none" and (self.task != "binary" or self.rounds.refit):
            raise RecipeRefused(
                "calibration: is for two classes, and needs validation rows that are not fitted to: no refit"
            )
        if self.task != "binary" and (self.costs or self.evaluation.segments):
            raise RecipeRefused(f"costs, evaluation.segments: are for two classes, not for a {self.task} task")
        if self.search.folds < 2:
            raise RecipeRefused("search.folds: must be at least 2")
        if not (0 < self.split.holdout < 0.9 and 0 < self.split.validation < 0.9):
            raise RecipeRefused("split: holdout and validation must lie between 0 and 0.9")
        if self.split.holdout + self.split.validation > 0.9:
            raise RecipeRefused("split: holdout and validation leave less than a tenth to train on")
        if self.data.features and not (self.lookup and self.data.time and self.data.path):
            raise RecipeRefused("data.features: needs data.path with the labels, data.time, and [lookup] with the view")
        if self.rounds.most < 1 or self.rounds.patience < 0:
            raise RecipeRefused("rounds: most must be at least 1, and patience at least 0")

    def _refuse_unfit_for_forests(self) -> None:
        if self.algorithm not in FORESTS:
            return
        if self.task == "ranking":
            raise RecipeRefused(f"task: a {self.algorithm} can't be fitted to a ranking")
        if "n_estimators" in self.params:
            raise RecipeRefused("params.n_estimators: say it as rounds.most")
        if self.rounds.patience:
            raise RecipeRefused(
                f"rounds.patience: a {self.algorithm} does not stop early; set patience = 0, and most to the trees wanted"
            )
        if self.monotone and self.task == "multiclass":
            raise RecipeRefused(f"monotone: a {self.algorithm} holds no direction for several classes")

    def with_settings(self, found: Mapping[str, Value]) -> Recipe:
        """The recipe with what a search found. A learning rate replaces the one that was there, by whatever name."""
        params, rounds = dict(self.params), self.rounds
        if any(name in LEARNING_RATE for name in found):
            params = {key: value for key, value in params.items() if key not in LEARNING_RATE}
        for name, value in found.items():
            if name == "n_estimators":
                rounds = msgspec.structs.replace(rounds, most=int(value))
            else:
                params[name] = value
        return msgspec.structs.replace(self, params=params, rounds=rounds)

    @property
    def query(self) -> str:
        """The column that says which rows are ranked against each other; empty where none are."""
        return self.split.column if self.task == "ranking" else ""

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
    settings: dict[str, str] = {
        key: str(getattr(recipe, key)) for key in ("algorithm", "task", "weights", "calibration", "seed")
    }
    for table in ("split", "rounds", "params", "monotone", "gates", "costs"):
        values = msgspec.to_builtins(getattr(recipe, table)) or {}
        settings |= {f"{table}.{key}": str(value) for key, value in values.items()}
    return settings
