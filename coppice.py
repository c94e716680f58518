"""The one command, `coppice`: mounts the packages' verbs and imports a package only when one of its verbs is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup


class Verb(NamedTuple):
    """Where a verb (of one word, or of two) lives, and the line that `coppice --help` shows without importing it."""

    target: str
    panel: str
    help: str


VERBS = {
    "train": Verb("training.cli:train", "Train", "Train, evaluate and register a model."),
    "tune": Verb("training.tuning_cli:tune", "Train", "Search a recipe's settings, resumably; train with the best."),
    "models": Verb("training.cli:models", "Train", "List the registered models, their aliases and figures."),
    "models list": Verb("training.cli:models", "Train", "The same as `models`."),
    "models show": Verb("training.registry_cli:show", "Train", "Say what a registered version is."),
    "models alias": Verb("training.registry_cli:alias", "Train", "Point an alias at a version, or remove it."),
    "models diff": Verb("training.registry_cli:diff", "Train", "How two registered versions differ."),
    "models lineage": Verb("training.registry_cli:lineage", "Train", "Where a version or bundle came from."),
    "models sync": Verb("serving.aliases:sync_models", "Train", "Set the registry's aliases to what the routes say."),
    "simulate": Verb("training.cli:simulate", "Train", "Rows of the built-in churn world, drifted or not."),
    "features": Verb("training.features_cli:app", "Train", "Features by entity: declare, compute, materialise."),
    "compile": Verb(
        "compile.cli:compile_model", "Compile", "Compile a registered model, prove it, publish the bundle."
    ),
    "parity": Verb("compile.cli:parity", "Compile", "How compiled forms compare with the trained model, row by row."),
    "score": Verb("compile.cli:score_file", "Compile", "Score a CSV with the very runtime that serves."),
    "bench": Verb("compile.bench_cli:bench", "Compile", "Measure here how fast each backend of a bundle scores."),
    "verify": Verb("compile.trust_cli:verify_bundle", "Compile", "Check a bundle's hashes, signature and probe."),
    "inspect": Verb("compile.trust_cli:inspect_bundle", "Compile", "Say what a bundle is, and how it was proved."),
    "sign": Verb("compile.trust_cli:sign_bundle", "Compile", "Sign a bundle."),
    "keys": Verb("compile.trust_cli:keys_app", "Compile", "Make keys that sign; say whose keys are trusted."),
    "routes": Verb("serving.routes_cli:app", "Serve", "Publish, promote, ramp and roll back who serves what."),
    "serve": Verb("serving.cli:serve", "Serve", "Serve the routed models over HTTP."),
    "predict": Verb("serving.predict_cli:predict", "Serve", "Score rows on a running server."),
    "compact": Verb("monitoring.cli:compact", "Watch", "Turn sealed traffic segments into the Parquet lake."),
    "outcomes": Verb("monitoring.cli:outcomes", "Watch", "Import what became of what was scored, from a file."),
    "reconcile": Verb("monitoring.cli:reconcile", "Watch", "Prove that served = logged + dropped + lost."),
    "drift": Verb("monitoring.drift_cli:drift", "Watch", "Compare logged traffic with the training data."),
    "operations": Verb(
        "monitoring.operations_cli:operations", "Watch", "Traffic, latency and errors over time, or live."
    ),
    "alerts": Verb("monitoring.alerts_cli:alerts", "Watch", "Tell once what fires, by webhook, Slack or log."),
    "watch": Verb("monitoring.watch_cli:watch", "Watch", "Decide from the checks: retrain, wait, or investigate."),
    "performance": Verb(
        "monitoring.performance_cli:performance", "Watch", "How good each arm was, by outcomes or an estimate."
    ),
    "dashboard": Verb("monitoring.dashboard_cli:dashboard", "Watch", "Show all of it on one page, in a browser."),
    "experiment": Verb("monitoring.experiment_cli:app", "Watch", "Experiments: plan, start, look at, report on, stop."),
    "decide": Verb("monitoring.decide_cli:decide", "Watch", "Judge the experiment; ramp, promote or roll back by it."),
    "demo": Verb("monitoring.demo:demo", "Watch", "The whole way, on built-in data or your own file."),
}
EXTRAS = {"training": "train", "compile": "train", "serving": "client", "monitoring": "monitor", "loadtests": "load"}


class Lazy(TyperGroup):
    """Knows the verbs by name; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        if _only_listing():
            return _placeholder(cmd_name)
        return _load(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A verb may be two words, each pair of which may live in a room of its own: `models sync`."""
        pair = " ".join(args[:2])
        if len(args) > 1 and pair in VERBS:
            return pair, self.get_command(ctx, pair), args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=Lazy, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


@app.callback(
    epilog="A first model in one command: coppice demo. Each verb explains itself: coppice train --help.",
)
def _root() -> None:
    """Put XGBoost and LightGBM models behind HTTP, and know from live traffic which one should be there.

    train -> compile -> routes publish -> serve -> compact -> drift
    """


def main() -> None:
    """Run the command line; errors that a user can mend are one line on standard error, without a traceback."""
    try:
        app()
    except Exception as error:
        code = getattr(error, "exit_code", None)
        missing = _missing_extra(error)
        if code is None and missing is None:
            raise
        print(f"coppice: {missing or error}", file=sys.stderr)
        sys.exit(2 if code is None else code)


def _only_listing() -> bool:
    """`coppice`, `coppice --help`: the table is enough, and instant."""
    return not any(argument in VERBS for argument in sys.argv[1:])


def _placeholder(name: str) -> Any:
    listed = typer.Typer(add_completion=False)
    listed.command(name, help=VERBS[name].help, rich_help_panel=VERBS[name].panel)(lambda: None)
    return typer.main.get_command(listed)


def _load(name: str) -> Any:
    module_name, _, attribute = VERBS[name].target.partition(":")
    target = getattr(importlib.import_module(module_name), attribute)
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
        command.name = name
        return command
    mounted = typer.Typer(add_completion=False)
    mounted.command(name, rich_help_panel=VERBS[name].panel)(target)
    return typer.main.get_command(mounted)


def _missing_extra(error: Exception) -> str | None:
    """A package that an extra would have brought: which one, and how to get it."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    verb = next((argument for argument in sys.argv[1:] if argument in VERBS), "")
    room = VERBS[verb].target.split(".")[0] if verb else ""
    if room not in EXTRAS or os.path.isdir(error.name.split(".")[0]):
        return None
    return f"`coppice {verb}` needs the package {error.name!r}: pip install 'coppice[{EXTRAS[room]}]'"


if __name__ == "__main__":
    main()
