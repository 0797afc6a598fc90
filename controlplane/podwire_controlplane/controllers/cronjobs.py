"""CronJobs (batch/v1): a Job at each time of a schedule."""

from __future__ import annotations

import copy
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.meta import Object, annotations_of, deleting, labels, name, namespace, uid
from podwire_base.kube.times import parse_time, timestamp

from ..rules import cron
from .base import Controller, Snapshot, Write, again, itself, owner_of, owner_reference
from .jobs import finished
from .podmaking import changed_status, number, telling, tells

SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
_FORMS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DAYS = 366 * 5  # how far a time is looked for: beyond the next 29 February


# ---- times


def _interval(text: str) -> float:
    """Return the seconds of "@every 1h30m"; a second at least, as robfig/cron has it."""
    total, digits = 0.0, ""
    rest = text.removeprefix("@every ").strip()
    while rest:
        unit = next((u for u in sorted(_UNITS, key=len, reverse=True) if rest.startswith(u)), "")
        if unit:
            total += float(digits) * _UNITS[unit]
            digits, rest = "", rest[len(unit) :]
        else:
            digits, rest = digits + rest[0], rest[1:]
    return max(1.0, float(int(total)))


def _days(first: date, fields: list[frozenset[int]], words: list[str], step: int) -> Iterator[date]:
    """Yield the days from `first` on (step -1: back) that the schedule has. Where both the day of the month and the day
    of the week are restricted, one of them is enough.
    """
    _, _, in_month, months, in_week = fields
    stars = [any(part in ("*", "?") for part in words[n].split(",")) for n in (2, 4)]
    day = first
    for _ in range(_DAYS):
        if day.month in months:
            of_month, of_week = day.day in in_month, day.isoweekday() % 7 in in_week
            if (of_month and of_week) if any(stars) else (of_month or of_week):
                yield day
        day += timedelta(days=step)


def _times(text: str, zone: tzinfo, moment: float, step: int) -> Iterator[float]:
    """Yield the schedule's times after `moment` in order (step 1), or those up to `moment`, the latest first (-1)."""
    text = _FORMS.get(text, text)
    fields = cron.parse(text)
    start = datetime.fromtimestamp(moment, zone)
    hours, minutes = (sorted(values, reverse=step < 0) for values in (fields[1], fields[0]))
    for day in _days(start.date(), fields, text.split(), step):
        for hour in hours:
            for minute in minutes:
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                found = local.timestamp()
                if datetime.fromtimestamp(found, zone).replace(tzinfo=None) != local.replace(tzinfo=None):
                    continue  # the hour that a clock change leaves out
                if (found > moment) if step > 0 else (found <= moment):
                    yield found


def next_time(text: str, zone: tzinfo, after: float, begin: float) -> float | None:
    """Return the first time after `after`. begin: where "@every" counts from."""
    if text.startswith("@every"):
        every = _interval(text)
        return begin + (int((after - begin) // every) + 1) * every
    return next(_times(text, zone, after, 1), None)


def last_time(text: str, zone: tzinfo, now: float, begin: float) -> float | None:
    """Return the latest time up to `now` and after `begin`, None if there is none."""
    if text.startswith("@every"):
        every = _interval(text)
        count = int((now - begin) // every)
        return begin + count * every if count > 0 else None
    found = next(_times(text, zone, now, -1), None)
    return found if found is not None and found > begin else None


# ---- Jobs


def _job(owner: Object, moment: float) -> Object:
    template = copy.deepcopy(owner["spec"]["jobTemplate"])
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{name(owner)}-{int(moment) // 60}",
            "namespace": namespace(owner),
            "labels": labels(template),
            "annotations": {**annotations_of(template), SCHEDULED: timestamp(moment)},
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": template["spec"],
    }


def _remove(job: Object, why: str) -> Write:
    options = {"propagationPolicy": "Background", "preconditions": {"uid": uid(job)}}
    return Write("delete", "Job", namespace(job), name(job), options, why)


def _old(owner: Object, jobs: list[Object]) -> list[Write]:
    """Return the deletion of finished Jobs beyond the history limits, the oldest first."""
    changes = []
    for kind, field, absent in (("Complete", "successfulJobsHistoryLimit", 3), ("Failed", "failedJobsHistoryLimit", 1)):
        ended = sorted((j for j in jobs if is_true(j, kind)), key=lambda j: str(j["metadata"].get("creationTimestamp")))
        keep = number(owner["spec"], field, absent)
        changes += [_remove(job, field) for job in ended[: max(0, len(ended) - keep)]]
    return changes


def _ended_at(job: Object) -> str:
    return str((job.get("status") or {}).get("completionTime") or condition(job, "Complete").get("lastTransitionTime"))


def _reference(job: Object) -> Object:
    meta = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": meta["name"],
        "namespace": meta["namespace"],
        "uid": meta["uid"],
        "resourceVersion": meta.get("resourceVersion", ""),
    }


def _zone(owner: Object) -> tzinfo:
    own = owner["spec"].get("timeZone")
    return zoneinfo.ZoneInfo(own) if own else UTC


def _start(owner: Object, jobs: list[Object], now: float) -> tuple[list[Write], float | None]:
    """Return what the schedule asks for now, and the time of the Job that it starts."""
    spec, before = owner["spec"], owner.get("status") or {}
    active = [job for job in jobs if not finished(job)]
    born = parse_time(owner["metadata"]["creationTimestamp"]).timestamp()
    last = before.get("lastScheduleTime")
    begin = parse_time(last).timestamp() if last else born
    try:
        zone = _zone(owner)
        due = last_time(spec["schedule"], zone, now, begin)
        follows = next_time(spec["schedule"], zone, now, begin if due is None else due)
    except (cron.BadSchedule, zoneinfo.ZoneInfoNotFoundError, ValueError) as err:
        text = f"unparseable schedule: {err}"
        return [tells("CronJob", owner, "UnparseableSchedule", text, now, warning=True, once="unparseable")], None
    later = [again("CronJob", follows - now)] if follows is not None else []
    if due is None:
        return later, None
    deadline = spec.get("startingDeadlineSeconds")
    if deadline is not None and now - due > deadline:
        text = f"Missed scheduled time to start a job: {timestamp(due)}"
        told = tells("CronJob", owner, "MissSchedule", text, now, warning=True, once=f"missed-{int(due)}")
        return [*later, told], None
    changes: list[Write] = []
    policy = spec.get("concurrencyPolicy") or "Allow"
    if policy == "Forbid" and active:  # it starts when the other ends, if its time is not too long ago then
        text = "Not starting job because prior execution is running and concurrency policy is Forbid"
        return [*later, tells("CronJob", owner, "JobAlreadyActive", text, now, once=f"active-{int(due)}")], None
    if policy == "Replace":
        changes = [_remove(job, "concurrencyPolicy Replace") for job in active]
    made = _job(owner, due)
    if name(made) in {name(job) for job in jobs}:  # "@every 5s": a Job's name has the minute
        return later, due
    changes.append(Write("create", "Job", namespace(owner), name(made), made, f"at {timestamp(due)}"))
    return [*changes, *later], due


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    owner = snapshot.get("CronJob", wanted)
    if owner is None or deleting(owner):
        return []
    jobs = [job for job in snapshot.owned("Job", owner) if not deleting(job)]
    active = [job for job in jobs if not finished(job)]
    before = owner.get("status") or {}
    known = {row.get("uid") for row in before.get("active") or []}
    told = [
        tells("CronJob", owner, "SawCompletedJob", f"Saw completed job: {name(job)}, condition: {kind}", now)
        for job in jobs
        for kind in ("Complete", "Failed")
        if uid(job) in known and is_true(job, kind)
    ]
    changes, moment = ([], None) if owner["spec"].get("suspend") else _start(owner, jobs, now)
    status: Object = {"active": sorted(map(_reference, active), key=lambda row: str(row["name"])) or None}
    if {row["uid"] for row in status["active"] or []} == known:
        status = {}  # a reference's resourceVersion alone is no news
    if moment is not None:
        status["lastScheduleTime"] = timestamp(moment)
    if done := [_ended_at(job) for job in jobs if is_true(job, "Complete")]:
        status["lastSuccessfulTime"] = max([*done, before.get("lastSuccessfulTime") or ""])
    # the Job comes first: after a failure between the two writes its name keeps it from being made twice
    return telling("CronJob", owner, [*changes, *changed_status("CronJob", owner, status), *told, *_old(owner, jobs)])


CONTROLLERS = (Controller("cronjob", {"CronJob": itself, "Job": owner_of("CronJob")}, reconcile),)
