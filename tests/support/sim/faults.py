"""Carries out the faults of a story."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.sim.network import BACK, OUT
from support.sim.story import Fault

if TYPE_CHECKING:
    from support.sim.stage import Stage, Worker

_WAYS = {"both ways": (OUT, BACK), "out": (OUT,), "back": (BACK,)}


class Faults:
    """The faults of one stage, each begun and ended in its time."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def plan(self) -> None:
        for fault in self._stage.story.faults:
            self._stage.calm_at = max(self._stage.calm_at, fault.at + fault.seconds)
            self._stage.at(fault.at, lambda fault=fault: self._begin(fault))  # type: ignore[misc]
        for happening in (*self._stage.story.jobs, *self._stage.story.asks):
            self._stage.calm_at = max(self._stage.calm_at, happening.at)

    def _begin(self, fault: Fault) -> None:
        stage = self._stage
        leader = fault.what.endswith("leader")
        worker = stage.leader() if leader else stage.workers.get(fault.whom)
        who = worker.host.name if worker is not None else ""
        stage.note("fault", text=f"{fault.what} {fault.how}".strip(), who=who)
        kind = fault.what.removesuffix(" leader").removesuffix(" worker").replace(" ", "_")
        getattr(self, f"_{kind}")(fault, worker)

    def _end(self, fault: Fault, call: object) -> None:
        """Undo it when its time is over."""
        stage = self._stage
        stage.open_faults += 1

        def undo() -> None:
            stage.open_faults -= 1
            call()  # type: ignore[operator]

        stage.at(stage.loop.now + fault.seconds, undo)

    # ------------------------------------------------------------ processes

    def _kill(self, fault: Fault, worker: Worker | None) -> None:
        if worker is None or worker.gone:
            return
        stage = self._stage
        stage.kill_worker(worker)
        cpus = stage.story.workers[worker.number]
        self._end(fault, lambda: stage.start_worker(worker.number, cpus))

    def _stop(self, fault: Fault, worker: Worker | None) -> None:
        if worker is None or worker.gone or worker.host.paused:
            return
        loop = self._stage.loop
        loop.pause(worker.host)
        self._end(fault, lambda: loop.resume(worker.host))

    def _drain(self, fault: Fault, worker: Worker | None) -> None:
        if worker is not None and not worker.gone:
            worker.drain.set()

    def _kill_kernel(self, fault: Fault, worker: Worker | None) -> None:
        alive = [] if worker is None else [k for k in worker.kernels if not k.dead]
        if alive:
            self._stage.rng.choice(alive).die(-9, "killed")

    def _kill_client(self, fault: Fault, worker: Worker | None) -> None:
        clients = self._stage.clients
        number = sorted(clients)[fault.whom % len(clients)]
        clients[number] = clients[number].die()

    # ------------------------------------------------------------ servers and wires

    def _cut(self, fault: Fault, worker: Worker | None) -> None:
        if worker is None:
            return
        which, _, ways = fault.how.partition(" ")
        servers = ("etcd", "nats") if which == "both" else (which,)
        network, host = self._stage.network, worker.host
        for server in servers:
            network.cut(host, server, _WAYS[ways])

        def heal() -> None:
            for server in servers:
                network.heal(host, server, _WAYS[ways])

        self._end(fault, heal)

    def _etcd_down(self, fault: Fault, worker: Worker | None) -> None:
        store = self._stage.store
        if store.reachable:
            store.go_down()
            self._end(fault, store.come_back)

    def _nats_down(self, fault: Fault, worker: Worker | None) -> None:
        bus = self._stage.bus
        if bus.reachable:
            bus.go_down()
            self._end(fault, bus.restart)

    def _nats_loses_the_tail(self, fault: Fault, worker: Worker | None) -> None:
        """The power goes, and with it what it had not synced."""
        bus, names = self._stage.bus, self._stage.names
        if bus.reachable:
            bus.go_down()
            for log in (names.results_log, names.inputs_log):
                if fault.how == "both" or log.endswith(fault.how):
                    bus.lose_tail(log, int(fault.amount))
            self._end(fault, bus.restart)

    def _log_full(self, fault: Fault, worker: Worker | None) -> None:
        bus = self._stage.bus
        bus.full = True

        def room() -> None:
            bus.full = False

        self._end(fault, room)

    def _end_watches(self, fault: Fault, worker: Worker | None) -> None:
        self._stage.store.end_watches()

    def _revoke_lease(self, fault: Fault, worker: Worker | None) -> None:
        if worker is not None and not worker.gone:
            for lease in list(worker.store.leases)[:1]:
                self._stage.store.serve(self._stage.store.revoke, lease)

    def _bad_messages(self, fault: Fault, worker: Worker | None) -> None:
        weather = self._stage.network.weather
        loss = fault.amount if fault.how in ("loss", "all") else 0.0
        twice = fault.amount if fault.how in ("twice", "all") else 0.0
        late = {"late": fault.amount, "all": 0.5}.get(fault.how, 0.0)
        weather.loss += loss
        weather.twice += twice
        weather.overtake_s += late

        def better() -> None:
            weather.loss -= loss
            weather.twice -= twice
            weather.overtake_s -= late

        self._end(fault, better)
