"""Feeds a thousand endpoint changes per second to the proxy's engine, with the pacing of the proxy role's syncs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from podwire_base.kube.meta import Object
from podwire_proxy.changes import Tracker
from podwire_proxy.flows import Swept
from podwire_proxy.proxier import Proxier
from podwire_proxy.sweeper import SHARE, SWEEP_AFTER

INTERVAL = 0.01  # as ProxyConfig.min_interval


def resident() -> float:
    """Return this process's resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@dataclass
class Churn:
    """lags: for each change, the seconds from its due time to its commit. rss: resident MiB, one sample per second."""

    syncs: int = 0
    elements: int = 0
    verdicts: int = 0
    lags: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    cpu: float = 0.0  # seconds of the process

    def figures(self) -> dict[str, float]:
        ordered = sorted(self.lags)
        quarter = max(1, len(self.rss) // 4)
        return {
            "value": ordered[-1] * 1000,
            "p50": statistics.median(ordered) * 1000,
            "p99": ordered[int(len(ordered) * 0.99)] * 1000,
            "changes": len(ordered),
            "syncs": self.syncs,
            "cpu a change": self.cpu * 1000 / len(ordered),
            "verdicts": self.verdicts,
            "rss first quarter": statistics.mean(self.rss[:quarter]),
            "rss last quarter": statistics.mean(self.rss[-quarter:]),
        }


def churn(
    tracker: Tracker,
    proxier: Proxier,
    changes: Iterator[tuple[str, Object]],
    count: int,
    rate: float,
    clock: Callable[[], float] = time.monotonic,
) -> Churn:
    """Feed `count` changes at `rate` per second. Rate 0 feeds ten changes per sync, as fast as possible."""
    out, begin, done = Churn(), clock(), 0
    cpu = time.process_time()
    last_sync = last_sweep = last_sample = begin
    pending: list[float] = []
    thread, look = ThreadPoolExecutor(1), Future[Swept]()
    look.set_result(Swept())
    last_look = begin
    while done < count or pending:
        now = clock()
        due = min(count, done + 10 if not rate else int((now - begin) * rate))
        while done < due:
            key, obj = next(changes)
            tracker.slice(key, obj)
            pending.append(begin + done / rate if rate else now)
            done += 1
        if pending and (not rate or now - last_sync >= INTERVAL):
            synced = proxier.sync(tracker.dataplane, tracker.flush())
            last_sync = clock()
            out.syncs, out.elements, out.verdicts = (
                out.syncs + 1,
                out.elements + synced.elements,
                out.verdicts + synced.verdicts,
            )
            out.lags += [last_sync - at for at in pending]
            pending.clear()
        if now - last_sweep >= SWEEP_AFTER:
            proxier.sweep_rules()
            last_sweep = now
        if look.done() and now - last_look >= max(SWEEP_AFTER, SHARE * look.result().busy):  # as sweeper.Sweeper does
            look = thread.submit(proxier.flows.look().run)
            last_look = now
        if now - last_sample >= 1:
            out.rss.append(resident())
            last_sample = now
        if rate:
            time.sleep(0.001)
    thread.shutdown()
    look.result()
    proxier.sweep()
    out.rss.append(resident())
    out.cpu = time.process_time() - cpu
    return out
