"""The whole system in one process, on a clock that only moves when nothing else can.

What runs here is the product: daemons with leader and worker, kernel pools, client
sessions and uploads. Simulated are the things around them: the event loop and every
host's clock (`clock`), the network (`network`), etcd (`store`), NATS (`bus`), kernel
processes (`kernels`) and the users (`users`). A `story` is drawn from a seed and says who
is there, what is asked for, and what goes wrong when; `stage` plays it and keeps a diary,
which `support.invariants` judges without knowing the product.

    python -m support.sim --help
"""
