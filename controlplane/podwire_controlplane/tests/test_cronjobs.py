"""The times of CronJobs' schedules, and what a CronJob does at them, as pure functions."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_base.kube.times import timestamp
from podwire_base.testing.builders import meta, stored
from podwire_controlplane.controllers import cronjobs
from podwire_controlplane.controllers.base import Write
from podwire_controlplane.rules import cron

from ..testing.builders import snapshot

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def at(text: str, zone: Any = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("schedule", "after", "first"),
    [
        ("*/15 * * * *", "2027-01-15T08:07:30", "2027-01-15T08:15:00"),
        ("0 0 29 2 *", "2027-01-15T08:00:00", "2028-02-29T00:00:00"),
        ("30 6 * * mon-fri", "2027-01-15T06:30:00", "2027-01-18T06:30:00"),  # a Friday
        ("0 12 13 * 5", "2027-01-13T12:00:00", "2027-01-15T12:00:00"),  # the 13th, or a Friday
        ("0 12 13 * *", "2027-01-13T12:00:00", "2027-02-13T12:00:00"),
        ("0 12 */2 * 5", "2027-01-15T12:00:00", "2027-01-17T12:00:00"),  # a step restricts: odd days, or Fridays
        ("@weekly", "2027-01-15T00:00:00", "2027-01-17T00:00:00"),
        ("59 23 31 12 ?", "2027-12-31T23:59:00", "2028-12-31T23:59:00"),
    ],
)
def test_the_next_time(schedule: str, after: str, first: str) -> None:
    found = cronjobs.next_time(schedule, UTC, at(after), 0)
    assert found == at(first)
    assert cronjobs.last_time(schedule, UTC, at(first) + 59, at(after)) == at(first)


def test_a_date_that_never_comes_has_no_time() -> None:
    assert cronjobs.next_time("0 0 30 2 *", UTC, at("2027-01-15T08:00:00"), 0) is None
    assert cronjobs.last_time("0 0 30 2 *", UTC, at("2027-01-15T08:00:00"), 0) is None


def test_every_counts_from_the_last_time() -> None:
    begin = at("2027-01-15T08:00:10")
    assert cronjobs.next_time("@every 1m30s", UTC, begin + 91, begin) == begin + 180
    assert cronjobs.last_time("@every 1m30s", UTC, begin + 89, begin) is None
    assert cronjobs.last_time("@every 1m30s", UTC, begin + 181, begin) == begin + 180


def test_the_hour_that_a_clock_change_leaves_out_has_no_time() -> None:
    before = at("2027-03-28T01:00:00", BERLIN)
    assert cronjobs.next_time("30 2 * * *", BERLIN, before, 0) == at("2027-03-29T02:30:00", BERLIN)
    assert cronjobs.next_time("0 9 * * *", BERLIN, before, 0) == at("2027-03-28T09:00:00", BERLIN)


def _slow(schedule: str, after: float) -> float | None:
    """Look at every minute of 60 days."""
    fields, words = cron.parse(schedule), schedule.split()
    moment = datetime.fromtimestamp(after, UTC).replace(second=0, microsecond=0)
    for _ in range(60 * 24 * 60):
        moment += timedelta(minutes=1)
        if moment.minute not in fields[0] or moment.hour not in fields[1] or moment.month not in fields[3]:
            continue
        month, week = moment.day in fields[2], moment.isoweekday() % 7 in fields[4]
        if (month and week) if "*" in (words[2], words[4]) else (month or week):
            return moment.timestamp()
    return None


@given(
    st.sampled_from(["0", "*/20", "5,50"]),
    st.sampled_from(["*", "3", "8-20/4"]),
    st.sampled_from(["*", "1", "10-12", "*/9"]),
    st.sampled_from(["*", "1-6"]),
    st.sampled_from(["*", "0", "1-5/2"]),
    st.integers(0, 40 * 86400),
)
def test_times_are_those_of_a_minute_by_minute_search(a: str, b: str, c: str, d: str, e: str, offset: int) -> None:
    schedule, after = f"{a} {b} {c} {d} {e}", at("2027-01-01T00:00:00") + offset
    found = cronjobs.next_time(schedule, UTC, after, 0)
    assert found == _slow(schedule, after)
    if found is not None:
        assert cronjobs.last_time(schedule, UTC, found, after) is not None


# ---- what a CronJob does

NOW = at("2027-01-15T08:10:30")


def _cron(**spec: Any) -> Object:
    inner: Object = {"spec": {"template": {"spec": {"containers": []}}}}
    made = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": meta("c"),
        "spec": {"schedule": "*/10 * * * *", "jobTemplate": inner, **spec},
    }
    return stored(made, uid="cu", creationTimestamp="2027-01-15T08:00:30Z")


def _child(own: str, *conditions: str) -> Object:
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "cu", "controller": True}
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta(own, ownerReferences=[owner])}
    rows = [{"type": kind, "status": "True", "lastTransitionTime": timestamp(NOW)} for kind in conditions]
    return stored(made, status={"conditions": rows})


def _did(owner: Object, *others: Object, now: float = NOW) -> list[Write]:
    return cronjobs.reconcile("default/c", snapshot(owner, *others), now)


def _words(changes: list[Write]) -> list[str]:
    return [f"{c.verb} {c.kind} {c.obj.get('reason') or c.name}" for c in changes if c.verb != "again"]


def test_a_job_is_made_for_the_time_that_has_come_and_the_next_one_is_waited_for() -> None:
    changes = _did(_cron())
    assert [(c.told.reason, c.told.message) for c in changes if c.told] == [("SuccessfulCreate", "Created job {name}")]
    assert _words(changes) == [
        f"create Job c-{int(at('2027-01-15T08:10:00')) // 60}",
        "status CronJob c",
    ]
    (later,) = [c for c in changes if c.verb == "again"]
    assert later.obj["seconds"] == 570
    assert changes[-1].obj["status"]["lastScheduleTime"] == "2027-01-15T08:10:00Z"
    done = stored(_cron(), uid="cu", status={"lastScheduleTime": "2027-01-15T08:10:00Z"})
    assert _words(_did(done)) == []


def test_a_second_time_within_the_minute_makes_no_second_job() -> None:
    """The name of a Job has the minute: each time of "@every 5s" was told as a Job that was created."""
    owner = stored(_cron(schedule="@every 5s"), uid="cu", status={"lastScheduleTime": "2027-01-15T08:10:20Z"})
    there = _child(f"c-{int(NOW) // 60}", "Complete")
    assert "create" not in " ".join(_words(_did(owner, there)))
    assert _did(owner, there)[1].obj["status"]["lastScheduleTime"] == "2027-01-15T08:10:30Z"


def test_forbid_waits_and_replace_ends_the_other() -> None:
    busy = _child("c-1")
    assert _words(_did(_cron(concurrencyPolicy="Forbid"), busy)) == [
        "create Event JobAlreadyActive",
        "status CronJob c",  # with the Job that is active; the time itself stays due
    ]
    assert "lastScheduleTime" not in _did(_cron(concurrencyPolicy="Forbid"), busy)[-1].obj["status"]
    assert _words(_did(_cron(concurrencyPolicy="Replace"), busy))[0] == "delete Job c-1"


def test_a_time_that_is_too_long_ago_is_missed() -> None:
    assert _words(_did(_cron(startingDeadlineSeconds=20))) == ["create Event MissSchedule"]
    assert _words(_did(_cron(startingDeadlineSeconds=40)))[0].startswith("create Job")


def test_a_suspended_one_makes_nothing_and_forgets_old_jobs() -> None:
    ended = [_child(f"c-{n}", "Complete") for n in range(5)] + [_child(f"c-{n}", "Failed") for n in (7, 8)]
    changes = _did(_cron(suspend=True), *ended)
    assert [w for w in _words(changes) if w.startswith("delete")] == [f"delete Job c-{n}" for n in (0, 1, 7)]
    assert not [w for w in _words(changes) if w.startswith("create")]


def test_a_schedule_that_cannot_be_read_is_told() -> None:
    assert _words(_did(_cron(schedule="nonsense"))) == ["create Event UnparseableSchedule"]
    assert _words(_did(_cron(timeZone="No/Where"))) == ["create Event UnparseableSchedule"]
