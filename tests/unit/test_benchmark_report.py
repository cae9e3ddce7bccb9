"""What a benchmark's page says of given results, without running any."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are no part of what is installed
from benchmarks import report, run  # noqa: E402
from benchmarks.plan import WORKLOADS, Row  # noqa: E402

LESS = Row("how long, s", "s", less=True, aim=1.0)
MORE = Row("how many, per s", "per s", aim=100_000)


def result(system: str, workload: str, **fields: Any) -> dict[str, Any]:
    return {"round": 0, "system": system, "workload": workload, **fields}


def rates(system: str, workload: str, *values: float) -> list[dict[str, Any]]:
    return [result(system, workload, figures={"per s": value}) for value in values]


def whole(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "machine": "A machine",
        "versions": {"nbsched": "0.1", "dask": "2026.1"},
        "date": "2026-01-02",
        "minutes": 12.5,
        "rounds": 3,
        "results": results,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00412, "0.00412"), (0.9849, "0.985"), (12.34, "12.3"), (999.6, "1,000"),
     (1234.5, "1,230"), (6_345_678.0, "6,350,000")],
)  # fmt: skip
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    assert report.number(value) == text


def test_a_cell_gives_the_median_and_the_spread_of_the_rounds() -> None:
    results = rates("dask", "tiny", 700, 500, 600)
    assert report.cell(results, "dask", "tiny", MORE) == "600 (500-700)"


def test_a_single_round_has_no_spread() -> None:
    assert report.cell(rates("dask", "tiny", 500), "dask", "tiny", MORE) == "500"


def test_rounds_without_a_figure_are_not_passed_over_in_silence() -> None:
    results = [*rates("ray", "tiny", 10, 20), result("ray", "tiny", failed="it hung")]
    assert report.cell(results, "ray", "tiny", MORE) == "15 (10-20), 1 of 3 rounds without"


def test_what_a_system_cannot_do_is_said_in_its_cell() -> None:
    results = [
        result("pool", "cancel", unable="none"),
        result("ray", "cancel", unable="over 60 s"),
        result("dask", "cancel", failed="KeyError: 1"),
    ]
    cells = [report.cell(results, name, "cancel", LESS) for name in ("pool", "ray", "dask")]
    assert cells == ["none", "over 60 s", "fails"]


@pytest.mark.parametrize(
    ("row", "figure", "reached"),
    [(LESS, 0.9, True), (LESS, 1.1, False), (MORE, 1e5, True), (MORE, 99_000, False)],
)
def test_our_own_cell_is_bold_where_the_aim_is_reached(
    row: Row, figure: float, reached: bool
) -> None:
    results = [result(name, "w", figures={row.figure: figure}) for name in ("nbsched", "dask")]
    assert report.cell(results, "nbsched", "w", row).startswith("**") == reached
    assert "*" not in report.cell(results, "dask", "w", row)


def test_the_table_has_a_column_for_each_system_that_ran_and_one_for_the_aim() -> None:
    results = rates("nbsched", "tiny", 200_000) + rates("dask", "tiny", 600)
    assert report.table(results, ["nbsched", "dask"]) == [
        "| | nbsched | Dask | aim |",
        "|---|---|---|---|",
        "| 10,000 tiny tasks, default settings, per s | **200,000** | 600 | ≥ 100,000 |",
    ]


def test_cpu_time_is_given_per_million_of_the_tasks_that_ran() -> None:
    peaks = {"client": 61.0, "largest other": 50.2, "all": 230.0}
    higher = {**peaks, "client": 70.0}
    results = [
        result("nbsched", "many", figures={}, tasks=1000, cpu_s=0.5, peak_mib=peaks),
        result("nbsched", "many", figures={}, tasks=1000, cpu_s=0.7, peak_mib=higher),
        result("nbsched", "cold", figures={}),
    ]
    lines = report.resources(results, ["nbsched", "dask"])
    assert lines[2:] == [
        "| 100,000 tiny tasks, default settings: CPU s | 600 |  |",
        "| 100,000 tiny tasks, default settings: peak MiB | 70 / 50 / 230 |  |",
    ]


def test_failures_are_listed_once_and_without_the_paths_of_this_machine() -> None:
    failed = result("pool", "closure", failed="PicklingError: see /home/me/x.py of 3/4")
    lines = report.failures([failed, {**failed, "round": 1}])
    assert lines[2:] == [
        "- Pool, callable with 64 MiB, 40 tasks, s: PicklingError: see … of 3/4",
        "",
    ]


def test_the_page_names_the_machine_and_the_versions() -> None:
    page = report.page(whole(rates("nbsched", "tiny", 1) + rates("dask", "tiny", 1)))
    assert "A machine; nbsched 0.1, Dask 2026.1; 2026-01-02; rounds: 3" in page
    assert "What failed" not in page


def test_a_run_with_tiny_sizes_says_that_its_figures_mean_nothing() -> None:
    real = whole(rates("nbsched", "tiny", 1))
    assert "Tiny sizes" in report.page({**real, "smoke": True})
    assert "Tiny sizes" not in report.page({**real, "smoke": False})


def test_the_readme_gets_the_table_between_its_marks_and_keeps_the_rest() -> None:
    readme = f"# Us\n{report.README_BEGINS}last year\n{report.README_ENDS}\n## More\n"
    written = report.into_readme(readme, whole(rates("nbsched", "tiny", 1)))
    assert written.startswith(f"# Us\n{report.README_BEGINS}")
    assert written.endswith(f"{report.README_ENDS}\n## More\n")
    assert "last year" not in written
    assert "| 10,000 tiny tasks" in written
    assert report.into_readme(written, whole(rates("nbsched", "tiny", 1))) == written


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks <!-- begin: benchmarks"):
        report.into_readme("# Us\n", whole([]))


def test_the_readme_of_this_project_has_the_marks() -> None:
    report.into_readme((ROOT / "README.md").read_text(), whole([]))


def test_who_would_be_over_the_limit_at_his_rate_is_not_tried() -> None:
    slow, fast = rates("dask", "tiny", 640), rates("ray", "tiny", 1900)
    assert run.hopeless("dask", "many", slow + fast) == "over 60 s"
    assert run.hopeless("ray", "many", slow + fast) == ""
    assert run.hopeless("dask", "arrays", slow) == ""


def test_what_a_system_had_no_way_to_do_is_not_tried_again_but_a_failure_is() -> None:
    earlier = [result("pool", "cancel", unable="none"), result("ray", "cancel", failed="oh")]
    assert run.hopeless("pool", "cancel", earlier) == "none"
    assert run.hopeless("ray", "cancel", earlier) == ""


def test_every_workload_of_the_plan_exists_and_needs_no_name_that_is_gone() -> None:
    workloads = pytest.importorskip("benchmarks.workloads", reason="needs numpy")
    assert set(WORKLOADS) == set(workloads.RUNNING) | set(workloads.STARTING)
    assert set(workloads.NEEDS) | set(workloads.TASKS) <= set(WORKLOADS)
