"""The subresource pods/eviction: a deletion that PodDisruptionBudgets may put off (pkg/registry/core/pod/storage)."""

from __future__ import annotations

from typing import Any

from podwire_base.kube import errors
from podwire_base.kube.conditions import is_true
from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object, deleting, labels, name, resource_version, uid
from podwire_base.kube.registry import of
from podwire_base.kube.selectors import label_selector
from podwire_base.kube.times import timestamp

from .objects import Objects
from .writes import Scope, WriteOptions, load

_PODS, _BUDGETS = of("Pod"), of("PodDisruptionBudget")
_MOST = 2000  # pods in status.disruptedPods
_AGAIN = 10  # seconds after which a client asks once more, where the budget's controller is behind
_TRIES = 20  # how often the write of a budget is repeated that another write overtook


async def evict(objects: Objects, scope: Scope, body: Any, options: WriteOptions) -> None:
    """Delete the pod of `scope`, and count that in its budget. Raises a StatusError, 429 with the cause
    DisruptionBudget where a budget does not allow it now.
    """
    if not isinstance(body, dict) or not isinstance(body.get("metadata") or {}, dict):
        raise errors.bad_request("the body is not an Eviction")
    named = (body.get("metadata") or {}).get("name") or ""
    if named != scope.name:
        raise errors.bad_request("name in URL does not match name in Eviction object")
    wanted: Object = dict(body.get("deleteOptions") or {})
    dry = options.dry_run or "All" in (wanted.get("dryRun") or [])
    whole = Scope(_PODS, scope.namespace, scope.name)
    pod = load(await objects.item(whole))
    _precondition(pod, wanted)
    if objects.gate:
        objects.gate.deleted(options.user, _PODS, pod)  # before it takes anything from a budget
    if not _free(pod):
        budget = await _budget_of(objects, pod)
        if budget is not None:
            held = await _allow(objects, budget, pod, dry=dry)
            if not held:  # an unhealthy pod: it goes as it was seen
                wanted["preconditions"] = {
                    "uid": uid(pod), "resourceVersion": resource_version(pod), **(wanted.get("preconditions") or {}),
                }  # fmt: skip
    await objects.delete(whole, wanted, dry_run=dry, user=options.user)


def _precondition(pod: Object, options: Object) -> None:
    found = options.get("preconditions") or {}
    if found.get("uid") not in (None, uid(pod)) or found.get("resourceVersion") not in (None, resource_version(pod)):
        raise errors.conflict(_PODS, name(pod), "the precondition (uid or resourceVersion) does not hold")


def _free(pod: Object) -> bool:
    """Whether no budget protects a pod: it has not begun, has ended, or is being deleted."""
    return deleting(pod) or (pod.get("status") or {}).get("phase") in ("Pending", "Succeeded", "Failed")


async def _budget_of(objects: Objects, pod: Object) -> Object | None:
    found = [load(item) for item in await objects.store.scan(_BUDGETS.prefix(pod["metadata"]["namespace"]))]
    found = [one for one in found if covers(one, pod)]
    if len(found) > 1:
        why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        raise StatusError(500, "", why)
    return found[0] if found else None


def covers(budget: Object, pod: Object) -> bool:
    """Whether a budget's selector selects a pod; an empty one selects all, an absent one none."""
    selector = (budget.get("spec") or {}).get("selector")
    return selector is not None and label_selector(selector)(labels(pod))


async def _allow(objects: Objects, budget: Object, pod: Object, *, dry: bool) -> bool:
    """Take one disruption from the budget by compare-and-swap. Returns False if the pod needs none, because it is
    unhealthy and the budget's policy lets such pods go. Raises StatusError 429 or 403.
    """
    scope = Scope(_BUDGETS, budget["metadata"]["namespace"], name(budget), "status")
    for _ in range(_TRIES):
        status = budget.get("status") or {}
        if not is_true(pod, "Ready"):
            healthy = int(status.get("currentHealthy") or 0) >= int(status.get("desiredHealthy") or 0) > 0
            if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow" or healthy:
                return False
        _check(budget, status)
        if dry:
            return True
        after = taken(budget, name(pod), objects.clock())
        try:
            await objects.update(scope, after, WriteOptions())
            return True
        except StatusError as err:
            if err.code != 409:
                raise
        budget = load(await objects.item(scope))
    raise errors.conflict(_BUDGETS, name(budget), "too many evictions at once; try again")


def taken(budget: Object, pod: str, now: float) -> Object:
    """Return the budget with one disruption less, which is counted for `pod` until its deletion is seen."""
    status = budget.get("status") or {}
    gone = {**(status.get("disruptedPods") or {}), pod: timestamp(now)}
    return {
        **budget,
        "status": {**status, "disruptionsAllowed": status["disruptionsAllowed"] - 1, "disruptedPods": gone},
    }


def _check(budget: Object, status: Object) -> None:
    own, allowed = name(budget), int(status.get("disruptionsAllowed") or 0)
    if int(status.get("observedGeneration") or 0) < int(budget["metadata"].get("generation") or 0):
        raise _not_now(f"The disruption budget {own} is still being processed by the server.", _AGAIN)
    if allowed < 0 or len(status.get("disruptedPods") or {}) > _MOST:
        why = (
            "pdb disruptions allowed is negative"
            if allowed < 0
            else "too many evictions not confirmed by the controller"
        )
        raise StatusError(
            403, "Forbidden", f'{_BUDGETS.qualified} "{own}" is forbidden: {why}', resource=_BUDGETS, name=own
        )
    if allowed == 0:
        needs, has = int(status.get("desiredHealthy") or 0), int(status.get("currentHealthy") or 0)
        raise _not_now(f"The disruption budget {own} needs {needs} healthy pods and has {has} currently")


def _not_now(message: str, again: int = 0) -> StatusError:
    why = "Cannot evict pod as it would violate the pod's disruption budget."
    causes = [Cause("", message, "DisruptionBudget")]
    return StatusError(429, "TooManyRequests", why, causes=causes, retry_after=again)
