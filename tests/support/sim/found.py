"""Stories that the simulation has found, cut down to what matters: each ended badly once."""

from __future__ import annotations

from support.sim.kernels import Act
from support.sim.story import Ask, Fault, JobPlan, Story, TaskPlan


def _ok(seconds: float) -> TaskPlan:
    return TaskPlan((Act("ok", seconds),))


FOUND = {
    # A daemon that was stopped for longer than its lease lived began a queued task when it
    # went on, although a new leader had confirmed its cancel.
    "begun after its cancel": Story(
        6,
        workers=(0, 1),
        jobs=(
            JobPlan("job0", 0, 0.81, (_ok(2.95),)),
            JobPlan("job1", 0, 1.85, (_ok(3.16),)),
        ),
        asks=(Ask(4.85, "cancel", "job1"),),
        faults=(Fault(2.11, "stop worker", 1, 5.96),),
        delay_s=0.03,
    ),
    # A late report of a held task was believed after the outcome of that attempt had been
    # read, and the next attempt began without its delay.
    "delay forgotten": Story(
        1,
        workers=(1, 1, 1),
        jobs=tuple(
            JobPlan(
                f"job{number}",
                0,
                0.5 + number / 10,
                (TaskPlan((Act("retry", 0.2 + number / 50, 4.0), Act("ok", 0.2))),) * 4,
            )
            for number in range(3)
        ),
        delay_s=0.03,
    ),
    # A cancel of a task whose items were still on their way was taken for carried out.
    "cancel before its items": Story(
        6037,
        workers=(1,),
        jobs=(JobPlan("job0", 0, 1.02, (_ok(0.001),) * 13, pause_s=0.1),),
        asks=(Ask(6.48, "cancel", "job0", (12,)),),
        faults=(Fault(2.55, "nats down", 0, 5.25),),
        delay_s=0.03,
    ),
    # A retried task that waited behind its own older run was blamed when that worker's lease
    # ended: it had not begun.
    "blamed while it waited": Story(
        41,
        workers=(1, 1, 1),
        jobs=(JobPlan("job0", 0, 4.75, (_ok(3.36), _ok(3.85), _ok(4.1)), True, max_crashes=1),),
        asks=(Ask(6.45, "retry", "job0"),),
        faults=(Fault(7.67, "revoke lease", 2), Fault(5.56, "revoke lease", 2)),
        delay_s=0.005,
    ),
    # A lease that had ended before the worker registered under it was taken for a candidate
    # that was there already.
    "a lease ends while its worker registers": Story(
        71,
        workers=(1, 1, 1),
        jobs=(JobPlan("job0", 0, 3.69, (_ok(3.01),), True),),
        faults=(
            Fault(0.93, "revoke lease", 2),
            Fault(2.23, "revoke lease", 2),
            Fault(2.1, "revoke lease", 1),
        ),
        delay_s=0.005,
        skew=True,
    ),
}
