"""Large payloads on one machine: through files, and through NATS when there are none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nbsched import LocalCluster
from nbsched.errors import ResultNotReadableError

MIB = 131_072
"""Numbers (float64) in a MiB."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(workers=1, cpus=2) as cluster:
        yield cluster


def _folder(cluster: LocalCluster) -> Path:
    """The cluster's part of the shared folder."""
    assert cluster.settings.shared_folder is not None
    (folder,) = Path(cluster.settings.shared_folder).glob(f"{cluster.settings.namespace}.*")
    return folder


def _files(cluster: LocalCluster, job: str) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (_folder(cluster) / job).iterdir())


def test_arrays_go_through_files_and_can_be_written_to_on_both_sides(cluster: LocalCluster) -> None:
    def task(array: np.ndarray) -> np.ndarray:
        array += 1
        return array

    items = [np.full(MIB, float(i)) for i in range(6)]
    mf = cluster.map(task, items)
    results = mf.result()
    assert [float(array[-1]) for array in results] == [1, 2, 3, 4, 5, 6]
    assert [float(array[0]) for array in items] == [0, 1, 2, 3, 4, 5]
    results[0][:] = -1
    assert float(mf[1].result()[0]) == 2
    assert _files(cluster, mf.id) == [f"in-{i}" for i in range(1, 7)] + [
        f"out-{i}" for i in range(6)
    ]


def test_a_retried_task_gets_its_item_unchanged(cluster: LocalCluster) -> None:
    def task(array: np.ndarray) -> float:
        array += 1
        if array[0] < 2:
            raise ValueError(float(array[0]))
        return float(array[0])

    with pytest.raises(ValueError, match=r"1\.0"):
        cluster.map(task, [np.zeros(MIB)], retry=2).result()


def test_the_data_of_a_callable_cross_to_the_host_once(cluster: LocalCluster) -> None:
    data = np.arange(8.0 * MIB)
    mf = cluster.map(lambda i: float(data[i]), range(40))
    assert mf.result() == [float(i) for i in range(40)]
    assert _files(cluster, mf.id) == ["in-0"]


def test_results_of_many_small_tasks_share_a_file(cluster: LocalCluster) -> None:
    mf = cluster.map(lambda i: [i] * 50, range(20_000))
    assert mf.result()[-1] == [19_999] * 50
    assert 0 < len(_files(cluster, mf.id)) < 200


def test_a_result_whose_file_is_gone_says_so_and_can_be_had_again(cluster: LocalCluster) -> None:
    mf = cluster.map(lambda i: np.full(MIB, i), range(2))
    mf.wait()
    for path in (_folder(cluster) / mf.id).glob("out-0-*"):
        path.unlink()
    with pytest.raises(ResultNotReadableError, match=r"task 0.*retry"):
        mf[0].result()
    assert mf[0].retry()
    assert mf[0].result(60)[0] == 0
    assert mf[1].result()[0] == 1


def test_without_the_folder_everything_goes_through_nats() -> None:
    with LocalCluster(workers=1, cpus=1) as cluster:
        cluster.submit(abs, 1).result(60)  # the worker has looked at its folder
        folder = _folder(cluster)
        shutil.rmtree(folder)
        folder.write_text("a file in its place: nothing can be written there")
        mf = cluster.map(lambda array: array * 2, [np.full(MIB, float(i)) for i in range(4)])
        assert [float(array[0]) for array in mf.result()] == [0, 2, 4, 6]
