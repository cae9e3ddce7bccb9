"""``cluster.map`` gives what the built-in ``map`` gives, whatever is mapped."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbsched import LocalCluster, as_completed, wait
from support.conditions import until

OFFSET = 1000


@pytest.mark.parametrize("count", [0, 1, 10, 10_000])
def test_map_equals_the_builtin(cluster: LocalCluster, count: int) -> None:
    def square(x: int) -> int:
        return x * x

    assert list(cluster.map(square, range(count))) == list(map(square, range(count)))


def test_a_lambda_and_a_closure_over_a_global(cluster: LocalCluster) -> None:
    assert list(cluster.map(lambda x: x + OFFSET, range(20))) == [x + OFFSET for x in range(20)]


def test_several_iterables_and_starmap(cluster: LocalCluster) -> None:
    assert list(cluster.map(pow, [2, 3, 4], [5, 2, 3])) == [32, 9, 64]
    assert list(cluster.starmap(pow, [(2, 5), (3, 2)])) == [32, 9]
    assert list(cluster.map(pow, [2, 3], itertools.count(2))) == [4, 27]


def test_submit_passes_arguments_and_keywords(cluster: LocalCluster) -> None:
    def join(*parts: str, sep: str) -> str:
        return sep.join(parts)

    future = cluster.submit(join, "a", "b", sep="-")
    assert future.result(60) == "a-b"
    assert future.done()


def test_a_submit_with_large_arguments_is_whole_and_can_be_attached_and_cancelled(
    cluster: LocalCluster,
) -> None:
    future = cluster.submit(len, b"x" * 200_000)
    assert future.result(60) == 200_000
    job = future.job_id
    del future
    again = cluster.attach(job)
    assert again.result(60) == 200_000
    (info,) = [info for info in cluster.jobs() if info.id == job]
    assert info.total == 1
    slow = cluster.submit(lambda _: time.sleep(60), b"x" * 200_000)
    assert slow.cancel()
    until(slow.cancelled)


def test_200_arrays_of_a_mebibyte(cluster: LocalCluster) -> None:
    arrays = [np.full(131_072, float(i)) for i in range(200)]
    results = list(cluster.map(lambda a: a * 2, arrays))
    assert len(results) == 200
    for given, got in zip(arrays, results, strict=True):
        np.testing.assert_array_equal(got, given * 2)


def test_results_come_in_input_order_while_others_still_run(cluster: LocalCluster) -> None:
    def pause(seconds: float) -> float:
        import time

        time.sleep(seconds)
        return seconds

    mf = cluster.map(pause, [0.0, 0.2, 0.0, 0.1])
    assert [*mf] == [0.0, 0.2, 0.0, 0.1]


def test_as_completed_gives_every_future_once(cluster: LocalCluster) -> None:
    mf = cluster.map(lambda x: x, range(500))
    assert sorted(future.index for future in mf.as_completed(20)) == list(range(500))
    again = cluster.map(abs, [-1, -2])
    assert {future.result() for future in as_completed(again, 20)} == {1, 2}
    assert wait(again, 20).not_done == set()


def test_indexing_gives_futures_and_slices(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, [-1, -2, -3])
    assert mf[1].result(60) == 2
    assert mf[-1].result(60) == 3
    assert [future.result(60) for future in mf[:2]] == [1, 2]
    with pytest.raises(IndexError, match="no task 3"):
        mf[3]
    assert len(mf) == 3


def test_map_and_await_inside_a_running_event_loop(cluster: LocalCluster) -> None:
    async def cell() -> tuple[list[int], int]:
        mf = cluster.map(abs, [-1, -2, -3])
        return await mf, await cluster.submit(abs, -4)

    assert asyncio.run(cell()) == ([1, 2, 3], 4)


def test_an_iterator_is_consumed_as_it_is_uploaded(cluster: LocalCluster) -> None:
    """The first results are there while the items are still being made."""

    def items() -> Iterator[int]:
        for i in range(4):
            if i == 3:
                until(lambda: jobs_with_results(), what="a result before the last item")
            yield i
            until(lambda: True)

    def jobs_with_results() -> bool:
        return any(job.ok >= 1 for job in cluster.jobs() if job.name == "slow-source")

    slow = (pause_before(item) for item in items())
    assert list(cluster.map(abs, slow, name="slow-source")) == [0, 1, 2, 3]


def pause_before(item: int) -> int:
    """A source that takes longer than the client gathers items for."""
    import time

    time.sleep(0.15)
    return item


def test_buffersize_bounds_how_far_an_endless_iterator_is_read(cluster: LocalCluster) -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for i in itertools.count():
            taken.append(i)
            yield i

    mf = cluster.map(lambda x: x * 2, endless(), buffersize=20)
    assert list(itertools.islice(mf, 50)) == [2 * i for i in range(50)]
    assert len(taken) <= 50 + 20
    mf.cancel()


def _run_script(folder: Path, source: str, cluster: LocalCluster) -> Any:
    """Run a script of a user's, as ``python script.py``; returns its printed JSON."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(source))
    settings = cluster.settings
    env = {
        **os.environ,
        "NBSCHED_ETCD": ",".join(settings.etcd),
        "NBSCHED_NATS": ",".join(settings.nats),
        "NBSCHED_NAMESPACE": settings.namespace,
        "NBSCHED_ETCD_USER": settings.etcd_user or "",
        "NBSCHED_ETCD_PASSWORD": settings.etcd_password or "",
        "NBSCHED_NATS_USER": settings.nats_user or "",
        "NBSCHED_NATS_PASSWORD": settings.nats_password or "",
        "NBSCHED_LOCAL": "true",
        "NBSCHED_PROGRESS": "off",
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_a_class_of_main_and_a_module_beside_the_script(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text(
        "class OddError(Exception): pass\n"
        "def treble(x):\n    return 3 * x\n"
        "def fail(x):\n    raise OddError(x)\n"
    )
    source = """
        import json
        import beside
        from nbsched import Cluster

        class Point:
            def __init__(self, x): self.x = x
            def moved(self): return Point(self.x + 1)

        if __name__ == "__main__":
            with Cluster() as cluster:
                points = list(cluster.map(Point.moved, [Point(i) for i in range(10)]))
                trebled = list(cluster.map(beside.treble, range(5)))
                try:
                    cluster.submit(beside.fail, 7).result()
                except beside.OddError as error:
                    caught = error.args
            print(json.dumps([[p.x for p in points], all(type(p) is Point for p in points),
                              trebled, caught]))
    """
    assert _run_script(tmp_path, source, cluster) == [
        list(range(1, 11)),
        True,
        [0, 3, 6, 9, 12],
        [7],
    ]
