"""This machine's own cluster: who may use it, what it survives, what it leaves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import nats
import pytest
from click.testing import CliRunner

from nbsched import Cluster, LocalCluster, cli
from nbsched.errors import ConfigurationError, LocalClusterError
from nbsched.local import cluster, etcdserver, home, natsserver, runtime
from nbsched.local.cluster import PrivateCluster, join_or_start, start_private, stop_shared
from nbsched.local.runtime import Identity, Runtime
from nbsched.model import ClientId, JobId, JobRecord, JobState, JobStatus, Term, to_json
from nbsched.names import Names
from nbsched.settings import Settings, load

DEADLINE_S = 60.0


def eventually(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return runtime.start_mark(pid) is None


def all_pids(record: PrivateCluster | Runtime) -> list[int]:
    return [pid for pids in record.pids().values() for pid in pids]


def processes_in(folder: Path) -> list[int]:
    """Processes that work in the folder, as supervisor and servers do."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")) == folder:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def script(text: str, **environ: str) -> subprocess.Popen[str]:
    """Another Python process, which says something on stdout and waits on stdin."""
    return subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=DEADLINE_S)


def put(settings: Settings, key: str, value: bytes) -> None:
    etcd_call(settings, "kv/put", {"key": _b64(key.encode()), "value": _b64(value)})


def get(settings: Settings, key: str) -> bytes | None:
    found = etcd_call(settings, "kv/range", {"key": _b64(key.encode())}).get("kvs", [])
    assert isinstance(found, list)
    return base64.b64decode(found[0]["value"]) if found else None


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def etcd_call(settings: Settings, path: str, body: object) -> dict[str, object]:
    login = {"name": settings.etcd_user, "password": settings.etcd_password}
    token = http_post(settings, "auth/authenticate", login)["token"]
    return http_post(settings, path, body, str(token))


def http_post(
    settings: Settings, path: str, body: object, token: str | None = None
) -> dict[str, object]:
    connection = http.client.HTTPConnection(settings.etcd[0], timeout=5)
    try:
        headers = {"Authorization": token} if token else {}
        connection.request("POST", f"/v3/{path}", json.dumps(body), headers)
        answer: dict[str, object] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def etcd_answers(settings: Settings) -> bool:
    try:
        return "token" in http_post(
            settings,
            "auth/authenticate",
            {"name": settings.etcd_user, "password": settings.etcd_password},
        )
    except (OSError, http.client.HTTPException):
        return False


async def connected(settings: Settings) -> nats.NATS:
    return await nats.connect(
        list(settings.nats),
        user=settings.nats_user,
        password=settings.nats_password,
        allow_reconnect=False,
        connect_timeout=5,
    )


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a process that has nothing configured, and a home of its own."""
    for name in [name for name in os.environ if name.startswith("NBSCHED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NBSCHED_CONFIG", os.devnull)
    monkeypatch.setenv("NBSCHED_HOME", str(tmp_path / "home"))
    yield Settings()
    if (tmp_path / "home").exists():
        (tmp_path / "home").chmod(0o700)
        stop_shared(Settings())
    eventually(lambda: not processes_in(tmp_path / "home" / "default"))


def shared(settings: Settings) -> Runtime:
    record = cluster.shared_status(settings)
    assert record is not None
    return record


# ---------------------------------------------------------------- who may use it


def test_everything_in_the_folder_is_private_whatever_the_umask(
    settings: Settings, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        _, membership = join_or_start(settings)
    finally:
        os.umask(before)
    with membership:
        inside = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
        assert len(inside) > 10
        open_to_others = []
        for path in inside:
            mode = stat.S_IMODE(path.lstat().st_mode)
            # A file inside a 0700 folder is out of reach; ours are 0600 all the same.
            if mode & 0o077 and path.parent.name != "nats" and "jetstream" not in path.parts:
                open_to_others.append((path, oct(mode)))
        assert open_to_others == []


def test_workers_get_the_umask_of_their_starter(settings: Settings) -> None:
    def umasks(private: PrivateCluster) -> set[str]:
        found = set()
        for pid in private.pids()["workers"]:
            with contextlib.suppress(OSError):  # it is just being started
                text = Path(f"/proc/{pid}/status").read_text()
                found.update(re.findall(r"Umask:\t(\d+)", text))
        return found

    before = os.umask(0o027)
    try:
        with start_private(1, 0, settings) as private:
            eventually(lambda: umasks(private) == {"0027"})
    finally:
        os.umask(before)


def test_folder_that_others_may_enter_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o750)
    with pytest.raises(LocalClusterError, match=r"can be entered by others.*chmod 700"):
        join_or_start(settings)


def test_folder_of_another_user_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(LocalClusterError, match=f"belongs to user {me}, not to you"):
            join_or_start(settings)


def test_folder_that_cannot_be_made_is_an_error_with_a_next_step(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setenv("NBSCHED_HOME", str(tmp_path / "file" / "home"))
        with pytest.raises(LocalClusterError, match="Set NBSCHED_HOME"):
            join_or_start(settings)


def test_servers_refuse_who_has_no_password(settings: Settings) -> None:
    with start_private(0, settings=settings) as private:
        answer = http_post(private.settings, "kv/range", {"key": _b64(b"a")})
        assert "user name is empty" in str(answer)
        # By hand: nats-py leaves a socket behind when it is refused.
        port = int(private.settings.nats[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"CONNECT {}\r\nPING\r\n")
            with connection.makefile() as lines:
                assert any("Authorization Violation" in line for line in lines)


def test_credentials_are_on_no_command_line(settings: Settings) -> None:
    with start_private(1, 0, settings) as private:
        secrets = [private.settings.etcd_password, private.settings.nats_password]
        for pid in all_pids(private):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            except FileNotFoundError:
                continue
            assert not any(str(secret) in line for secret in secrets)


# ------------------------------------------------------------------- joining


JOIN = """
import json, sys
from nbsched.local.cluster import join_or_start
from nbsched.settings import load
settings, membership = join_or_start(load())
print(json.dumps([settings.etcd, settings.nats, settings.etcd_password]), flush=True)
sys.stdin.read()
"""


def test_ten_processes_at_once_get_one_cluster(settings: Settings, tmp_path: Path) -> None:
    joiners = [script(JOIN) for _ in range(10)]
    try:
        answers = [joiner.stdout.readline() for joiner in joiners if joiner.stdout]
    finally:
        for joiner in joiners:
            finish(joiner)
    assert len(set(answers)) == 1
    assert json.loads(answers[0])[0] == [shared(settings).etcd]
    # One supervisor, one etcd, one NATS: a second set would work in the folder too.
    assert len(processes_in(tmp_path / "home" / "default")) == 3


def test_cluster_outlives_its_starter_and_leaves_it_no_zombie(settings: Settings) -> None:
    starter = script(
        JOIN.replace(
            "sys.stdin.read()",
            "import os\ntry: print(os.waitpid(-1, os.WNOHANG), flush=True)\n"
            "except ChildProcessError: print('no children', flush=True)\nsys.stdin.read()",
        )
    )
    assert starter.stdout is not None
    starter.stdout.readline()
    assert starter.stdout.readline() == "no children\n"
    os.kill(starter.pid, signal.SIGKILL)
    finish(starter)
    assert etcd_answers(runtime.to_settings(shared(settings), settings))


def test_cluster_ends_when_its_starter_was_killed_before_it_was_up(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "default"
    slow = fake_binary(
        tmp_path,
        f"touch {tmp_path}/begun; while ! test -e {tmp_path}/go; do sleep 0.01; done\n"
        f'exec {cluster.find_nats_server()} "$@"',
    )
    starter = script(
        "from pathlib import Path\nfrom nbsched.local import cluster\n"
        f"cluster.find_nats_server = lambda: Path({str(slow)!r})\n{JOIN}"
    )
    eventually((tmp_path / "begun").exists)
    os.kill(starter.pid, signal.SIGKILL)
    finish(starter)
    (tmp_path / "go").touch()
    eventually(lambda: not processes_in(folder))
    _, membership = join_or_start(settings)
    membership.close()


def test_private_cluster_starts_in_a_folder_that_was_deleted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with start_private(1, 0, settings) as private:
        assert etcd_answers(private.settings)


def test_cluster_is_out_of_reach_of_the_interrupt_button(settings: Settings) -> None:
    _, membership = join_or_start(settings)
    with membership, start_private(0, settings=settings) as private:
        for record in (shared(settings), private):
            for pid in all_pids(record):
                if not gone(pid):
                    assert os.getpgid(pid) != os.getpgid(0)


def test_joining_works_in_a_running_loop_and_leaves_signal_handlers_alone(
    settings: Settings,
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]

    async def join() -> str:
        _, membership = join_or_start(settings)
        membership.close()
        found, membership = await asyncio.to_thread(join_or_start, settings)
        membership.close()
        return found.etcd[0]

    assert asyncio.run(join()) == shared(settings).etcd
    assert [signal.getsignal(number) for number in numbers] == before


def test_each_namespace_has_its_own_cluster(settings: Settings) -> None:
    other = Settings(namespace="other")
    first, one = join_or_start(settings)
    second, two = join_or_start(other)
    with one, two:
        try:
            assert first.etcd != second.etcd
            assert second.namespace == "other"
        finally:
            stop_shared(other)


def test_cluster_of_another_python_is_refused_with_both_versions(settings: Settings) -> None:
    _, membership = join_or_start(settings)
    membership.close()
    path = home.shared_home("default").runtime
    runtime.save(path, msgspec.structs.replace(shared(settings), python="3.2"))
    with pytest.raises(LocalClusterError, match=rf"Python 3\.2 .*{runtime.python_minor()}"):
        join_or_start(settings)


# ------------------------------------------------------------------ what it survives


@pytest.mark.parametrize("part", ["etcd", "nats"])
def test_killed_server_comes_back_on_its_port_with_its_data(settings: Settings, part: str) -> None:
    async def publish(settings: Settings) -> None:
        async with await connected(settings) as client:
            stream = client.jetstream()
            await stream.add_stream(name="kept", subjects=["kept"])
            await stream.publish("kept", b"message")

    async def read(settings: Settings) -> bytes | None:
        async with await connected(settings) as client:
            return (await client.jetstream().get_msg("kept", 1)).data

    with start_private(0, settings=settings) as private:
        put(private.settings, "kept", b"value")
        asyncio.run(publish(private.settings))
        (killed,) = private.pids()[part]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: private.pids()[part] not in ([], [killed]))
        eventually(lambda: etcd_answers(private.settings))
        assert get(private.settings, "kept") == b"value"
        if part == "nats":
            eventually(lambda: _accepts(private.settings))
        assert asyncio.run(read(private.settings)) == b"message"
        record = runtime.load(private.folder / "cluster.json", Runtime)
        assert record is not None
        assert {p.name: p.restarts for p in record.parts}[part] == 1


def _accepts(settings: Settings) -> bool:
    identity = Identity(
        etcd_port=0,
        nats_port=int(settings.nats[0].rpartition(":")[2]),
        etcd_password="",
        nats_password="",
    )
    try:
        natsserver.check(identity)
    except runtime.NotReadyError:
        return False
    return True


def test_killed_worker_is_started_again(settings: Settings) -> None:
    with start_private(2, [0, 0], settings) as private:
        eventually(lambda: len(private.pids()["workers"]) == 2)
        killed = private.pids()["workers"][0]
        os.kill(killed, signal.SIGKILL)
        eventually(
            lambda: len(private.pids()["workers"]) == 2 and killed not in private.pids()["workers"]
        )


def test_data_ports_and_password_outlive_a_stop(settings: Settings) -> None:
    first, membership = join_or_start(settings)
    put(first, "kept", b"value")
    membership.close()
    assert stop_shared(settings)
    second, membership = join_or_start(settings)
    with membership:
        assert second == first
        assert get(second, "kept") == b"value"


def test_leases_of_the_earlier_life_are_revoked_at_the_next_start(settings: Settings) -> None:
    first, membership = join_or_start(settings, cpus=1)
    membership.close()
    lease = etcd_call(first, "lease/grant", {"TTL": "600"})["ID"]
    body = {"key": _b64(b"leased"), "value": _b64(b"x"), "lease": lease}
    etcd_call(first, "kv/put", body)
    stop_shared(settings)
    second, membership = join_or_start(settings)
    with membership:
        assert get(second, "leased") is None


def test_stale_runtime_file_is_replaced_and_its_data_are_kept(settings: Settings) -> None:
    first, membership = join_or_start(settings)
    put(first, "kept", b"value")
    record = shared(settings)
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: all(gone(pid) for pid in all_pids(record)))
    membership.close()
    assert home.shared_home("default").runtime.exists()
    assert cluster.shared_status(settings) is None
    second, membership = join_or_start(settings)
    with membership:
        assert shared(settings).pid != record.pid
        assert get(second, "kept") == b"value"


def test_recycled_pid_is_not_taken_for_the_supervisor(settings: Settings) -> None:
    _, membership = join_or_start(settings)
    membership.close()
    record = shared(settings)
    stop_shared(settings)
    mine = msgspec.structs.replace(record, pid=os.getpid())
    runtime.save(home.shared_home("default").runtime, mine)
    assert cluster.shared_status(settings) is None
    assert not stop_shared(settings)  # and this process has not been signalled


def test_unreadable_runtime_file_counts_as_none(settings: Settings) -> None:
    home.write_private(home.shared_home("default").runtime, b"{ not json")
    assert cluster.shared_status(settings) is None
    _, membership = join_or_start(settings)
    with membership:
        assert etcd_answers(runtime.to_settings(shared(settings), settings))


# ------------------------------------------------------------------ what it leaves


def test_private_cluster_leaves_neither_process_nor_folder(settings: Settings) -> None:
    with start_private(2, [0, 0], settings) as private:
        pids, folder = all_pids(private), private.folder
        assert len(private.pids()["etcd"]) == len(private.pids()["nats"]) == 1
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(gone(pid) for pid in pids)
    assert not folder.exists()
    private.close()


@pytest.mark.parametrize("background", [False, True])
def test_killed_supervisor_leaves_no_process(settings: Settings, background: bool) -> None:
    if background:
        _, membership = join_or_start(settings)
        membership.close()
        record: Runtime | PrivateCluster = shared(settings)
    else:
        record = start_private(1, 0, settings)
    pids = all_pids(record)
    os.kill(record.pids()["supervisor"][0], signal.SIGKILL)
    if isinstance(record, PrivateCluster):
        eventually(lambda: all(gone(pid) for pid in pids))
        folder = record.folder
        record.close()
        assert not folder.exists()
    else:
        eventually(lambda: all(gone(pid) for pid in pids))


def test_kernel_dies_with_a_killed_supervisor(settings: Settings, tmp_path: Path) -> None:
    with LocalCluster(workers=1, cpus=1) as local:
        kernel = pid_of_busy_kernel(local, tmp_path / "pid")
        pids = [pid for kind in local.pids().values() for pid in kind]
        os.kill(local.pids()["supervisor"][0], signal.SIGKILL)
        eventually(lambda: all(gone(pid) for pid in [*pids, kernel]))


def test_stop_does_not_wait_for_a_long_task_and_leaves_no_kernel(
    settings: Settings, tmp_path: Path
) -> None:
    with Cluster() as local:
        kernel = pid_of_busy_kernel(local, tmp_path / "pid")
        started = time.monotonic()
        assert stop_shared(settings)
        assert time.monotonic() - started < 15
    eventually(lambda: gone(kernel))


def test_down_counts_the_jobs_that_go_on_after_the_next_up(
    settings: Settings, tmp_path: Path
) -> None:
    with Cluster() as local:
        assert local.submit(abs, -1).result(60) == 1
        pid_of_busy_kernel(local, tmp_path / "pid")
        answer = CliRunner().invoke(cli.main, ["down"])
    assert answer.output == (
        "The local cluster has stopped.\n1 job is unfinished, to go on after: nbsched up\n"
    )


def pid_of_busy_kernel(local: Cluster, note: Path) -> int:
    """Start a task of a minute; the pid of the kernel that runs it."""

    def be_busy(path: str) -> None:
        with open(f"{path}.draft", "w") as file:
            file.write(str(os.getpid()))
        os.replace(f"{path}.draft", path)
        time.sleep(60)

    local.submit(be_busy, str(note))
    eventually(note.exists)
    return int(note.read_text())


PRIVATE = """
import json, os, sys
from nbsched.local.cluster import start_private
private = start_private(1, 0)
BEFORE_IT_SPEAKS
print(json.dumps([private.pids(), str(private.folder)]), flush=True)
sys.stdin.read()
"""
FORKS = "if os.fork() == 0: os.close(1); sys.stdin.read(); os._exit(0)"


@pytest.mark.parametrize("extra", ["", FORKS], ids=["alone", "with a forked child"])
def test_killed_starter_takes_its_private_cluster_along(settings: Settings, extra: str) -> None:
    starter = script(PRIVATE.replace("BEFORE_IT_SPEAKS", extra))
    assert starter.stdout is not None
    pids, folder = json.loads(starter.stdout.readline())
    os.kill(starter.pid, signal.SIGKILL)
    eventually(lambda: all(gone(pid) for kind in pids.values() for pid in kind))
    eventually(lambda: not Path(folder).exists())
    finish(starter)


def test_starter_that_ends_without_close_takes_its_private_cluster_along(
    settings: Settings,
) -> None:
    starter = script(PRIVATE.replace("BEFORE_IT_SPEAKS", ""))
    assert starter.stdout is not None
    pids, folder = json.loads(starter.stdout.readline())
    finish(starter)
    eventually(lambda: all(gone(pid) for kind in pids.values() for pid in kind))
    eventually(lambda: not Path(folder).exists())


def test_forked_child_that_ends_does_not_take_the_private_cluster_along(
    settings: Settings,
) -> None:
    starter = script(
        PRIVATE.replace(
            "BEFORE_IT_SPEAKS",
            "pid = os.fork()\nif pid == 0: sys.exit(0)\nos.waitpid(pid, 0)",
        )
    )
    assert starter.stdout is not None
    pids, folder = json.loads(starter.stdout.readline())
    assert Path(folder).exists()
    assert not gone(pids["supervisor"][0])
    finish(starter)


def test_stop_leaves_no_process_and_no_runtime_file(settings: Settings) -> None:
    _, membership = join_or_start(settings)
    membership.close()
    record = shared(settings)
    assert stop_shared(settings)
    assert all(gone(pid) for pid in all_pids(record))
    assert not home.shared_home("default").runtime.exists()
    assert not stop_shared(settings)


def test_purge_leaves_only_locks(settings: Settings, tmp_path: Path) -> None:
    first, membership = join_or_start(settings)
    put(first, "gone", b"value")
    membership.close()
    stop_shared(settings, purge=True)
    assert {path.suffix for path in (tmp_path / "home" / "default").iterdir()} == {".lock"}
    second, membership = join_or_start(settings)
    with membership:
        assert second.etcd_password != first.etcd_password
        assert get(second, "gone") is None


# ------------------------------------------------------------------ idle end


def test_cluster_ends_when_nobody_has_used_it_for_the_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBSCHED_IDLE_STOP_S", "0.4")
    _, membership = join_or_start(settings)
    record = shared(settings)
    # With a client it does not end: four times as long is many checks.
    with pytest.raises(AssertionError):
        eventually(lambda: cluster.shared_status(settings) is None, 1.6)
    membership.close()
    eventually(lambda: all(gone(pid) for pid in all_pids(record)))
    assert not home.shared_home("default").runtime.exists()


def test_unfinished_job_keeps_the_cluster_from_ending(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBSCHED_IDLE_STOP_S", "0.4")
    found, membership = join_or_start(settings, cpus=1)
    record = shared(settings)
    put_job(found, "j1")
    membership.close()
    with pytest.raises(AssertionError):
        eventually(lambda: cluster.shared_status(settings) is None, 1.6)
    os.kill(record.pid, 0)


def test_only_ended_jobs_count_as_finished(settings: Settings) -> None:
    with start_private(0, settings=settings) as private:
        identity = runtime.load(private.folder / "identity.json", Identity)
        assert identity is not None

        def unfinished() -> bool:
            return etcdserver.has_unfinished_jobs(identity, "default")

        assert not unfinished()
        put_job(private.settings, "j1")
        assert unfinished()
        for state in JobState:
            put_status(private.settings, "j1", state)
            assert unfinished() is not state.ended
        put_job(private.settings, "j2")
        assert unfinished()
        put(private.settings, Names("default").status(JobId("j2")), b'{"of": "a newer version"}')
        assert unfinished()


def put_job(settings: Settings, job: str) -> None:
    record = JobRecord(
        id=JobId(job),
        client=ClientId("c"),
        name="f",
        submitted_at=time.time(),
        python="2.7",  # no worker takes it
        call="one",
        inline=True,  # its input is nobody's business here; without one in NATS it would be lost
        total=1,
    )
    put(settings, Names(settings.namespace).job(JobId(job)), to_json(record))


def put_status(settings: Settings, job: str, state: JobState) -> None:
    status = JobStatus(job=JobId(job), state=state, term=Term(1))
    put(settings, Names(settings.namespace).status(JobId(job)), to_json(status))


@pytest.mark.parametrize("text", ["soon", "0", "-1"])
def test_wrong_idle_time_is_a_clear_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("NBSCHED_IDLE_STOP_S", text)
    with pytest.raises(ConfigurationError, match="NBSCHED_IDLE_STOP_S"):
        join_or_start(settings)


# ------------------------------------------------------------------ what can go wrong


def fake_binary(folder: Path, text: str) -> Path:
    path = folder / "server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def test_error_of_a_failed_start_holds_the_end_of_the_log(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = fake_binary(tmp_path, "echo no room on the moon >&2; exit 3")
    monkeypatch.setattr(cluster, "find_nats_server", lambda: broken)
    with pytest.raises(LocalClusterError, match=r"(?s)nats ended with code 3.*room on the moon"):
        start_private(0, settings=settings)
    with pytest.raises(LocalClusterError, match=r"(?s)nats ended with code 3.*room on the moon"):
        join_or_start(settings)


def test_server_that_stays_silent_is_an_error_after_the_time(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = fake_binary(tmp_path, "exec sleep 600")
    monkeypatch.setattr(cluster, "find_nats_server", lambda: silent)
    with pytest.raises(LocalClusterError, match=r"nats did not answer within 1\.5 s"):
        start_private(0, settings=settings, timeout_s=1.5)


def test_port_taken_in_the_last_moment_is_replaced_by_another(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cluster.find_nats_server()
    once = fake_binary(
        tmp_path,
        f'test -e {tmp_path}/tried && exec {real} "$@"\n'
        f"touch {tmp_path}/tried; echo bind: address already in use >&2; exit 1",
    )
    monkeypatch.setattr(cluster, "find_nats_server", lambda: once)
    with start_private(0, settings=settings) as private:
        asyncio.run(_say_hello(private.settings))
    assert (tmp_path / "tried").exists()


async def _say_hello(settings: Settings) -> None:
    async with await connected(settings) as client:
        await client.jetstream().account_info()


def test_module_beside_the_notebook_does_not_shadow_one_of_python(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logging.py").write_text("raise SystemExit('shadowed')\n")
    (tmp_path / "asyncio.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    with start_private(1, 0, settings) as private:
        assert etcd_answers(private.settings)
        assert "shadowed" not in private.log_tail("worker-0")


@pytest.mark.parametrize(
    ("workers", "cpus"), [(2, [1]), (-1, None), (1, -2), (None, [1, -1]), (1.5, None), (1, 1.5)]
)
def test_impossible_numbers_of_workers_and_cpus_are_refused(
    settings: Settings, workers: int | None, cpus: int | list[int] | None
) -> None:
    with pytest.raises(ConfigurationError):
        start_private(workers, cpus, settings)


def test_cpus_are_shared_out_among_several_workers() -> None:
    assert cluster._share_out(None, None) == (None,)
    assert cluster._share_out(None, [1, 3]) == (1, 3)
    assert cluster._share_out(2, 4) == (4, 4)
    shares = cluster._share_out(3, None)
    assert len(shares) == 3
    assert all(share is not None and share >= 1 for share in shares)


# ------------------------------------------------------------------ settings


def test_settings_of_other_servers_do_not_apply_to_the_local_one(settings: Settings) -> None:
    base = Settings(
        etcd_ca="ca.pem", nats_token="t", nats_creds="c", etcd_user="me", lease_ttl_s=3.0
    )
    with start_private(0, settings=base) as private:
        found = private.settings
        assert (found.etcd_ca, found.nats_token, found.nats_creds) == (None, None, None)
        assert found.etcd_user == "root"
        assert found.lease_ttl_s == 3.0
        assert found.local


def test_settings_of_the_starter_reach_the_workers() -> None:
    base = Settings(max_result_bytes=1000, etcd_ca="ca.pem", progress="off", lease_ttl_s=2.5)
    environ = runtime.worker_environ(base)
    found = load(environ=environ)
    assert (found.max_result_bytes, found.lease_ttl_s, found.progress) == (1000, 2.5, "off")
    assert found.etcd_ca is None
