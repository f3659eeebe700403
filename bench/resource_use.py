"""The resources that each component uses under a load: CPU, memory, I/O, processes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psutil
from msgspec import Struct

EVERY_S: Final = 0.5
Pids = Callable[[], Iterable[int]]


class Use(Struct, frozen=True):
    """CPU and I/O of one component's processes since their start, and their memory now."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    processes: int = 0


class Sample(Struct, frozen=True):
    """Every component at one time; `network_bytes` is what went over loopback, of all together."""

    at_s: float
    uses: dict[str, Use]
    network_bytes: int


class ResourceUse(Struct, frozen=True):
    """The use of a component between two samples: CPU in % of one core, bytes, peak memory."""

    cpu_percent: float
    cpu_s: float
    memory_bytes: int
    read_bytes: int
    written_bytes: int
    processes: int


class Sampler:
    """Samples in a thread of its own while the block under `with` runs; raises what it raised."""

    def __init__(self, components: Mapping[str, Pids]) -> None:
        self._components = components
        self._done = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self.samples: list[Sample] = []

    def __enter__(self) -> "Sampler":
        self.samples.append(self._sample())
        self._running = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with self._thread:
            self._running.result()
        self.samples.append(self._sample())

    def _run(self) -> None:
        while not self._done.wait(EVERY_S):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        uses = {name: _use(pids()) for name, pids in self._components.items()}
        network = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        return Sample(time.monotonic(), uses, network)

    @property
    def duration_s(self) -> float:
        """The time between the first sample and the last."""
        return self.samples[-1].at_s - self.samples[0].at_s

    def use(self) -> dict[str, ResourceUse]:
        """The use of each component between the first sample and the last."""
        return {name: self._spent(name) for name in self._components}

    def _spent(self, name: str) -> ResourceUse:
        first, last = self.samples[0].uses[name], self.samples[-1].uses[name]
        cpu_s = last.cpu_s - first.cpu_s
        return ResourceUse(
            100 * cpu_s / self.duration_s,
            cpu_s,
            max(sample.uses[name].memory_bytes for sample in self.samples),
            last.read_bytes - first.read_bytes,
            last.written_bytes - first.written_bytes,
            last.processes,
        )

    def network_bytes(self) -> int:
        """Bytes that were sent over loopback between the first sample and the last."""
        return self.samples[-1].network_bytes - self.samples[0].network_bytes


def _use(pids: Iterable[int]) -> Use:
    total = Use()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            total = _sum(total, _use_of(psutil.Process(pid)))
    return total


def _use_of(process: psutil.Process) -> Use:
    with process.oneshot():
        times, io = process.cpu_times(), process.io_counters()
        cpu_s = times.user + times.system
        return Use(cpu_s, process.memory_info().rss, io.read_bytes, io.write_bytes, 1)


def _sum(one: Use, other: Use) -> Use:
    return Use(*(getattr(one, name) + getattr(other, name) for name in Use.__struct_fields__))


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []
