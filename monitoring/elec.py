"""Two years of a real market, replayed: drift, labelled performance and its estimate, week by week, out of the lake.

    python -m monitoring.elec [--data ../shared/data/elec.csv] [--page docs/elec.md]      (make elec)

New South Wales' electricity prices, half-hourly, 1996 to 1998, in time order: whether the price is above its mean of the last
day. A model is trained on the first fifth and never again. The rest is asked of the real server, a day to a request, and each
day's labels are told to `/feedback` after the next day was asked. Then `coppice compact`, and the very verbs a scheduler calls:
`coppice performance` and `coppice drift`, in windows of 336 rows, which are weeks.

Labels follow each other here: who repeats the last one is right in 85 % of half-hours, so accuracy over time is told beside
that of the repeater, and nothing is claimed from it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np

from monitoring.charts import Line, Panel, chart
from monitoring.checks import Check, latest, read
from monitoring.demo import DIGEST, Places, Server, verb
from monitoring.errors import MonitoringError
from monitoring.performance import Arm, Performance, Window
from training.intervals import Floats
from training.runs import git_commit

NAME, TARGET = "elec", "class"
DATA = Path("../shared/data/elec.csv")
TRAINED = 0.2
A_DAY, A_WEEK = 48, 336
HIGH = 1  # the class of a price above its mean


@dataclass(frozen=True)
class Replayed:
    """What was asked and answered, in order, and where it all is."""

    places: Places
    trained: int
    scores: Floats
    truth: Floats


@dataclass(frozen=True)
class Weeks:
    performance: Performance
    drift: tuple[Check, ...]

    @property
    def arm(self) -> Arm:
        return self.performance.arms[0]


def replay(data: Path, folder: Path, *, rows: int | None = None) -> Replayed:
    """Train, serve, ask and tell; `rows`: the first so many of the file alone. `folder` is emptied first."""
    if not data.exists():
        raise MonitoringError(f"{data}: there is no such file; --data names the table of electricity prices")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places = Places(folder)
    lines = data.read_text(encoding="utf-8").splitlines()
    header, lines = lines[0].split(","), lines[1 : None if rows is None else rows + 1]
    trained = int(len(lines) * TRAINED)
    first = folder / "first.csv"
    first.write_text("\n".join([",".join(header), *lines[:trained]]) + "\n", encoding="utf-8")
    verb(places, ["train", "--data", str(first), "--target", TARGET, "--name", NAME, "--alias", "champion"])
    digest = verb(places, ["compile", f"{NAME}@champion"]).split()[-1]
    if not DIGEST.match(digest):
        raise MonitoringError(f"coppice compile {NAME}@champion printed no digest")
    verb(places, ["routes", "publish", NAME, "--arm", f"champion={digest}", "--note", "the first fifth"])
    table = np.array([line.split(",") for line in lines[trained:]], dtype=np.float64)
    server = Server(places, NAME)
    try:
        scores, truth = _ask_by_day(server.address, header, table)
    finally:
        server.stop()
    both = ["--traffic", str(places.traffic), "--lake", str(places.lake)]
    verb(places, ["compact", *both])
    verb(places, ["reconcile", *both])
    return Replayed(places, trained, scores, truth)


def look(done: Replayed) -> Weeks:
    """The verbs' own findings of every week."""
    places = done.places
    checks, out = places.folder / "checks", places.folder / "performance"
    shared = ["--every", str(A_WEEK), "--checks", str(checks), "--lake", str(places.lake)]
    verb(places, ["performance", NAME, *shared, "--label-window", "0s", "--out", str(out)], allowed=(0, 1))
    verb(places, ["drift", NAME, *shared, "--reports", "none", "--out", str(places.folder / "drift")], allowed=(0, 1))
    found = msgspec.json.decode((out / "performance.json").read_bytes(), type=Performance)
    return Weeks(found, tuple(latest(read(checks, "drift", NAME))))


def _ask_by_day(address: str, header: Sequence[str], table: Floats) -> tuple[Floats, Floats]:
    """(scores, truth). A day's labels are told after the next day was asked: late, and never before its answers."""
    where = urlsplit(address)
    connection = HTTPConnection(where.hostname or "", where.port or 80, timeout=30)
    place = header.index(TARGET)
    waiting: list[dict[str, object]] = []
    scores: list[float] = []
    for begin in range(0, len(table), A_DAY):
        day = table[begin : begin + A_DAY]
        columns = {name: day[:, k].tolist() for k, name in enumerate(header) if k != place}
        answer = _post(connection, "/predict/batch", {"columns": columns})
        scores += [told["probability"] for told in answer["predictions"]]
        if waiting:
            _post(connection, "/feedback", waiting)
        waiting = [
            {"request_id": answer["request_id"], "row": row, "value": int(value)}
            for row, value in enumerate(day[:, place])
        ]
    _post(connection, "/feedback", waiting)
    connection.close()
    return np.array(scores), table[:, place]


def _post(connection: HTTPConnection, path: str, body: object) -> dict[str, list[dict[str, float]]]:
    connection.request("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})
    answer = connection.getresponse()
    told = answer.read()
    if answer.status not in (200, 202):
        raise MonitoringError(f"{path}: {answer.status}: {told[:300].decode(errors='replace')}")
    decoded: dict[str, list[dict[str, float]]] = json.loads(told)
    return decoded


def picture(weeks: Weeks) -> str:
    """AUC with its estimate, and below it how much of what the model looks at had drifted."""
    windows, arm = weeks.arm.windows, weeks.arm
    seen = [window.figures["roc_auc"] for window in windows]
    dots = ["trusted" if window.estimate.trust == "trusted" else "doubted" for window in windows]
    lines = [
        Line(
            "labelled",
            "seen",
            [figure.value for figure in seen],
            [figure.low for figure in seen],
            [figure.high for figure in seen],
        ),
        Line("estimated", "said", [window.estimate.figures["roc_auc"] for window in windows], dots=dots),
    ]
    legend = [("AUC, labelled", "seen"), ("estimated before the labels", "said")]
    bars = [_carried(_drift_of(weeks, window)) for window in windows]
    panels = [
        Panel("AUC by week", lines, level=arm.level.value if arm.level else None, height=220, legend=legend),
        Panel("drifted: share of the features' importance", bars=bars, low=0, high=1, height=90),
    ]
    ticks = [(float(n), f"week {n + 1}") for n in range(0, len(windows), max(len(windows) // 6, 1))]
    return chart([float(n) for n in range(len(windows))], ticks, panels)


def _drift_of(weeks: Weeks, window: Window) -> Check | None:
    return next((check for check in weeks.drift if check.since_us == window.since_us), None)


def _carried(check: Check | None) -> float | None:
    return None if check is None else float(check.found.get("importance_drifted", 0.0))


def page(done: Replayed, weeks: Weeks, image: str, commit: str) -> str:
    whole = [window for window in weeks.arm.windows if window.verdict != "open"]
    drifted = [check for check in weeks.drift if check.verdict == "drift"]
    predictions = [check for check in drifted if check.found.get("prediction_drifted")]
    right = ((done.scores > 0.5) == (done.truth == HIGH)).mean()
    repeated = (done.truth[1:] == done.truth[:-1]).mean()
    alarms = [alarm.detector for alarm in weeks.arm.alarms if alarm.worse]
    quarter = max(len(whole) // 4, 1)
    lines = [
        "# Electricity prices, replayed week by week",
        "",
        f"`make elec`, commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}. Trained on the first {done.trained:,} rows, and never again; {len(done.scores):,} rows "
        f"asked of the server in time order, each day's labels told a day later: {len(whole)} weeks of {A_WEEK} rows.",
        "",
        f"![AUC by week, its estimate, and drift]({image})",
        "",
        "A full dot: the estimate was trusted when it was made; an empty one: it was not, or no labels were there to check it.",
        "",
        "| | |",
        "|---|---|",
        f"| weeks with drift, of {len(weeks.drift)} | {len(drifted)}, the predictions among it in {len(predictions)} |",
        f"| level of the AUC, from the first weeks | {weeks.arm.level} |",
        f"| AUC, first and last quarter of the weeks | {_mean_auc(whole[:quarter])}, {_mean_auc(whole[-quarter:])} |",
        f"| weeks below the level | {sum(window.verdict == 'drop' for window in whole)} |",
        f"| concept-drift alarms for worse (ADWIN, Page-Hinkley) | {alarms.count('adwin')}, {alarms.count('page_hinkley')} |",
        *_estimates(whole),
        f"| accuracy, all rows; of repeating the last label | {right:.4f}; {repeated:.4f} |",
        "",
        "The repeater's line is why nothing is concluded from accuracy here: its labels follow each other, and a model that is "
        "never told them can't know. What the estimate and its trust are: [performance.md](performance.md).",
        "",
        _why(weeks),
        "",
        "| week | drift | AUC | estimate | |",
        "|---|---|---|---|---|",
        *(_row(n, window, _drift_of(weeks, window)) for n, window in enumerate(weeks.arm.windows, start=1)),
        "",
    ]
    return "\n".join(lines)


def _why(weeks: Weeks) -> str:
    """What the reference is, which makes the drift."""
    names = [str(column["name"]) for check in weeks.drift[-1:] for column in check.found.get("columns", ())]
    features = [name for name in names if name != "prediction"]
    return (
        "Each week is held against all of the training rows, half a year: that it differs is true, and alone no reason to "
        f"act; which weeks the model was worse in, the labels say. It reads {len(features)} columns "
        f"({', '.join(features)}): the others never changed in the first fifth, so that nothing could be learned from them."
    )


def _mean_auc(windows: Sequence[Window]) -> str:
    known = [value for window in windows if (value := window.figures["roc_auc"].value) is not None]
    return f"{np.mean(known):.4f}" if known else "-"


def _estimates(windows: Sequence[Window]) -> list[str]:
    """How far off the estimates were: those that were trusted, and those that were not."""
    lines = []
    for trust in ("trusted", "not trusted", "unverified"):
        off = [
            abs(said - value)
            for window in windows
            if window.estimate.trust == trust
            and (said := window.estimate.figures["roc_auc"]) is not None
            and (value := window.figures["roc_auc"].value) is not None
        ]
        mean = f", AUC off by {np.mean(off):.4f} on average" if off else ""
        lines.append(f"| weeks whose estimate was {trust} | {len(off)}{mean} |")
    return lines


def _row(number: int, window: Window, check: Check | None) -> str:
    said = window.estimate.figures["roc_auc"]
    drift = "-" if check is None else check.reason if check.verdict == "drift" else check.verdict
    estimate = "-" if said is None else f"{said:.4f}, {window.estimate.trust}"
    return f"| {number} | {drift} | {window.figures['roc_auc']} | {estimate} | {window.verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="replay the electricity market through a real server")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--folder", type=Path, default=Path("var/elec"))
    parser.add_argument("--page", type=Path, default=Path("docs/elec.md"))
    asked = parser.parse_args()
    commit = git_commit()
    done = replay(asked.data, asked.folder)
    weeks = look(done)
    image = asked.page.with_suffix(".svg")
    image.write_text(picture(weeks), encoding="utf-8")
    asked.page.write_text(page(done, weeks, image.name, commit), encoding="utf-8")
    print(f"{asked.page} and {image}")


if __name__ == "__main__":
    main()
