"""A candidate of the leader election of `kubernetes`. Words: NAME KIND, where KIND is lease or configmap."""

from __future__ import annotations

import sys
import threading

from kubernetes import config
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

name, kind = sys.argv[1:]
config.load_kube_config()
lock = (LeaseLock if kind == "lease" else ConfigMapLock)("candidates", "default", name)


def lead() -> None:
    print("leads", flush=True)
    threading.Event().wait()


class Told:
    """Says once that this candidate has seen another one lead."""

    def __init__(self, get: object) -> None:
        self.get, self.done = get, False

    def __call__(self, *words: str) -> object:
        found = self.get(*words)  # type: ignore[operator]  # a method of the lock
        if found[0] and found[1] and found[1].holder_identity not in (None, name) and not self.done:
            self.done = True
            print("follows", found[1].holder_identity, flush=True)
        return found


lock.get = Told(lock.get)
leaderelection.LeaderElection(
    electionconfig.Config(
        lock,
        lease_duration=3,
        renew_deadline=2,
        retry_period=1,
        onstarted_leading=lead,
        onstopped_leading=lambda: print("stops", flush=True),
    )
).run()
