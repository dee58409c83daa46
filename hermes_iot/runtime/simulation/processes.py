"""The processes of a simulated fleet: the runners of the field, driven in virtual time, on disks that may fail.

Nothing of a runner is imitated here. It is built, handed what the field would hand it - a connection, a directory, a
clock, a worker - and driven by the field's own loop (`runtime.loop.pump`) for as long as there is something to do now.
Here is what an operating system does around it: time, death and a service that starts it again.

A process can be told to die at its n-th next contact with the world, a change on its disk or a message it sends; as all
it does between two of them is invisible, that is every instant there is. Then all that is left of it is its disk, after
a power cut only what was synced. An error that ends a runner ends the process in the field's way, with its exit code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias

from hermes_iot.errors import HermesError
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.device import DeviceRunner
from hermes_iot.runtime.loop import pump
from hermes_iot.runtime.simulation.audit import Auditor, Violated
from hermes_iot.runtime.simulation.clock import Timer, VirtualClock
from hermes_iot.runtime.simulation.fake_disk import FakeDisk
from hermes_iot.runtime.simulation.faulty_link import FaultyNetwork, FaultyTransport
from hermes_iot.storage.disk import using
from hermes_iot.transport.base import Delivery

Runner: TypeAlias = CoordinatorRunner | DeviceRunner

#: A service starts what has ended again after so long, and what could not begin.
RESTART_S: Final = 1.0
#: From the arrival of a message to its handling; what comes meanwhile is handled along with it.
_THINK_S: Final = 0.002
#: Nothing but a loop without end does so many things at one moment.
_STEPS_MAX: Final = 5_000
#: The least that a clock goes on by, so that a rounded deadline is not looked at for ever.
_TICK_S: Final = 1e-6
#: Where a process can be told to die.
DEATHS: Final = ("disk", "message")
#: Exit codes after which devices/hermes-iot-device.service leaves a device alone: a person is needed.
_FOR_A_PERSON: Final = frozenset({2, 6, 7})


class Crashed(BaseException):
    """The process is gone, here and now; no `except` of its own may stop that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process dies.

    Attributes:
        down_s: seconds until it begins its next life.
        missed_s: until the broker finds out. A kernel that lives on closes the connection at once, a power cut does not.
    """

    down_s: float = RESTART_S
    missed_s: float = 0.0


class Log(Protocol):
    """Notes what happens."""

    def __call__(self, now: float, who: str, what: str, content: bytes = b"") -> None:
        """One thing."""


class BoardClock:
    """A clock that goes too fast or too slow, and leaps forward. Mutable.

    Time that work takes is spent while the work is computed, which takes no virtual time, and given back.
    """

    def __init__(self, clock: VirtualClock, *, started_at: float = 0.0) -> None:
        self._clock = clock
        self._shown = started_at
        self._since = clock.now
        self.rate = 1.0
        self.spent_s = 0.0

    def __call__(self) -> float:
        """What it shows, seconds."""
        return self._shown + (self._clock.now - self._since) * self.rate + self.spent_s

    def set(self, *, rate: float, leap_s: float = 0.0) -> None:
        """Go on at another rate, after a leap."""
        self._shown, self._since = self() - self.spent_s + leap_s, self._clock.now
        self.rate = rate

    def when(self, shown: float) -> float:
        """The time at which it will show this, on the world's clock."""
        return self._clock.now + (shown - self()) / self.rate


class Process(ABC):
    """One program under a service that restarts it; see the module.

    Args:
        name: for a person.
        client_id: at the broker.
        network: the broker's.
        disk: what is left of it when it dies.
        audit: holds the invariants.
        log: notes what happens.
        death: what becomes of its disk, and how long it is away.
        started_at: what its machine's clock shows now.

    Attributes:
        clock: its machine's.
        exits: by exit code, how often an error ended it.
        deaths: by place, see `DEATHS`, how often it died there.
        ended_by: the newest such error.
        given_up: the error after which no service starts it again; empty while one does.
    """

    def __init__(
        self,
        name: str,
        *,
        client_id: str,
        network: FaultyNetwork,
        disk: FakeDisk,
        audit: Auditor,
        log: Log,
        death: Callable[[FakeDisk], Death],
        started_at: float = 0.0,
    ) -> None:
        self.name = name
        self.client_id = client_id
        self.disk = disk
        self.clock = BoardClock(network.clock, started_at=started_at)
        self.exits: Counter[int] = Counter()
        self.deaths: Counter[str] = Counter()
        self.ended_by = self.given_up = ""
        self.transport: FaultyTransport | None = None
        self._network = network
        self._world = network.clock
        self._audit = audit
        self._log = log
        self._death = death
        self._runner: Runner | None = None
        self._dies_in: int | None = None
        self._timer = Timer(self._world, self._run)
        self._awake = False
        self._steps = 0
        self.life = 0

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._runner is not None

    def start(self) -> None:
        """Begin, or, where that fails, try again later."""
        if self._runner is not None or self.given_up:
            return
        self.life += 1
        self._guarded(self._begin)
        self._rest()

    def die_in(self, contacts: int) -> None:
        """Die at this contact with the world from now on, 0 = the next."""
        self._dies_in = contacts

    def spare(self) -> None:
        """It is not to die any more."""
        self._dies_in = None

    def die(self) -> None:
        """Die now."""
        if self._runner is not None:
            self._gone()

    def touch(self, topic: str = "", payload: bytes = b"") -> None:
        """A contact with the world: a change on disk, or something said.

        Raises:
            Crashed: it was its last.
        """
        if self._dies_in is not None:
            self._dies_in -= 1
            if self._dies_in < 0:  # still so where its own code does something on the way out
                self.deaths["message" if topic else "disk"] += self._dies_in == -1
                raise Crashed
        if topic:
            self._says(topic, payload)

    def _gone(self) -> None:
        """Without a word."""
        self._log(self._world.now, self.name, "dies")
        self._forget()
        death = self._death(self.disk)
        if self.transport is not None:
            self.transport.killed(missed_s=death.missed_s)
            self.transport = None
        self._world.at(self._world.now + death.down_s, self.start)

    def _end(self, error: HermesError) -> None:
        """As the field ends a process: say goodbye if one can, exit, be started again if the service does that."""
        self._dies_in = None
        self._log(self._world.now, self.name, f"exits with {error.exit_code}")
        self.exits[error.exit_code] += 1
        self.ended_by = str(error)
        if self._runner is not None:
            self._runner.give_up(error)
            self._runner.close()
        self._forget()
        if error.exit_code in _FOR_A_PERSON:
            self.given_up = str(error)
        else:
            self._world.at(self._world.now + RESTART_S, self.start)

    def _forget(self) -> None:
        self._runner = None
        self._dies_in = None
        self._timer.set(None)
        self.disk.killed()

    # --- events ---------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something is in the inbox."""
        if not self._awake:
            self._awake = True
            self._world.at(self._world.now + _THINK_S, self._woken)

    def look(self) -> None:
        """Its clock was set: what is due may be due at another time."""
        self._rest()

    def _woken(self) -> None:
        self._awake = False
        self._run()

    def _run(self) -> None:
        runner = self._runner
        if runner is None:
            return
        self._steps = 0
        self._guarded(partial(self._pump, runner))
        self._rest()

    def _pump(self, runner: Runner) -> None:
        pump(
            runner.inbox,
            handle=self._handle,
            deadline=runner.next_deadline,
            expire=self._expire,
            running=self._busy,
            clock=self.clock,
        )
        if not runner.running:
            runner.close()
            self._forget()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do it as the process: on its disk, until death or an error ends it."""
        with using(self.disk):
            try:
                work()
            except Crashed:
                self._gone()
            except Violated:
                raise
            except HermesError as error:
                self._end(error)

    def _busy(self) -> bool:
        runner = self._runner
        if runner is None or not runner.running:
            return False
        self._steps += 1
        if self._steps > _STEPS_MAX:
            raise Violated("progress", f"{self.name} does one thing after another and time does not go on")
        due = runner.next_deadline()
        return len(runner.inbox) > 0 or (due is not None and due <= self.clock())

    def _handle(self, event: object) -> None:
        assert self._runner is not None  # noqa: S101 - only a running one is driven
        match event:
            case Delivery(topic=topic, payload=payload):
                self._log(self._world.now, self.name, topic, payload)
                self._heard(event)
            case _:
                self._log(self._world.now, self.name, type(event).__name__)
        self._runner.handle(event)
        self._check()

    def _expire(self) -> None:
        assert self._runner is not None  # noqa: S101 - only a running one is driven
        self._runner.expire()
        self._check()

    def _rest(self) -> None:
        """Until the next deadline."""
        due = self._runner.next_deadline() if self._runner is not None and self._runner.running else None
        self._timer.set(None if due is None else max(self.clock.when(due), self._world.now + _TICK_S))

    # --- what the two kinds differ in -------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """Build the runner, and start it."""

    @abstractmethod
    def _check(self) -> None:
        """Something has happened to it."""

    def _heard(self, delivery: Delivery) -> None:  # noqa: B027 - only one of the two listens
        """A delivery is about to be handled."""

    def _says(self, topic: str, payload: bytes) -> None:  # noqa: B027 - only one of the two listens
        """Something is about to be said."""
