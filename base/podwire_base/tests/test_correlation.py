"""Events: counted, combined and limited as Kubernetes' client library does."""

from __future__ import annotations

from ..kube.correlation import BURST, COMBINED, REFILL_SECONDS, SERIES_SECONDS, SIMILAR, Correlator, Wanted
from ..kube.events import action, event, reference
from ..kube.meta import Object

POD = reference("Pod", {"metadata": {"name": "p", "namespace": "a", "uid": "u"}})
NOW = 10.0**9


def told(message: str = "m", about: Object = POD) -> Object:
    return event(about, "Failed", message, NOW)


def test_an_event_that_is_told_again_is_counted() -> None:
    one = Correlator()
    first = one.correlate(told(), NOW)
    again = one.correlate(told(), NOW + 5)
    assert first is not None and first.verb == "create" and first.obj["count"] == 1
    assert again is not None and (again.verb, again.name) == ("patch", first.name)
    assert again.obj == {"count": 2, "lastTimestamp": "2001-09-09T01:46:45Z", "message": "m"}
    assert again.whole["firstTimestamp"] == first.obj["firstTimestamp"], "it can be made anew if it is gone"
    other = one.correlate(told("other"), NOW + 6)
    assert other is not None and other.verb == "create" and other.name != first.name


def test_an_event_that_is_gone_is_made_anew() -> None:
    one = Correlator()
    first = one.correlate(told(), NOW)
    assert first is not None
    one.gone(first.whole)
    again = one.correlate(told(), NOW + 1)
    assert again is not None and again.verb == "create" and again.obj["count"] == 1


def test_similar_events_are_combined() -> None:
    one = Correlator()
    found = [one.correlate(told(f"m{n}"), NOW) for n in range(SIMILAR + 3)]
    assert all(w is not None and w.verb == "create" for w in found[: SIMILAR + 1])
    last = found[-1]
    assert last is not None and last.verb == "patch" and last.obj["count"] == 3
    assert last.obj["message"] == f"{COMBINED}m{SIMILAR + 2}"
    known = one.correlate(told("m0"), NOW)
    assert known is not None and known.obj["message"] == "m0", "a message that was told goes on"
    later = one.correlate(told("new"), NOW + 601)
    assert later is not None and later.obj["message"] == "new", "after ten quiet minutes"


def test_a_flood_is_dropped() -> None:
    one = Correlator()
    sent = [one.correlate(told(), NOW) for _ in range(BURST + 10)]
    assert [w is not None for w in sent] == [True] * BURST + [False] * 10
    later = one.correlate(told(), NOW + REFILL_SECONDS)
    assert later is not None and later.obj["count"] == BURST + 11, "the count has what was not sent"
    assert one.correlate(told(), NOW + REFILL_SECONDS) is None
    node = reference("Node", {"metadata": {"name": "n"}})
    assert one.correlate(told(about=node), NOW) is not None, "another object"


def test_an_event_with_a_time_has_a_series() -> None:
    one = Correlator()

    def tell(seconds: float) -> Wanted | None:
        made = action(
            POD, "FailedScheduling", "no", NOW + seconds, warning=True, verb="Scheduling", controller="s", host="h"
        )
        return one.correlate(made, NOW + seconds)

    first, second = tell(0), tell(1)
    assert first is not None and first.verb == "create" and not {"count", "series", "source"} & first.obj.keys()
    assert (first.obj["reportingComponent"], first.obj["reportingInstance"]) == ("s", "s-h")
    assert second is not None and second.obj["series"]["count"] == 2
    assert tell(2) is None, "a series is written every six minutes"
    third = tell(SERIES_SECONDS + 2)
    assert third is not None and third.obj["series"]["count"] == 4
    assert third.whole["eventTime"] == first.obj["eventTime"]


def test_an_event_with_a_name_is_sent_as_it_is() -> None:
    made = event(POD, "Told", "m", NOW, suffix="once")
    found = Correlator().correlate(made, NOW)
    assert found is not None and (found.verb, found.name, found.obj) == ("create", "p.once", made)
