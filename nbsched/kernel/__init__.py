"""The process that runs the user's code: one CPU slot of a worker.

It is started by exec, holds no connection to any server, no event loop and no
credential, and dies with its daemon. It imports neither the servers' clients nor
asyncio: the interpreter belongs to the user's code.

    protocol      frames between daemon and kernel
    sharedstate   what the daemon can see, and say, without a message
    loop          the kernel's main loop: one task after another
    jobs          callables, items and policies, unpickled once
    tasks         one task, and whatever it ends in
    taskrun       what names one run of a task
    reports       errors of tasks that have raised none
    streak        short tasks, with as little between them as possible
    disturbances  what a task may have done to the next one
    output        what tasks print
    workplace     the folder and the import path that tasks find
    outbox        outcomes on their way back
    outcomes      how results and errors become bytes
    stops         errors of tasks that were stopped at a limit
    memorylimit   allocations far beyond a task's limit are refused
    exceptions    exceptions that arrive as themselves
    retrypolicy   whether a task that failed is to run again
    interrupts    the one way in which a running task is interrupted
    lifeline      dying with the daemon
"""
