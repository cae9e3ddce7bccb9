"""Which of a worker's reports wait for the results log, and which are passed on."""

from __future__ import annotations

from nbsched.leader.earlyreports import EarlyReports
from nbsched.messages import WorkerReport
from nbsched.model import Term, WorkerId


def report(worker: str, results_seq: int) -> WorkerReport:
    return WorkerReport(WorkerId(worker), Term(1), 0, results_seq, (), 1)


def taken(reports: EarlyReports, position: int) -> list[tuple[str, int]]:
    return [(each.worker, each.results_seq) for each in reports.take_ripe(position)]


def test_the_newest_ripe_report_of_each_worker_is_passed_on_once() -> None:
    reports = EarlyReports()
    for worker, sequence in (("a", 1), ("b", 2), ("a", 3), ("b", 9)):
        reports.add(report(worker, sequence))
    assert taken(reports, 5) == [("a", 3), ("b", 2)]
    assert taken(reports, 5) == []
    assert taken(reports, 9) == [("b", 9)]
    assert len(reports) == 0


def test_reports_that_wait_take_no_memory() -> None:
    reports = EarlyReports()
    for sequence in range(1, 10_001):
        reports.add(report("a", sequence))
    assert sum(map(len, reports._waiting.values())) == 2
    assert taken(reports, 10_000) == [("a", 10_000)]


def test_a_reading_that_is_always_behind_keeps_no_worker_from_being_heard() -> None:
    reports = EarlyReports()
    heard = 0
    for sequence in range(1, 1001):
        reports.add(report("a", sequence))
        heard += len(reports.take_ripe(sequence - 10))
    assert heard >= 90


def test_a_report_of_a_log_that_was_lost_waits_no_longer() -> None:
    reports = EarlyReports()
    reports.add(report("a", 100))
    reports.limit(7)
    assert taken(reports, 6) == []
    assert taken(reports, 7) == [("a", 7)]
