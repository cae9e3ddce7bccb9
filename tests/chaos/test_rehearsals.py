"""Stories whose end is promised: leaders that die in a row, servers that die, a cut cable,
a daemon that is cut off, a full disk. Afterwards every task has its outcome, once.

One alone: ``PYTHONPATH=tests python -m chaos.run "ten leaders"``
"""

from __future__ import annotations

import pytest

from chaos.rehearsals import REHEARSALS
from chaos.trial import Report

ON_REQUEST = {
    "a cut of 30 s",
    "a worker is cut off",
    "nothing comes from a worker",
    "nothing comes to the leader",
}
"""Like others, and run by name only: the suite has to end some day."""


@pytest.mark.parametrize("trial", [name for name in REHEARSALS if name not in ON_REQUEST])
def test_every_task_has_its_outcome_once_in(
    trial: str, impossible: dict[str, str], reports: dict[str, Report]
) -> None:
    if trial in impossible:
        pytest.skip(impossible[trial])
    report = reports[trial]
    print("\n".join(report.story))
    assert report.story or report.violations
    assert not report.violations, report
