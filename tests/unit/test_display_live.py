"""When views are drawn: the ticker, the delay, the last flush; and which view is chosen."""

from __future__ import annotations

import contextvars
import gc
import io
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from nbsched.client import progress as client_progress
from nbsched.client.progress import Progress
from nbsched.display import factory, live
from nbsched.display.live import Live, Ticker
from nbsched.display.pace import MOST, REFRESH_S, WINDOW_S, Pace
from nbsched.display.views import DELAY_S, Views
from support.conditions import until


class Job:
    """A job that is where the test puts it."""

    progress_mode = None

    def __init__(self, ended: int = 0, total: int = 10, name: str = "f") -> None:
        self.id = f"job-{id(self)}"
        self.name = name
        self.ended = ended
        self.total = total
        self.looks = 0

    @property
    def progress(self) -> Progress:
        self.looks += 1
        return Progress(
            job=self.id,
            name=self.name,
            total=self.total,
            uploaded=self.total,
            ok=self.ended,
            elapsed_s=1.0,
            state="succeeded" if self.ended == self.total else "running",
        )

    def cancel(self) -> bool:
        return True

    def retry(self) -> int:
        return 0


class Recorder:
    """A view that notes what it was asked to show."""

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.ended: list[int] = []

    def draw(self, progress: Progress) -> None:
        self.drawn.append(progress.done)

    def end(self, progress: Progress) -> None:
        self.ended.append(progress.done)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO], io.StringIO]:
    def replace(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


@pytest.fixture
def views(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Views:
    """Views whose time the test moves; the thread ticks in real time, and fast."""
    ticker = Ticker(refresh_s=0.002, clock=clock)
    monkeypatch.setattr(live, "_ticker", ticker)
    return Views(mode=lambda: "auto")


# ------------------------------------------------------------ one view


def test_a_view_that_is_not_due_is_not_drawn(clock: Clock) -> None:
    view = Recorder()
    shown = Live(Job(), view, clock, after_s=0.3)

    shown.tick()
    assert view.drawn == []

    clock.now += 0.3
    shown.tick()
    assert view.drawn == [0]


def test_a_view_ends_with_the_last_state_of_its_job(clock: Clock) -> None:
    job, view = Job(), Recorder()
    shown = Live(job, view, clock, after_s=0.0)

    shown.tick()
    job.ended = 10
    for _ in range(3):
        shown.tick()

    assert (view.drawn, view.ended) == ([0], [10])
    assert shown.ended


def test_a_job_that_ends_before_its_view_is_due_is_not_shown(clock: Clock) -> None:
    job, view = Job(), Recorder()
    shown = Live(job, view, clock, after_s=0.3)

    shown.wait_begins()
    job.ended = 10
    shown.wait_ends(stays=True)

    assert (view.drawn, view.ended) == ([], [])
    assert shown.ended


def test_a_job_that_ends_between_two_ticks_still_gets_its_last_flush(clock: Clock) -> None:
    job, view = Job(), Recorder()
    shown = Live(job, view, clock, after_s=0.3)

    shown.wait_begins()
    clock.now += 0.35
    job.ended = 10
    shown.wait_ends(stays=False)

    assert view.ended == [10]


def test_a_wait_that_is_given_up_ends_a_view_that_does_not_stay(clock: Clock) -> None:
    for stays, ended in ((False, [4]), (True, [])):
        view = Recorder()
        shown = Live(Job(ended=4), view, clock, after_s=0.0)
        shown.tick()
        shown.wait_begins()
        shown.wait_ends(stays=stays)
        assert (view.ended, shown.ended) == (ended, not stays)


def test_the_last_of_several_waits_decides(clock: Clock) -> None:
    view = Recorder()
    shown = Live(Job(), view, clock, after_s=0.0)
    shown.tick()

    shown.wait_begins()
    shown.wait_begins()
    shown.wait_ends(stays=False)
    assert not shown.ended

    shown.wait_ends(stays=False)
    assert shown.ended


def test_a_view_that_fails_harms_nobody_and_is_dropped(clock: Clock) -> None:
    class Broken(Recorder):
        def draw(self, progress: Progress) -> None:
            raise BrokenPipeError

    shown = Live(Job(), Broken(), clock, after_s=0.0)

    shown.wait_begins()
    shown.tick()
    shown.wait_ends(stays=False)

    assert shown.ended


def test_a_view_draws_in_the_context_of_the_call_that_made_it() -> None:
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell", default="nowhere")
    seen = []

    class Located(Recorder):
        def draw(self, progress: Progress) -> None:
            seen.append((cell.get(), threading.current_thread().name))

    cell.set("cell 1")
    ticker = Ticker(refresh_s=0.002)
    shown = ticker.add(Job(), Located())
    try:
        until(lambda: seen)
        assert seen[0] == ("cell 1", "nbsched-display")

        cell.set("cell 2")
        shown.wait_begins()
        until(lambda: seen[-1][0] == "cell 2")
    finally:
        shown.stop()


# ------------------------------------------------------------ the ticker


def test_the_ticker_starts_with_the_first_view_and_ends_after_the_last() -> None:
    ticker = Ticker(refresh_s=0.002)
    assert not ticker.running

    for _ in range(2):
        job, view = Job(), Recorder()
        ticker.add(job, view)
        until(lambda view=view: view.drawn)
        job.ended = 10
        until(lambda view=view: view.ended == [10])
        until(lambda: not ticker.running)


def test_a_finished_job_is_not_kept_alive() -> None:
    ticker = Ticker(refresh_s=0.002)
    job = Job()
    gone = weakref.ref(job)
    ticker.add(job, Recorder())
    job.ended = 10
    del job

    until(lambda: gc.collect() >= 0 and gone() is None)


# ------------------------------------------------------------ which view


def test_importing_the_display_registers_it_without_ipython() -> None:
    code = (
        "import sys, nbsched.display as d, nbsched.client.progress as p\n"
        "assert p.view_factory() is d.factory()\n"
        "assert not {'IPython', 'ipywidgets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert client_progress.view_factory() is factory()


def test_a_terminal_shows_a_wait_that_takes_long_enough(
    views: Views, clock: Clock, stderr: Callable[[io.StringIO], io.StringIO]
) -> None:
    stream = stderr(Terminal())
    job = Job()

    with views.blocking(job):
        clock.now += DELAY_S
        until(lambda: "0/10 done" in stream.getvalue())
        job.ended = 10

    assert stream.getvalue().endswith("\n")
    assert "10/10 done" in stream.getvalue()


def test_a_short_wait_shows_nothing(
    views: Views, clock: Clock, stderr: Callable[[io.StringIO], io.StringIO]
) -> None:
    stream = stderr(Terminal())
    job = Job()

    with views.blocking(job):
        clock.now += 0.2
        job.ended = 10

    assert stream.getvalue() == ""


def test_a_wait_for_a_job_that_has_ended_shows_nothing(
    views: Views, clock: Clock, stderr: Callable[[io.StringIO], io.StringIO]
) -> None:
    stream = stderr(io.StringIO())

    with views.blocking(Job(ended=10)):
        clock.now += 1

    assert stream.getvalue() == ""


def test_a_pipe_gets_the_final_line_of_a_job_that_took_long_enough(
    views: Views, clock: Clock, stderr: Callable[[io.StringIO], io.StringIO]
) -> None:
    stream = stderr(io.StringIO())
    job = Job()

    with views.blocking(job):
        clock.now += 0.35
        job.ended = 10

    assert "100 %" in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_second_wait_does_not_repeat_what_a_pipe_was_told(
    views: Views, clock: Clock, stderr: Callable[[io.StringIO], io.StringIO]
) -> None:
    stream = stderr(io.StringIO())
    job = Job(ended=3)

    for _ in range(2):
        with views.blocking(job):
            clock.now += DELAY_S
            seen = job.looks
            until(lambda seen=seen: job.looks > seen + 3)

    assert stream.getvalue().count("\n") == 1
    assert " 30 %" in stream.getvalue()


def test_off_silences_everything(
    clock: Clock, stderr: Callable[[io.StringIO], io.StringIO]
) -> None:
    stream = stderr(Terminal())
    silent = Views(mode=lambda: "off")
    job = Job()

    with silent.blocking(job):
        clock.now += 5
        job.ended = 10

    assert stream.getvalue() == ""
    assert not silent.display(job)


@pytest.mark.parametrize(("value", "shown"), [("off", False), ("text", True), ("auto", True)])
def test_the_environment_says_whether_anything_is_shown(
    value: str,
    shown: bool,
    views: Views,
    clock: Clock,
    stderr: Callable[[io.StringIO], io.StringIO],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = stderr(Terminal())
    job = Job()
    monkeypatch.setenv("NBSCHED_PROGRESS", value)

    with Views().blocking(job):
        clock.now += DELAY_S
        job.ended = 10

    assert bool(stream.getvalue()) == shown


def test_outside_a_notebook_there_is_nothing_to_display_in(views: Views) -> None:
    assert not views.display(Job())


def test_a_bundle_always_has_text_and_html(views: Views) -> None:
    bundle = views.mimebundle(Job(ended=10, name="<b>"))

    assert set(bundle) == {"text/plain", "text/html"}
    assert "10/10 done" in str(bundle["text/plain"])
    assert "&lt;b&gt;" in str(bundle["text/html"])


# ------------------------------------------------------------ after the end


class Clickable(Recorder):
    """A view in a page: it goes on listening when the job could run again."""

    dirty = False
    closed = False

    def end(self, progress: Progress) -> bool:
        super().end(progress)
        return True

    def close(self) -> None:
        self.closed = True


def test_a_clickable_view_goes_on_when_its_job_runs_again(clock: Clock) -> None:
    job, view = Job(ended=10), Clickable()
    shown = Live(job, view, clock, 0.0)
    shown.tick()
    shown.tick()
    assert (view.ended, view.drawn, shown.ended) == ([10], [], False)

    job.ended = 9
    shown.tick()
    job.ended = 10
    shown.tick()

    assert (view.drawn, view.ended) == ([9], [10, 10])


def test_a_view_has_not_ended_while_its_end_is_being_drawn(clock: Clock) -> None:
    """The ticker, on its own thread, lets go of what has ended."""
    seen: list[bool] = []

    class Watched(Clickable):
        def end(self, progress: Progress) -> bool:
            seen.append(shown.ended)
            return super().end(progress)

    shown = Live(Job(ended=10), Watched(), clock, 0.0)
    shown.tick()

    assert seen == [False]
    assert not shown.ended


def test_a_resting_view_is_drawn_after_a_click_only(clock: Clock) -> None:
    job, view = Job(ended=10), Clickable()
    shown = Live(job, view, clock, 0.0)
    shown.tick()

    view.dirty = True
    shown.tick()

    assert view.drawn == [10]


def test_a_resting_view_does_not_keep_its_job(clock: Clock) -> None:
    job, view = Job(ended=10), Clickable()
    gone = weakref.ref(job)
    shown = Live(job, view, clock, 0.0)
    shown.tick()

    del job
    gc.collect()
    shown.tick()

    assert gone() is None
    assert shown.ended
    assert view.closed


def test_a_job_whose_future_is_gone_is_shown_again_in_the_same_cell(
    clock: Clock, page_ticker: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_ticker", page_ticker)
    views = Views(mode=lambda: "auto")
    first, old, new = Job(ended=10), Clickable(), Clickable()
    name = first.id
    shown = views._live(first, "cell", lambda: old, 0.0)
    page_ticker._tick()
    del first
    gc.collect()

    attached = Job(ended=9)
    attached.id = name
    views._live(attached, "cell", lambda: new, 0.0)
    page_ticker._tick()
    attached.ended = 10
    page_ticker._tick()

    assert (shown.ended, old.ended, old.closed) == (True, [10], True)
    assert (new.drawn, new.ended) == ([9], [10])


# ------------------------------------------------------------ what a page is told


class Page(Clickable):
    """A view that costs a page one message a draw."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def may_send(self, *, last: bool) -> bool:
        return self.pace.has_room(last=last)

    def draw(self, progress: Progress) -> None:
        super().draw(progress)
        self.pace.note()

    def end(self, progress: Progress) -> bool:
        self.pace.note()
        return super().end(progress)


@pytest.fixture
def page_ticker(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Ticker:
    """A ticker that ticks when the test says so."""
    ticker = Ticker(clock=clock)
    monkeypatch.setattr(ticker, "_thread", threading.current_thread())
    return ticker


def test_several_displays_share_what_a_page_may_be_told(clock: Clock, page_ticker: Ticker) -> None:
    pace = Pace(clock)
    views = [Page(pace) for _ in range(3)]
    jobs = [Job() for _ in views]
    for job, view in zip(jobs, views, strict=True):
        page_ticker.add(job, view)

    at = []
    for _ in range(40):
        before = sum(len(view.drawn) for view in views)
        page_ticker._tick()
        at += [clock.now] * (sum(len(view.drawn) for view in views) - before)
        clock.now += REFRESH_S

    assert max(sum(start <= t < start + WINDOW_S for t in at) for start in at) < MOST
    counts = [len(view.drawn) for view in views]
    assert max(counts) - min(counts) <= 2
    assert sum(counts) >= 40 - 3


def test_a_last_state_is_told_at_once_though_running_jobs_are_drawn_all_the_time(
    clock: Clock, page_ticker: Ticker
) -> None:
    pace = Pace(clock)
    busy, ending = Job(), Job()
    views = Page(pace), Page(pace)
    page_ticker.add(busy, views[0])
    page_ticker.add(ending, views[1])
    for _ in range(10):
        page_ticker._tick()
        clock.now += REFRESH_S

    ending.ended = 10
    page_ticker._tick()

    assert views[1].ended == [10]


def test_only_so_many_ended_displays_go_on_listening(clock: Clock, page_ticker: Ticker) -> None:
    jobs = [Job(ended=10) for _ in range(40)]
    views = [Clickable() for _ in jobs]
    for job, view in zip(jobs, views, strict=True):
        page_ticker.add(job, view)

    for _ in range(2):
        page_ticker._tick()

    assert [view.closed for view in views] == [True] * 10 + [False] * 30


class Unclosable(Clickable):
    def close(self) -> None:
        raise RuntimeError("the page is gone")


def test_views_that_cannot_be_closed_do_not_end_the_drawing_of_others(
    clock: Clock, page_ticker: Ticker
) -> None:
    jobs = [Job(ended=10) for _ in range(31)]
    lives = [page_ticker.add(job, Unclosable()) for job in jobs]
    page_ticker._tick()
    running = Recorder()
    page_ticker.add(Job(), running)

    page_ticker._tick()

    assert [shown.ended for shown in lives] == [True] + [False] * 30
    assert running.drawn == [0]


def test_a_display_that_fails_itself_is_dropped_and_the_others_are_drawn(
    clock: Clock, page_ticker: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Recorder()
    failing = page_ticker.add(Job(), Recorder())
    page_ticker.add(Job(), view)

    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr(failing, "tick", fail)
    page_ticker._tick()

    assert failing.ended
    assert view.drawn == [0]
