"""The events that are sent to MLflow."""

import json
import math
import os
import platform
import re
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Front, FrontPoint, retention_text
from raysearch.study.provenance import versions
from raysearch.study.records import Score, TrialRecord
from raysearch.study.secrets import mask
from raysearch.tracking.mlflow_runs import Event

STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}  # the tag `end` tells the first two apart


def parent_event(study: StudyFolder) -> Event:
    """The parent run: space and environment."""
    space = mask(study.space.model_dump(mode="json"))
    params = {name: space[name] for name in ("model", "data", "retention")}
    params["benchmarks"] = ", ".join(one if isinstance(one, str) else one["name"] for one in space["benchmarks"])
    tags = {"raysearch.study": study.space.name, "raysearch.folder": str(study.folder), **environment()}
    tags["raysearch.budgets"] = ", ".join(study.space.budgets)
    tags |= {f"search.{name}": value for name, value in space["search"].items() if value is not None}
    documents = {"space.json": space}
    return event_of(None, name=study.folder.name, params=params, tags=tags, status="RUNNING", documents=documents)


def environment() -> dict[str, str]:
    """Versions and machine, as tags."""
    found = {f"env.{name}": version for name, version in versions().items()}
    return found | {"env.platform": platform.platform(), "env.num_cpus": str(os.cpu_count())}


def start_event(trial: str, recipe: Recipe, size: Size, dense: Size | None, on_front: bool = False) -> Event:
    """The start of a trial: its recipe and size."""
    sizes = {"num_params": float(size.num_params), "size_bytes": float(size.size_bytes)}
    if dense:
        sizes["size_ratio"] = size.size_bytes / dense.size_bytes
    tags = {"mode": recipe.mode, "front": "yes" if on_front else "no"}
    tags |= {"end": "running", "raysearch.trial": trial}
    name = f"{recipe.mode} {recipe.ratio:.0%} {recipe.key}"
    return event_of(recipe.key, name=name, params=recipe.as_dict(), tags=tags, metrics=sizes, status="RUNNING")


def rung_event(key: str, score: Score) -> Event:
    """A trial's score at a rung."""
    metrics = {"retention": score.retention, "retention_se": score.retention_se}
    metrics |= {f"score.{_name(benchmark)}": value for benchmark, value in score.scores.items()}
    metrics |= {f"loss.{_name(term)}": value for term, value in score.losses.items()}
    return event_of(key, metrics=metrics, step=score.samples_seen)


def end_event(record: TrialRecord) -> Event:
    """How a trial ended."""
    tags = {"end": record.end, "reason": mask(record.reason)}
    step = record.rungs[-1].samples_seen if record.rungs else 0
    metrics = {name: getattr(record, name) for name in ("seconds", "seconds_training", "seconds_evaluating")}
    status = STATUS[record.end]
    return event_of(record.key, tags=tags, metrics=metrics, step=step, status=status, final=True)


def record_events(record: TrialRecord, dense: Size | None, on_front: bool) -> list[Event]:
    """All events of an ended trial that MLflow has not received."""
    size = record.size
    start = start_event(record.trial, record.recipe, size, dense, on_front)
    start = start.model_copy(update={"time": start.time - int(1000 * record.seconds)})
    return [start, *(rung_event(record.key, score) for score in record.rungs), end_event(record)]


def missing_events(
    records: Iterable[TrialRecord], sent: Container[str], dense: Size | None, on_front: Container[str]
) -> Iterator[Event]:
    """The events of ended trials, made as they are asked for, without those whose end MLflow has received."""
    for record in records:
        if record.key not in sent:
            yield from record_events(record, dense, record.key in on_front)


def front_event(front: Front, num_ended: int) -> Event:
    """Hypervolume and the retention at each budget, over the number of ended trials."""
    points = {point.key: point for point in front.points}
    metrics = {"hypervolume": front.hypervolume, "num_front_points": float(len(points))}
    for budget, key in front.budgets.items():
        if key is not None:
            metrics[f"retention_at.{_name(budget.replace('%', 'pct'))}"] = points[key].retention
    return event_of(None, metrics=metrics, step=num_ended, files=["front.json"])


def forecast_event(text: str, points: Mapping[str, float], num_ended: int) -> Event:
    """What another ten full runs are expected to add, in words and by budget."""
    metrics = {f"expected_gain.{_name(name.replace('%', 'pct'))}": value for name, value in points.items()}
    return event_of(None, tags={"forecast": text}, metrics=metrics, step=num_ended)


def point_event(point: FrontPoint) -> Event:
    """What is known of a front point's checkpoint after the trial: retention and scores on held-out questions, speed
    and memory; numbers as metrics, the machine as tags."""
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    if point.heldout:
        metrics["heldout_retention"] = point.heldout.retention
        metrics |= {f"heldout_score.{_name(name)}": score for name, score in point.heldout.scores.items()}
    if point.measured:
        speed = point.measured
        metrics |= {f"speed.{name}": value for name, value in speed.model_dump(exclude={"device", "dtype"}).items()}
        tags = {"speed.device": speed.device, "speed.dtype": speed.dtype}
    return event_of(point.key, metrics=metrics, tags=tags, step=point.samples_seen)


def description_event(front: Front, ids: Mapping[str, str], experiment_id: str | None) -> Event:
    """The study's description: the answer to each budget, and a link to MLflow's comparison of the front's runs.

    Args:
        ids: MLflow's run ids by recipe key.
        experiment_id: MLflow's; None if it isn't known.
    """
    points = {point.key: point for point in front.points}
    lines = [
        f"Pruned models of `{mask(front.model)}`; retention relative to the dense model, with 95% intervals.",
        "",
        "| budget | held-out questions | search's questions | size | recipe |",
        "|---|---|---|---|---|",
    ]
    for budget, key in front.budgets.items():
        point = points.get(key or "")
        if point is None:
            lines.append(f"| {budget} | no finished recipe is that small | | | |")
            continue
        heldout = retention_text(point.heldout) if point.heldout else "not asked yet"
        size = f"{point.size_ratio:.1%}"
        lines.append(
            f"| {budget} | {heldout} | {retention_text(point)} | {size} | `{point.key}`: {point.recipe.describe()} |"
        )
    runs = [ids[key] for key in points if key in ids]
    if runs and experiment_id is not None:
        query = urlencode({"runs": json.dumps(runs), "experiments": json.dumps([experiment_id])}, quote_via=quote)
        lines += ["", f"[Compare the runs of the front](#/compare-runs?{query}): size_ratio against retention."]
    return event_of(None, tags={"mlflow.note.content": "\n".join(lines)})


def event_of(run: str | None, **content: Any) -> Event:
    """An event at this time of the recipe `run` or, if None, of the study; metrics that are not finite are left out."""
    if "metrics" in content:
        content["metrics"] = {n: float(v) for n, v in content["metrics"].items() if math.isfinite(v)}
    return Event(run=run, time=int(time.time() * 1000), **content)


def _name(text: str) -> str:
    """`text` without the characters that MLflow forbids in a metric's name."""
    return re.sub(r"[^A-Za-z0-9_./ -]", "_", text)
