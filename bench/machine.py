"""The machine that a benchmark runs on, and what else uses its cores."""

import os
import time
from typing import Final

import psutil

SAMPLE_S: Final = 1.0
TOP_PROCESSES: Final = 5
WORTH_NAMING_PERCENT: Final = 2.0


def describe_load() -> str:
    """The load average and the processes that use most CPU, in percent of one core."""
    load = " ".join(f"{average:.2f}" for average in os.getloadavg())
    names = ", ".join(f"{name} {percent:.0f} %" for name, percent in top_cpu_users())
    return f"load average {load} on {os.cpu_count()} cores; busy: {names or 'nothing else'}"


def top_cpu_users() -> list[tuple[str, float]]:
    """The names of the other processes that use most CPU during a second, most first."""
    before = _cpu_s_by_process()
    time.sleep(SAMPLE_S)
    used = [
        (name, 100 * (cpu_s - before.get(key, (name, 0.0))[1]) / SAMPLE_S)
        for key, (name, cpu_s) in _cpu_s_by_process().items()
        if key[0] != os.getpid()
    ]
    named = [one for one in used if one[1] >= WORTH_NAMING_PERCENT]
    return sorted(named, key=lambda one: one[1], reverse=True)[:TOP_PROCESSES]


def _cpu_s_by_process() -> dict[tuple[int, float], tuple[str, float]]:
    """Name and CPU of each process by its id and its start, as ids are used again."""
    processes = {}
    for process in psutil.process_iter():
        try:
            times = process.cpu_times()
            key = process.pid, process.create_time()
            processes[key] = process.name(), times.user + times.system
        except psutil.Error:
            continue  # it ended meanwhile
    return processes
