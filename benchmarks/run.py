"""All systems, all workloads, several rounds: each in a process and an environment of its own.

    python -m benchmarks.run [--quick] [--smoke] [--rounds N] [--systems A,B] [--workloads A,B]

Systems take turns within a round, so that a machine that grows slower does so for all. A
failure or a time-out is a result like any other. A run is written to results.md, results.json
and results.svg beside this file, and one of all systems to the README as well; a run of parts
of the plan or with --smoke goes to the folder .out, which is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks import accounting, report, systems
from benchmarks.plan import (
    FORETOLD_BY,
    LIMIT_S,
    QUICK_SYSTEMS,
    QUICK_WORKLOADS,
    SMOKE_ALIKE,
    START_AND_STOP_S,
    WORKLOADS,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ANSWER = "#result "
ENVIRONMENTS = HERE / ".envs"
Result = dict[str, Any]


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, _end)  # no process of a measurement outlives this one
    pythons = {name: environment(name) for name in options.systems}
    results: list[Result] = []
    started = time.time()
    for number in range(options.rounds):
        for workload in options.workloads:
            for name in options.systems:
                result = measure(pythons[name], name, workload, options.smoke, results)
                results.append({"round": number, **result})
                _say(results[-1])
    _write(options, results, pythons, started)
    broken = [each for each in results if "failed" in each and each["system"] == "nbsched"]
    if broken:
        sys.exit(f"{len(broken)} workloads of nbsched failed, the first: {broken[0]}")


def _end(*_: object) -> None:
    sys.exit("Ended by a signal; nothing was written.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer systems and workloads")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--systems", type=lambda text: text.split(","))
    parser.add_argument("--workloads", type=lambda text: text.split(","))
    options = parser.parse_args()
    options.partial = bool(options.systems or options.workloads)
    options.rounds = options.rounds or (1 if options.smoke else 2 if options.quick else 3)
    options.systems = options.systems or list(QUICK_SYSTEMS if options.quick else systems.NAMES)
    every = QUICK_WORKLOADS if options.quick else tuple(WORKLOADS)
    if options.quick and options.smoke:
        every = tuple(name for name in every if name not in SMOKE_ALIKE)
    options.workloads = options.workloads or list(every)
    return options


# ---------------------------------------------------------------- environments


def environment(name: str) -> Path:
    """The Python of a system's environment, which is made at first."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    wanted = ["numpy", *systems.REQUIREMENTS[name]]
    stamp = folder / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return python
    print(f"making the environment of {name} …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if name == "nbsched":
        subprocess.run([*install, "--editable", f"{ROOT}[local]"], check=True)
    subprocess.run([*install, *wanted], check=True)
    stamp.write_text(json.dumps(wanted))
    return python


def version(python: Path, name: str) -> str:
    """The installed version of a system; the standard library's is that of Python."""
    if not systems.REQUIREMENTS[name] and name != "nbsched":
        return ""
    package = systems.PACKAGES.get(name, name)
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


# ---------------------------------------------------------------- one measurement


def measure(python: Path, name: str, workload: str, smoke: bool, so_far: list[Result]) -> Result:
    """Figures of one workload on one system, or why there are none."""
    result: Result = {"system": name, "workload": workload}
    if reason := hopeless(name, workload, [] if smoke else so_far):
        return {**result, "unable": reason}
    run = secrets.token_hex(8)
    command = [str(python), "-m", "benchmarks.one", name, workload, *(["--smoke"] * smoke)]
    environ = {
        **os.environ,
        accounting.MARK: run,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    started = time.time()
    # Files and not pipes: a process that a system leaves behind would keep a pipe open.
    with _scratch() as out, _scratch() as err:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=out, stderr=err, start_new_session=True
        )
        try:
            process.wait(LIMIT_S + START_AND_STOP_S)
        except subprocess.TimeoutExpired:
            result["unable"] = f"over {LIMIT_S} s"
        finally:
            for pid in accounting.processes(run):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        result["took_s"] = round(time.time() - started, 1)
        answers = [line for line in _lines(out) if line.startswith(ANSWER)]
        last_words = _lines(err)[-1:] or [f"exit code {process.returncode}"]
    if answers:
        result.pop("unable", None)  # it was only slow to stop
        return {**result, **json.loads(answers[-1].removeprefix(ANSWER))}
    if "unable" not in result:
        result["failed"] = last_words[0][:200]
    return result


def _scratch() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().splitlines() if line.strip()]


def hopeless(name: str, workload: str, so_far: list[Result]) -> str:
    """Why a workload need not be tried: the system had no way, or no time, in an earlier
    round, or it would take too long at its rate in a smaller one."""
    mine = {each["workload"]: each for each in so_far if each["system"] == name}
    if reason := mine.get(workload, {}).get("unable"):
        return str(reason)
    count, smaller = FORETOLD_BY.get(workload, (0, ()))
    for rate in (mine[each]["figures"]["per s"] for each in smaller if _has_rate(mine, each)):
        return f"over {LIMIT_S} s" if count / rate > LIMIT_S else ""
    return ""


def _has_rate(mine: dict[str, Result], workload: str) -> bool:
    return "per s" in mine.get(workload, {}).get("figures", {})


# ---------------------------------------------------------------- what comes out


def _say(result: Result) -> None:
    figures = result.get("figures", {})
    shown = ", ".join(f"{value:.4g} {unit}" for unit, value in figures.items())
    shown = shown or result.get("unable") or f"FAILED: {result.get('failed')}"
    print(f"{result['round']} {result['workload']:13} {result['system']:13} {shown}", flush=True)


def _write(
    options: argparse.Namespace, results: list[Result], pythons: dict[str, Path], started: float
) -> None:
    kept = not (options.smoke or options.partial)
    folder = HERE if kept else HERE / ".out"
    folder.mkdir(exist_ok=True)
    versions = {name: version(python, name) for name, python in pythons.items()}
    run = {
        "machine": report.machine(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "minutes": round((time.time() - started) / 60, 1),
        "rounds": options.rounds,
        "smoke": options.smoke,
        "results": results,
    }
    (folder / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    (folder / "results.md").write_text(report.page(run))
    if kept and not options.quick:
        readme = ROOT / "README.md"
        readme.write_text(report.into_readme(readme.read_text(), run))
    print(f"written: {folder.relative_to(ROOT) / 'results.md'}")
    if not options.smoke:
        plot = environment("plot")
        command = [str(plot), "-m", "benchmarks.plot", str(folder / "results.json")]
        subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
