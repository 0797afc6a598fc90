"""What a check finds, as data. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "failed", "left out"]


class LeftOut(Exception):
    """A check cannot be made here. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation. source: who sent. sent: the request. back: the response. to: (address, port, protocol) for
    `explain`, if the packet did not get there. client: the namespace and pod that sent, for the same.
    """

    source: str
    sent: str
    back: str
    ok: bool
    to: tuple[str, int, str] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One row. detail: what failed, or why it is left out; "" if all is well. reasons: what `explain` says of it."""

    name: str
    says: str
    state: State
    back: str = ""
    detail: str = ""
    seconds: float = 0.0
    reasons: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "says": self.says,
            "state": self.state,
            "back": self.back,
            "detail": self.detail,
            "seconds": round(self.seconds, 3),
            "reasons": list(self.reasons),
        }


def result_of(name: str, says: str, findings: Iterable[Finding], seconds: float, reasons: tuple[str, ...]) -> Result:
    found = list(findings)
    bad = [f for f in found if not f.ok]
    if not found:
        return Result(name, says, "failed", "nothing was sent", "the check found nothing to try", seconds)
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        detail = "; ".join(f"{f.source}: {f.sent}: {f.back}" for f in bad[:3]) + more
        return Result(name, says, "failed", f"{len(found) - len(bad)} of {len(found)}", detail, seconds, reasons)
    back = found[0].back if len(found) == 1 else f"{len(found)} of {len(found)}"
    return Result(name, says, "ok", back, "", seconds)


def junit(results: Iterable[Result]) -> str:
    """Return the results as a JUnit XML document, as CI systems read it."""
    from xml.etree import ElementTree

    rows = list(results)
    suite = ElementTree.Element(
        "testsuite",
        name="podwire check",
        tests=str(len(rows)),
        failures=str(sum(r.state == "failed" for r in rows)),
        skipped=str(sum(r.state == "left out" for r in rows)),
        errors="0",
        time=f"{sum(r.seconds for r in rows):.3f}",
    )
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname="podwire.check", name=row.name, time=f"{row.seconds:.3f}"
        )
        if row.state == "failed":
            failure = ElementTree.SubElement(case, "failure", message=_xml(row.detail))
            failure.text = _xml("\n".join(row.reasons))
        elif row.state == "left out":
            ElementTree.SubElement(case, "skipped", message=_xml(row.detail))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode")


def _xml(text: str) -> str:
    """Return the text without characters that XML 1.0 does not have."""
    return "".join(c if c in "\t\n\r" or ord(c) >= 32 else "?" for c in text)
