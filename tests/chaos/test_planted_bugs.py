"""Bugs planted into real processes: the checker catches every one of them.

One alone: ``PYTHONPATH=tests python -m chaos.run "the last outcome wins"``
"""

from __future__ import annotations

import pytest

from chaos.planted import BUGS, NONE
from chaos.trial import Report


@pytest.mark.parametrize("trial", BUGS)
def test_the_checker_catches(trial: str, reports: dict[str, Report]) -> None:
    report = reports[trial]
    expected = BUGS[trial].found_by
    assert any(expected in violation for violation in report.violations), report


@pytest.mark.parametrize("trial", [NONE])
def test_the_same_story_without_a_bug_has_no_violation(
    trial: str, reports: dict[str, Report]
) -> None:
    assert not reports[trial].violations
