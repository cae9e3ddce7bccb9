"""The scheduler: a pure state machine, ``step(state, event, now) -> commands``.

Theory of operation. Events say what has happened (`events`), commands what is to be
done (`commands`). `core.step` routes an event to the job (`job`) or worker
(`workers`) that it concerns, then `assign` hands out what may run, and `speculation`
copies what runs too long. What workers say they hold is compared in `inventory`. The results log
is the only truth about what has ended: the scheduler never marks a task as ended
before it has read that there, not even what it decides itself (a cancelled queued
task, a task lost with its host): it has the outcome published and waits to read it.

Nothing in this package waits, reads a clock, draws a random number or talks to a
server; so thousands of workers and millions of tasks can be simulated.
"""
