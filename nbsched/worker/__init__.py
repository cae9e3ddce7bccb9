"""What a worker daemon does with tasks: takes slices, runs them, publishes outcomes.

It obeys whichever leader has the highest term, and knows neither leader nor client.

    service        commands of the leader, and the life of the whole
    backlog        what is held, whose turn it is, how much to hand over at a time
    inputs         callables and blocks, fetched once per host
    kernelpool     feeds the kernels, stops tasks
    nursery        starts kernels, and others in place of those that died
    kernelslot     one kernel's account: what it was given and has not answered for
    kernelprocess  one kernel's process, socket and output
    deaths         what a kernel died of
    oomkills       whether the system killed it for its memory
    stopping       cancelled tasks, and tasks that broke a limit
    memory         how much memory a kernel occupies
    endings        outcomes of tasks that no kernel can speak for
    results        outcomes on their way to the results log
    reporter       what the worker holds, told to everybody
    cpus           how many CPUs this process may use
"""
