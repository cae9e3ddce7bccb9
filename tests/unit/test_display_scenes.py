"""What a live display is told, and what its clicks do; the rows of a job's tasks."""

from __future__ import annotations

import asyncio
import gc
import pickle
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nbsched.client.itemrepr import item_texts
from nbsched.client.mapfuture import MapFuture
from nbsched.client.tasks import TaskTable
from nbsched.client.tracker import JobTracker
from nbsched.display.jobscene import ROWS, JobScene
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState, encode
from nbsched.model import TaskRange, WorkerId
from nbsched.shortrepr import short
from support.conditions import until
from support.simulation import job_record

W = WorkerId("w1")


class Job:
    """A job with a real tracker, whose requests are noted instead of sent."""

    progress_mode = None

    def __init__(self, total: int) -> None:
        self.tracker = JobTracker(job_record(total=total))
        self.id = self.tracker.id
        self.asked: list[object] = []
        self.tasks = TaskTable(self.tracker, self._cancel, self._retry, lambda i: f"item-{i}")

    @property
    def progress(self) -> Any:
        return self.tracker.progress()

    def cancel(self) -> bool:
        self.asked.append("cancel")
        return True

    def retry(self) -> int:
        self.asked.append("retry")
        return 1

    def _cancel(self, indices: list[int]) -> bool:
        self.asked.append(("cancel", indices))
        return True

    def _retry(self, indices: list[int]) -> int:
        self.asked.append(("retry", indices))
        self.tracker.reopen([TaskRange(i, i + 1, 1) for i in indices])
        return len(indices)

    def fail(self, index: int, state: OutcomeState = OutcomeState.FAILED, item: str = "") -> None:
        report = encode(
            ErrorReport("ValueError", f"no\n{index}", traceback="Traceback: here", item=item)
        )
        outcome = Outcome(
            index, index + 1, 0, 1, state, Encoding.ERROR, (len(report),), elapsed_s=0.5
        )
        self.tracker.take_in([outcome], report, W)

    def end(self, start: int, stop: int, round_: int = 0) -> None:
        body = pickle.dumps(list(range(start, stop)))
        outcome = Outcome(start, stop, round_, 1, OutcomeState.OK, Encoding.SCALARS, (len(body),))
        self.tracker.take_in([outcome], body, W)


def drawn(job: Job, scene: JobScene) -> dict[str, Any]:
    return scene.state(job.progress)


def test_a_failed_row_says_what_why_and_where() -> None:
    job = Job(5)
    job.fail(3)

    (row,) = drawn(job, JobScene(job))["rows"]

    assert (row["index"], row["item"], row["word"]) == (3, "item-3", "✗ failed")
    assert (row["attempt"], row["worker"], row["elapsed"]) == ("1", "w1", "0.5 s")
    assert row["error"] == "ValueError: no 3"
    assert row["more"] == ""
    assert row["act"]["do"] == "retry"


def test_an_attached_job_shows_the_items_that_its_failures_name() -> None:
    job = Job(5)
    job.tasks = TaskTable(job.tracker, job._cancel, job._retry)
    job.tracker.report(W, {2: (1, 7.0)})
    scene = JobScene(job)
    scene.act({"do": "show", "tab": "running"})
    assert not drawn(job, scene)["items"]

    job.fail(3, item="'photo-3.jpg'")
    scene.act({"do": "show", "tab": "failed"})

    state = drawn(job, scene)
    assert state["items"]
    assert [row["item"] for row in state["rows"]] == ["'photo-3.jpg'"]


def test_a_running_row_says_since_when_and_can_be_cancelled() -> None:
    job, scene = Job(5), None
    job.tracker.report(W, {2: (1, 7.0)})
    scene = JobScene(job)
    scene.act({"do": "show", "tab": "running"})

    (row,) = drawn(job, scene)["rows"]
    assert (row["index"], row["word"], row["elapsed"]) == (2, "▸ running", "7 s")

    scene.act({"do": "cancel", "index": 2})
    until(lambda: job.asked == [("cancel", [2])])
    assert drawn(job, scene)["rows"][0]["act"]["busy"]


def test_a_task_that_is_to_run_again_shows_its_last_error() -> None:
    job = Job(5)
    job.fail(1, OutcomeState.RETRY)
    scene = JobScene(job)
    scene.act({"do": "show", "tab": "running"})

    (row,) = drawn(job, scene)["rows"]

    assert (row["word"], row["error"]) == ("↻ retrying", "ValueError: no 1")


def test_only_one_page_of_rows_is_told_whatever_the_number_of_failures() -> None:
    job = Job(1000)
    for index in range(1000):
        job.fail(index)
    scene = JobScene(job)

    for _ in range(3):
        state = drawn(job, scene)
        assert len(state["rows"]) == ROWS
        scene.act({"do": "page", "by": 1})

    assert [row["index"] for row in drawn(job, scene)["rows"]] == list(range(3 * ROWS, 4 * ROWS))
    assert drawn(job, scene)["where"] == "19 to 24 of 1,000"
    for _ in range(1000):
        scene.act({"do": "page", "by": 1})
    assert drawn(job, scene)["rows"][-1]["index"] == 999


def test_a_retried_row_stays_in_sight_until_it_is_green() -> None:
    job = Job(5)
    for index in (1, 3):
        job.fail(index)
    scene = JobScene(job)
    drawn(job, scene)

    scene.act({"do": "retry", "index": 3})
    until(lambda: job.asked == [("retry", [3])])
    assert [row["state"] for row in drawn(job, scene)["rows"]] == ["failed", "queued"]
    job.end(3, 4, round_=1)

    rows = drawn(job, scene)["rows"]
    assert [(row["index"], row["state"]) for row in rows] == [(1, "failed"), (3, "done")]
    assert rows[1]["attempt"] == "2"


def test_a_traceback_travels_only_when_it_was_asked_for() -> None:
    job = Job(5)
    job.fail(1)
    scene = JobScene(job)
    assert "Traceback" not in str(drawn(job, scene))

    scene.act({"do": "open", "index": 1})

    assert drawn(job, scene)["rows"][0]["more"] == "Traceback: here"


def test_a_closed_table_does_not_open_by_itself_again() -> None:
    job = Job(5)
    job.fail(1)
    scene = JobScene(job)
    assert drawn(job, scene)["tab"] == "failed"

    scene.act({"do": "show", "tab": "failed"})
    job.fail(2)

    assert drawn(job, scene)["tab"] is None


def test_a_request_that_fails_says_why_and_frees_its_button(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(5)

    def refuse() -> bool:
        raise RuntimeError("etcd is away")

    monkeypatch.setattr(job, "cancel", refuse)
    scene = JobScene(job)
    scene.act({"do": "cancel"})

    until(lambda: drawn(job, scene)["note"] == "Cancel failed: etcd is away")
    assert drawn(job, scene)["cancel"]["enabled"]


def test_a_click_after_the_future_is_gone_is_refused() -> None:
    job = Job(5)
    scene = JobScene(job)
    del job
    gc.collect()

    with pytest.raises(Exception, match="attach"):
        scene.act({"do": "cancel"})


# ------------------------------------------------------------ items in short


class Huge:
    shape = (10_000, 10_000)
    dtype = "float64"

    def __repr__(self) -> str:
        raise AssertionError("nobody wants to read that")


class Rude:
    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a" * 1000, None),
        (Huge(), "<Huge 10000x10000 float64>"),
        (b"x" * 1000, "<bytes of 1,000 bytes>"),
        (list(range(1000)), None),
        ("two\nlines", "'two\\nlines'"),
    ],
)
def test_items_are_told_in_a_line(value: object, text: str | None) -> None:
    told = short(value)

    assert len(told) <= 60
    assert text is None or told == text


def test_an_item_that_cannot_be_told_is_no_error() -> None:
    assert "Rude" in short(Rude())


def test_iterators_are_not_kept_for_their_texts() -> None:
    assert item_texts((iter([1, 2]),)) is None
    texts = item_texts(([1, 2], "ab"))
    assert texts is not None
    assert texts(1) == "(2, 'b')"


# ------------------------------------------------------------ async for


def test_async_for_gives_results_in_input_order_as_they_come() -> None:
    job = Job(4)
    session = SimpleNamespace(settings=SimpleNamespace(progress="off"))
    mf = MapFuture(cast(Any, session), job.tracker)

    async def collect() -> list[int]:
        found = []
        asyncio.get_running_loop().call_soon(job.end, 2, 4)
        asyncio.get_running_loop().call_later(0.02, job.end, 0, 2)
        async for value in mf:
            found.append(value)
        return found

    assert asyncio.run(collect()) == [0, 1, 2, 3]
