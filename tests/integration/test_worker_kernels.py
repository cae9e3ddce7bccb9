"""A worker service with real kernel processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nbsched.messages import Accepted, OutcomeState
from support.workerbench import Bench, bench, run, true

OK, FAILED, CANCELLED, RETRY = OutcomeState


def test_results_come_back_for_every_task_in_both_kernels() -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = await b.finish(b.job(lambda x: x * x, range(5000)))
            assert job.values() == [x * x for x in range(5000)]
            assert all(len(results) == 1 for results in job.results.values())
            await true(lambda: not b.service.busy)

    run(scenario())
