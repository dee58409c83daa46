"""What goes wrong in a simulated fleet, and when: everything follows from one seed.

Each fault has a name and chance of its own, so leaving one out moves nothing of the others. Most come at random moments,
as many a minute as `_PER_MINUTE` says times the seed's own intensity; some happen to every so many messages. Where all
are wanted, a seed has only some of them, a little or a lot (swarm testing: Groce et al., ISSTA 2012): faults hide each
other, and a fleet under all of them at once does little worth breaking.

Until `until_s`; after that the world is in order, and what a fleet then fails to do, it fails by itself.
"""

from __future__ import annotations

import difflib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

import numpy as np

from hermes_iot.domain import stable_int
from hermes_iot.errors import UsageError
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.fake_disk import FakeDisk
from hermes_iot.runtime.simulation.faulty_link import FaultyNetwork
from hermes_iot.runtime.simulation.processes import Death, Process

#: Every fault by name, in words for a person.
FAULTS: Final[Mapping[str, str]] = {
    "duplicate": "a message arrives twice",
    "redelivery": "something old is delivered again, long after",
    "disconnect": "a connection breaks; what was on its way is lost or sent again",
    "partition": "one line is dead for seconds before either end finds out",
    "latency": "a message, and all behind it, takes seconds",
    "queue-full": "the broker drops what a client was to be sent, and says nothing",
    "broker-crash": "the broker dies: sessions are gone, what was retained is lost or as it was before",
    "coordinator-crash": "the coordinator dies between any two contacts with the world",
    "device-crash": "a device dies likewise",
    "torn-write": "a power cut leaves half of what was not synced",
    "lost-write": "a power cut leaves nothing of what was not synced",
    "disk-full": "a disk takes nothing more for a while",
    "clock": "a device's clock is fast or slow, and leaps",
    "foreign": "updates come of another run, of another model, or with numbers that are none",
}

#: How often a fault comes, at an intensity of 1; the others happen to messages.
_PER_MINUTE: Final[Mapping[str, float]] = {
    "redelivery": 60.0,
    "disconnect": 12.0,
    "partition": 4.0,
    "queue-full": 6.0,
    "broker-crash": 3.0,
    "coordinator-crash": 8.0,
    "device-crash": 8.0,
    "torn-write": 5.0,
    "lost-write": 5.0,
    "disk-full": 5.0,
    "clock": 10.0,
    "foreign": 20.0,
}
_DUPLICATED: Final = 0.15
_DELAYED: Final = 0.01
_DROPPED: Final = 0.7
#: Of all faults, a seed has each with this chance, at an intensity between the two.
_CHOSEN: Final = 0.6
_INTENSITIES: Final = (0.4, 2.5)
_LATENCY_S: Final = (0.002, 0.03)
#: Messages remembered to be delivered again.
_REMEMBERED: Final = 200
#: A broker keeps the order of what is retained for all: these never come again after a later one.
_IN_ORDER: Final = frozenset({"run", "coordinator"})
#: Contacts with the world after which a process dies.
_CONTACTS_MAX: Final = 40
_ROOM_MAX: Final = 3_000


def chosen(words: str) -> tuple[str, ...]:
    """The faults a person names: ``all``, or names with commas.

    Raises:
        UsageError: a name that is none.
    """
    if words == "all":
        return tuple(FAULTS)
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    for name in names:
        if name not in FAULTS:
            near = difflib.get_close_matches(name, FAULTS, n=1)
            mend = f"Did you mean {near[0]!r}?" if near else "--faults list explains each"
            raise UsageError(f"there is no fault {name!r}", why=f"known are {', '.join(FAULTS)}", mend=mend)
    if not names:
        raise UsageError("--faults names nothing", mend="Use all, or names with commas; --faults list explains them")
    return names


class Faults:
    """One seed's faults; also the weather of its network.

    Args:
        names: what may go wrong.
        seed: of all chance.
        clock: of the world.
        topics: of the fleet.
        until_s: when it is over.

    Attributes:
        injected: how often each fault came.
        active: the faults of this seed, with their intensity.
    """

    def __init__(self, names: Iterable[str], *, seed: int, clock: VirtualClock, topics: Topics, until_s: float) -> None:
        self.injected: Counter[str] = Counter()
        self.over = False
        self._seed, self._clock, self._topics, self._until_s = seed, clock, topics, until_s
        wanted = set(names)
        swarm = self._draws("swarm")
        least, most = np.log(_INTENSITIES)
        self.active: dict[str, float] = {}
        for name in FAULTS:
            kept, intensity = swarm.random() < _CHOSEN, float(np.exp(swarm.uniform(least, most)))
            if name in wanted and (kept or len(wanted) < len(FAULTS)):
                self.active[name] = intensity
        self._chances = {name: self._draws(name) for name in FAULTS}
        self._calm = self._draws("latency of every day")
        self._dropping: dict[str, float] = {}  # client -> until when
        self._before: deque[tuple[str, str, bytes]] = deque(maxlen=_REMEMBERED)
        self._retained: list[dict[str, bytes]] = [{}]
        self._power_cut: dict[str, str] = {}  # process -> the fault that cuts its power at its next death

    def _draws(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, stable_int("faults"), stable_int(purpose)])

    # --- the weather ----------------------------------------------------------------------------------------------

    def latency_s(self, client: str) -> float:  # noqa: ARG002 - every client's alike
        """See `faulty_link.Weather`."""
        seconds = float(self._calm.uniform(*_LATENCY_S))
        if self._strikes("latency", _DELAYED):
            seconds += float(self._chances["latency"].uniform(0.3, 5.0))
        return seconds

    def copies_up(self, client: str, topic: str) -> int:  # noqa: ARG002 - every message alike
        """See `faulty_link.Weather`."""
        return 2 if self._strikes("duplicate", _DUPLICATED) else 1

    def copies_down(self, client: str, topic: str, payload: bytes) -> int:
        """See `faulty_link.Weather`."""
        if self._clock.now < self._dropping.get(client, 0.0) and self._strikes("queue-full", _DROPPED, always=True):
            return 0
        address = self._topics.parse(topic)
        if address is not None and address.channel not in _IN_ORDER:
            self._before.append((client, topic, payload))
        return 2 if self._strikes("duplicate", _DUPLICATED) else 1

    def _strikes(self, name: str, share: float, *, always: bool = False) -> bool:
        """Whether a fault happens to this message."""
        if self.over or name not in self.active:
            return False
        intensity = 1.0 if always else self.active[name]
        strikes = bool(self._chances[name].random() < share * intensity)
        self.injected[name] += strikes
        return strikes

    # --- what comes by itself -------------------------------------------------------------------------------------

    def begin(
        self,
        network: FaultyNetwork,
        coordinator: Process,
        devices: list[Process],
        say: Callable[[np.random.Generator], None],
    ) -> None:
        """Plan them all. `say` publishes something foreign."""
        everybody = [coordinator, *devices]
        happenings: dict[str, Callable[[np.random.Generator], None]] = {
            "redelivery": lambda chance: self._redeliver(network, chance),
            "disconnect": lambda chance: _disconnect(network, _one(everybody, chance), chance),
            "partition": lambda chance: _partition(network, _one(everybody, chance), chance),
            "queue-full": lambda chance: self._fill_queue(_one(everybody, chance), chance),
            "broker-crash": lambda chance: self._crash_broker(network, chance),
            "coordinator-crash": lambda chance: _kill(coordinator, chance),
            "device-crash": lambda chance: _kill(_one(devices, chance), chance),
            "torn-write": lambda chance: self._cut_power("torn-write", _one(everybody, chance), chance),
            "lost-write": lambda chance: self._cut_power("lost-write", _one(everybody, chance), chance),
            "disk-full": lambda chance: self._fill(_one(everybody, chance), chance),
            "clock": lambda chance: _set_clock(_one(devices, chance), chance),
            "foreign": say,
        }
        for name, happening in happenings.items():
            if name in self.active:
                self._plan(name, happening)
        if "broker-crash" in self.active:
            self._look(network)

    def end(self, network: FaultyNetwork, processes: Iterable[Process]) -> None:
        """Everything is in order from now on."""
        self.over = True
        network.heal()
        for process in processes:
            process.spare()
            process.disk.free_bytes = None
            process.clock.set(rate=1.0)
            process.look()

    def death(self, name: str, disk: FakeDisk) -> Death:
        """How a process dies that dies now."""
        fault = self._power_cut.pop(name, None)
        chance = self._chances[fault or "device-crash"]
        if fault is None:
            return Death(down_s=float(chance.uniform(0.2, 4.0)), missed_s=0.0)
        disk.power_cut(torn=fault == "torn-write")
        return Death(down_s=float(chance.uniform(1.0, 8.0)), missed_s=float(chance.uniform(0.0, 6.0)))

    def _plan(self, name: str, happening: Callable[[np.random.Generator], None]) -> None:
        chance, mean_s = self._chances[name], 60.0 / (_PER_MINUTE[name] * self.active[name])
        at_s = self._clock.now + float(chance.exponential(mean_s))
        if at_s < self._until_s:
            self._clock.at(at_s, partial(self._happen, name, happening))

    def _happen(self, name: str, happening: Callable[[np.random.Generator], None]) -> None:
        self.injected[name] += 1
        happening(self._chances[name])
        self._plan(name, happening)

    def _redeliver(self, network: FaultyNetwork, chance: np.random.Generator) -> None:
        if self._before:
            client, topic, payload = self._before[int(chance.integers(len(self._before)))]
            network.again(client, topic, payload)

    def _fill_queue(self, process: Process, chance: np.random.Generator) -> None:
        self._dropping[process.client_id] = self._clock.now + float(chance.uniform(0.3, 4.0))

    def _look(self, network: FaultyNetwork) -> None:
        """Now and then the broker saves what is retained; that is what it may come back with."""
        self._retained = [{}, dict(network.broker.retained), self._retained[-1]]
        if not self.over:
            self._clock.at(self._clock.now + 3.0, partial(self._look, network))

    def _crash_broker(self, network: FaultyNetwork, chance: np.random.Generator) -> None:
        kept = [dict(network.broker.retained), *self._retained]
        network.crash_broker(kept[int(chance.integers(len(kept)))], for_s=float(chance.uniform(0.1, 4.0)))

    def _cut_power(self, name: str, process: Process, chance: np.random.Generator) -> None:
        if process.alive:
            self._power_cut[process.name] = name
            process.die_in(int(chance.integers(_CONTACTS_MAX)))

    def _fill(self, process: Process, chance: np.random.Generator) -> None:
        process.disk.free_bytes = int(chance.integers(_ROOM_MAX))
        self._clock.at(self._clock.now + float(chance.uniform(0.5, 6.0)), partial(_empty, process.disk))


def _one(processes: list[Process], chance: np.random.Generator) -> Process:
    return processes[int(chance.integers(len(processes)))]


def _disconnect(network: FaultyNetwork, process: Process, chance: np.random.Generator) -> None:
    noticed_s, missed_s = chance.uniform(0.0, 0.3, size=2)
    network.break_line(
        process.client_id,
        for_s=float(chance.uniform(0.0, 1.0)),
        noticed_s=float(noticed_s),
        missed_s=float(missed_s),
    )


def _partition(network: FaultyNetwork, process: Process, chance: np.random.Generator) -> None:
    noticed_s, missed_s = chance.uniform(0.5, 8.0, size=2)
    network.break_line(
        process.client_id,
        for_s=float(chance.uniform(2.0, 15.0)),
        noticed_s=float(noticed_s),
        missed_s=float(missed_s),
    )


def _kill(process: Process, chance: np.random.Generator) -> None:
    process.die_in(int(chance.integers(_CONTACTS_MAX)))


def _set_clock(process: Process, chance: np.random.Generator) -> None:
    process.clock.set(rate=float(chance.uniform(0.7, 1.4)), leap_s=float(chance.exponential(3.0)))
    process.look()


def _empty(disk: FakeDisk) -> None:
    disk.free_bytes = None
