"""Tables of jobs and workers: lists that read well and can be filtered."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import msgspec
import pytest

from nbsched.client import records
from nbsched.client.records import JobInfo, WorkerInfo
from nbsched.client.tables import JobTable, WorkerTable, age
from nbsched.errors import ConfigurationError
from nbsched.model import JobId, WorkerId, WorkerRecord


def job(number: int, **changes: object) -> JobInfo:
    info = JobInfo(
        id=JobId(f"20260101-000000-{number:06}"),
        name="train",
        state="running",
        submitted=datetime.now(timezone.utc) - timedelta(minutes=5, seconds=3),
        total=1200,
        ok=1000,
        failed=0,
        cancelled=0,
        queued=0,
        assigned=0,
        tags=(),
        host="laptop",
        note="",
    )
    return msgspec.structs.replace(info, **changes)


def worker(name: str, **changes: object) -> WorkerInfo:
    info = WorkerInfo(
        id=WorkerId(name),
        host="node1",
        address="10.0.0.1",
        cpus=8,
        pid=1,
        python="3.11",
        versions={"python": "3.11.4"},
        leader=False,
        draining=False,
    )
    return msgspec.structs.replace(info, **changes)


def jobs() -> JobTable:
    """Made anew: how long ago they were submitted is counted from now."""
    return JobTable(
        [
            job(3, state="failed", failed=12, tags=("nightly", "gpu")),
            job(2, name="score", state="succeeded", tags=("gpu",)),
            job(1, total=None),
        ]
    )


class _Text(HTMLParser):
    """The words of an HTML document, and its tags, which must be balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_table_is_a_list_whose_parts_are_tables() -> None:
    assert isinstance(jobs(), list)
    assert len(jobs()) == 3
    assert jobs()[0].state == "failed"
    assert isinstance(jobs()[:2], JobTable)
    assert [info.name for info in jobs()[1:]] == ["score", "train"]
    assert msgspec.json.decode(msgspec.json.encode(jobs()[:1]))[0]["failed"] == 12


def test_text_is_aligned_in_columns() -> None:
    lines = repr(jobs()).splitlines()

    assert lines[0].split() == [
        "id", "name", "state", "done", "failed", "submitted", "from", "tags",
    ]  # fmt: skip
    assert [line.index("5 min ago") for line in lines[1:]] == [lines[0].index("submitted")] * 3
    ends = {line.index(count) + len(count) for line, count in zip(
        lines[1:], ("1,012/1,200", "1,000/1,200", "1,000/?"), strict=True
    )}  # fmt: skip
    assert ends == {lines[0].index("done") + len("done")}
    assert "12  5 min" in lines[1]


def test_wide_characters_take_two_columns() -> None:
    lines = repr(JobTable([job(1, name="数据"), job(2, name="data")])).splitlines()

    assert lines[1].index("running") + 2 == lines[2].index("running")


def test_a_name_can_neither_break_the_text_nor_the_html() -> None:
    nasty = "<script>alert(1)</script>\n\x1b[2J" + "x" * 200
    table = JobTable([job(1, name=nasty)])

    assert len(repr(table).splitlines()) == 2
    assert "\x1b" not in repr(table)
    html = table._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert _Text(html).open == []


def test_html_says_what_the_text_says() -> None:
    words = _Text(jobs()._repr_html_()).words

    assert "1,012/1,200" in words
    assert "nightly, gpu" in words
    assert jobs()[0].id in words
    assert "cancelled" not in words, "a column in which nothing stands is left out"


def test_html_takes_its_colours_from_the_page() -> None:
    html = jobs()._repr_html_()

    assert "color: inherit" in html
    assert "background: transparent" in html
    assert "#" not in html, "a fixed colour fits only one of light and dark"


def test_an_empty_table_says_so() -> None:
    assert repr(JobTable()) == "no jobs"
    assert "no workers" in WorkerTable()._repr_html_()


def test_a_long_table_is_drawn_in_part_and_says_how_many_there_are() -> None:
    table = JobTable(job(number) for number in range(1101))

    assert len(repr(table).splitlines()) == 102
    assert "1,001 more" in repr(table)
    assert "1,001 more" in table._repr_html_()


def test_filters_by_field_tag_pattern_alternatives_and_predicate() -> None:
    def numbers(table: JobTable) -> list[int]:
        return [int(info.id[-1]) for info in table]

    assert numbers(jobs().filter(state="failed")) == [3]
    assert numbers(jobs().filter(state=("failed", "running"))) == [3, 1]
    assert numbers(jobs().filter(tag="gpu")) == [3, 2]
    assert numbers(jobs().filter(tag="n*")) == [3]
    assert numbers(jobs().filter(name="sc*")) == [2]
    assert numbers(jobs().filter(tag="gpu", name="train")) == [3]
    assert numbers(jobs().filter(total=None)) == [1]
    assert numbers(jobs().filter(lambda info: info.failed > 3)) == [3]
    assert numbers(jobs().filter(failed=lambda count: count == 0)) == [2, 1]
    assert numbers(jobs().filter()) == [3, 2, 1]


def test_a_filter_that_can_match_nothing_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"no field 'status'\. Fields: id, name, state"):
        jobs().filter(status="failed")
    with pytest.raises(ConfigurationError, match=r"no state 'faild'\. States: cancelled, failed"):
        jobs().filter(state="faild")
    with pytest.raises(ConfigurationError, match="no field 'tag'"):
        WorkerTable().filter(tag="x")


def test_workers_show_who_leads_what_is_in_use_and_what_differs() -> None:
    table = WorkerTable(
        [
            worker("a", leader=True, in_use=3),
            worker("b", draining=True, differs={"numpy": ("1.26.0", "2.0.1")}),
        ]
    )

    head, first, second = repr(table).splitlines()
    assert head.split() == [
        "id",
        "host",
        "CPUs",
        "in",
        "use",
        "python",
        "role",
        "other",
        "versions",
    ]
    assert first.split() == ["a", "node1", "8", "3", "3.11.4", "leads"]
    assert second.split()[3:5] == ["3.11.4", "draining"]
    assert second.endswith("numpy 1.26.0 (here 2.0.1)")
    assert [info.id for info in table.filter(leader=True)] == ["a"]


def test_what_differs_is_found_by_comparing_with_this_process() -> None:
    versions = {"python": "3.1.1", "msgspec": "0.1", "no-such-package": "7"}
    record = WorkerRecord(
        id=WorkerId("w"), host="h", address="a", cpus=4, pid=1, python="3.1",
        versions=versions, key_id="k", started_at=time.time(),
    )  # fmt: skip

    info = records.worker_info(record, None, 1)

    assert info.in_use == 3
    assert info.differs["no-such-package"] == ("7", "none")
    assert info.differs["msgspec"][0] == "0.1"
    assert info.differs["python"][0] == "3.1.1"
    here = {"msgspec": info.differs["msgspec"][1]}
    same = records.worker_info(msgspec.structs.replace(record, versions=here), None, None)
    assert same.differs == {}
    assert same.in_use is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_ages_are_told_in_the_largest_unit(seconds: float, words: str) -> None:
    assert age(seconds) == words
