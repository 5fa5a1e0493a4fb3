"""A study as it stands, in lines for people: also while another process runs its search."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

from raysearch.errors import InputError
from raysearch.report.terminal import budget_lines, own_command, shell_path
from raysearch.study.folder import TRIALS, is_study, read_space, read_trials
from raysearch.study.front import Front
from raysearch.study.records import seconds_text
from raysearch.study.status import ENDED, Status, read_status

MAX_SLOTS_LISTED = 20


def study_status(folder: Path) -> dict[str, Any]:
    """The status of a study's search, its trials and its front, as plain JSON values.

    Raises:
        InputError: the folder is no study, or its files are damaged.
    """
    if not is_study(folder):
        raise InputError(f"{folder}: no study; give the --out folder of a search")
    space, status = read_space(folder), read_status(folder)
    records = read_trials(folder) if (folder / TRIALS).exists() else []
    front = Front.load(folder) if (folder / "front.json").exists() else None
    newest = records[-1] if records else None
    return {
        "study": space.name,
        "model": space.model,
        "running": bool(status and status.is_running),
        "status": status.model_dump(mode="json") if status else None,
        "limits": space.search.limits_text(),
        "trials": Counter(record.end for record in records),
        "newest_trial": newest and newest.model_dump(mode="json", exclude_none=True),
        "newest_trial_at": (folder / TRIALS).stat().st_mtime if newest else None,
        "hypervolume": front.hypervolume if front else None,
        "front": [point.key for point in front.points] if front else [],
        "budgets": front.budgets if front else {},
    }


def status_lines(folder: Path) -> list[str]:
    """`study_status` for people, with the way to go on.

    Raises:
        InputError: as `study_status`.
    """
    found = study_status(folder)
    status = Status.model_validate(found["status"]) if found["status"] else None
    counts = found["trials"]
    ends = ", ".join(f"{counts[end]} {end}" for end in ("finished", "stopped", "failed") if counts[end])
    lines = [f"study       {found['study']}: {found['model']}", f"search      {_search_text(status)}"]
    if status and found["running"]:
        lines += [f"            {line}" for line in status.lines()[:MAX_SLOTS_LISTED]]
    lines.append(f"trials      {counts.total()} ended{f': {ends}' if ends else ''}; limits: {found['limits']}")
    if newest := found["newest_trial"]:
        retention = f", retention {newest['rungs'][-1]['retention']:.1%}" if newest["rungs"] else ""
        reason = f": {newest['reason']}" if newest["reason"] else ""
        ago = _ago(found["newest_trial_at"])
        lines.append(f"last event  {ago}: {newest['key']} {newest['end']}{retention}{reason}")
    if found["front"]:
        lines.append(f"front       {len(found['front'])} recipes, hypervolume {found['hypervolume']:.3f}")
        lines += [f"            {line}" for line in budget_lines(Front.load(folder))]
    else:
        lines.append("front       none yet: no trial has finished")
    where = shell_path(folder)
    best = "" if not found["front"] else f"; {own_command()} best {where} --budget 60%"
    if found["running"]:
        lines.append(f"next        wait, or end it with Ctrl-C{best}")
    else:
        lines.append(f"next        {own_command()} search --resume {where}{best}")
    return lines


def _search_text(status: Status | None) -> str:
    if status is None:
        return "none has run here since this version"
    where = f"process {status.pid} on {status.host}"
    if status.is_running:
        return f"running for {seconds_text(time.time() - status.started)}, {where}"
    if status.stage.state == ENDED:
        reason = f": {status.stage.reason}" if status.stage.reason else ""
        return f"ended {_ago(status.updated)}{reason}"
    return f"gone without an end, {where}; it last said something {_ago(status.updated)}: {status.stage.state}"


def _ago(moment: float) -> str:
    return f"{seconds_text(max(0.0, time.time() - moment))} ago"
