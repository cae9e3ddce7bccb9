"""This machine's own cluster: real etcd, real NATS, real workers, one supervisor.

    cluster (joins or starts) → supervisor (one process) → etcd, nats-server, workers

Everything listens on the loopback interface and lies in one folder that only its
owner can read. Nothing here knows what a job is.
"""
