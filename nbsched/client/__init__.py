"""The notebook's side: submits jobs, collects outcomes, resolves futures.

User threads call the synchronous surface (`cluster`, `mapfuture`, `futures`); one
thread per process runs the connections (`iothread`, `session`); another one resolves
futures and runs user callbacks (`delivery`), so that no user code ever holds up a
connection.
"""
