"""Shared by all test folders: how many examples the property tests draw (`make test`: a tenth of `make test-long`), and
where PODWIRE_PATIENCE says that the machine is slow, a tenth of that."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from podwire_controlplane.patience import FACTOR

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("ci", max_examples=50, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("long", max_examples=500, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("slow", max_examples=5, deadline=None, suppress_health_check=_QUIET)
settings.load_profile("long" if os.environ.get("PODWIRE_LONG") else "slow" if FACTOR > 1 else "ci")
