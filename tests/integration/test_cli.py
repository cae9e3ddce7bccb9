"""The real ``nbsched`` command, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import nbsched
from nbsched import demo
from nbsched.cli import main
from nbsched.local import runtime
from nbsched.local.cluster import stop_shared
from nbsched.settings import Settings
from support.conditions import until

COMMAND = Path(sysconfig.get_path("scripts"), "nbsched")
TIMEOUT_S = 60.0

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the command as somebody who has nothing configured."""
    for name in [name for name in os.environ if name.startswith("NBSCHED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NBSCHED_CONFIG", os.devnull)
    monkeypatch.setenv("NBSCHED_HOME", str(tmp_path / "home"))

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    yield command
    stop_shared(Settings())


def refused(answer: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed as it should: one line, no traceback."""
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert answer.stderr.startswith("nbsched: ")
    assert answer.stderr.count("\n") == 1
    return answer.stderr


# --------------------------------------------------------------------- without a cluster


def test_help_names_every_command(run: Run) -> None:
    answer = run("--help")
    commands = ["cancel", "demo", "down", "jobs", "status", "up"]
    assert all(f"\n  {name} " in answer.stdout for name in commands)


def test_help_answers_at_once_because_it_imports_nothing_slow() -> None:
    slow = {"grpc", "nats", "pyetcd", "IPython", "anywidget"}
    code = f"import sys, nbsched.cli; print(sorted({slow} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n"


def test_version_is_the_package_s(run: Run) -> None:
    assert run("--version").stdout == f"nbsched, version {nbsched.__version__}\n"


def test_down_says_when_nothing_runs(run: Run) -> None:
    answer = run("down")
    assert answer.returncode == 0
    assert answer.stdout == "No local cluster was running.\n"


def test_status_says_how_to_start_what_does_not_run(run: Run) -> None:
    answer = run("status")
    assert answer.returncode == 1
    assert "nbsched up" in answer.stdout
    answer = run("status", "--json")
    assert answer.returncode == 1
    assert json.loads(answer.stdout) == {"running": False}


@pytest.mark.parametrize("arguments", [["jobs"], ["cancel", "20260101-000000-aaaaaa"]])
def test_looking_does_not_start_a_cluster(run: Run, arguments: list[str]) -> None:
    assert "nbsched up" in refused(run(*arguments))
    assert run("status").returncode == 1


def test_wrong_setting_is_one_line_on_stderr(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSCHED_LEASE_TTL_S", "soon")
    assert "wrong type" in refused(run("up"))
    monkeypatch.delenv("NBSCHED_LEASE_TTL_S")
    assert "not a namespace" in refused(run("up", "--namespace", "a/b"))


def test_unreachable_server_is_one_line_on_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBSCHED_CONNECT_TIMEOUT_S", "1")
    port = runtime.free_ports(1)[0]
    answer = run("status", "--etcd", f"127.0.0.1:{port}", "--nats", f"nats://127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in refused(answer)


# ------------------------------------------------------------------------ with a cluster


def test_up_starts_once_and_down_stops(run: Run) -> None:
    first, second = run("up", "--cpus", "1"), run("up", "--cpus", "2")
    assert first.returncode == second.returncode == 0
    assert first.stdout.startswith("The local cluster is up.\n")
    assert second.stdout.startswith("The local cluster is running already.\n")
    assert "takes effect after: nbsched down" in second.stderr
    places = [line.split() for line in first.stdout.splitlines()[1:]]
    assert [place[0] for place in places] == ["supervisor", "etcd", "nats", "worker-0"]
    pids = [int(place[-1]) for place in places]
    assert runtime.start_mark(pids[0]) is not None
    assert run("down").stdout == "The local cluster has stopped.\n"
    assert all(runtime.start_mark(pid) is None for pid in pids)


def test_purge_deletes_the_data(run: Run, tmp_path: Path) -> None:
    run("up", "--cpus", "1")
    answer = run("down", "--purge")
    assert answer.stdout == "The local cluster has stopped.\nIts data are deleted.\n"
    assert {path.suffix for path in (tmp_path / "home" / "default").iterdir()} == {".lock"}


def test_status_shows_servers_members_and_jobs(run: Run) -> None:
    run("up", "--cpus", "1")
    with nbsched.Cluster() as cluster:
        cluster.options(name="double").map(lambda x: 2 * x, range(3)).result(timeout=TIMEOUT_S)
        data = json.loads(run("status", "--json").stdout)
        (worker,) = data["workers"]
        (job,) = data["jobs"]
        text = run("status").stdout
        listed = run("jobs").stdout
        named = run("jobs", "--name", "dou*", "--state", "succeeded").stdout
        other = run("jobs", "--tag", "nightly").stdout
    assert data["local"] is True
    assert data["etcd"] == list(cluster.settings.etcd)
    assert (worker["cpus"], worker["leader"]) == (1, True)
    assert worker["pid"] in data["pids"]["workers"]
    assert (job["name"], job["state"], job["ok"]) == ("double", "succeeded", 3)
    assert "Jobs: 1 succeeded" in text
    assert f"pid {worker['pid']}" in text
    assert "leader" in text
    assert job["id"] in listed
    assert "3/3" in listed
    assert job["id"] in named
    assert not other


def test_jobs_and_cancel_work_for_configured_servers(run: Run) -> None:
    with nbsched.LocalCluster(workers=0) as cluster:
        settings = cluster.settings
        environ = {
            "NBSCHED_ETCD": settings.etcd[0],
            "NBSCHED_NATS": settings.nats[0],
            "NBSCHED_ETCD_USER": settings.etcd_user or "",
            "NBSCHED_ETCD_PASSWORD": settings.etcd_password or "",
            "NBSCHED_NATS_USER": settings.nats_user or "",
            "NBSCHED_NATS_PASSWORD": settings.nats_password or "",
            "NBSCHED_LOCAL": "1",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            assert "There are no jobs." in run("jobs").stderr
            assert "no job '20260101-000000-aaaaaa'" in refused(
                run("cancel", "20260101-000000-aaaaaa")
            )
            assert "not a job id" in refused(run("cancel", "a.b"))
            assert "There are no such jobs." in run("jobs", "--state", "failed").stderr
            assert run("jobs", "--json").stdout.strip() == "[]"
            assert "Members: 0" in run("status").stdout


def test_cancel_stops_a_running_job(run: Run) -> None:
    run("up", "--cpus", "1")
    with nbsched.Cluster() as cluster:
        running = cluster.map(time.sleep, [60, 60])
        answer = run("cancel", running.id)
        assert answer.stdout == f"Job {running.id} is being cancelled.\n"
        until(running.done, TIMEOUT_S, what="the job has ended")
        assert running.cancelled()
        answer = run("cancel", running.id)
    assert answer.stdout == f"Job {running.id} has ended already: cancelled.\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"serial": False, "as_json": False}),
        (["--serial", "--json"], {"serial": True, "as_json": True}),
    ],
)
def test_demo_passes_its_options_on(
    arguments: list[str], expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the demo does with them is tested with it: it takes its time."""
    seen: list[dict[str, bool]] = []
    monkeypatch.setattr(demo, "run", lambda **options: seen.append(options))
    answer = CliRunner().invoke(main, ["demo", *arguments])
    assert answer.exit_code == 0
    assert seen == [expected]
