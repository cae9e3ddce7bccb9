"""The leader: elected among the daemons, it schedules all jobs of its namespace.

It reads etcd (members, jobs, requests) and the headers of both logs, feeds the
scheduler, and carries out its commands. It never fetches or unpickles a payload.
"""
