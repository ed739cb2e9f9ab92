"""Run commands that depend on each other: several at a time, each once, with their progress and the time left.

Every job has a folder of its own with its log and, once it has finished, a record of what it was. A later run keeps jobs whose record
still fits, so that an interrupted run goes on where it stopped and a changed config repeats what depends on it, as `make` does.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import write_file
from ..utils.locks import locked
from ..utils.processes import interruptible, signal_group
from ..utils.progress import Display, duration

POLL = 0.2  # seconds between two looks at the running processes
PATIENCE = 5  # seconds a process gets to end before it is killed
TAIL = 30  # lines of the log that a failure shows
DAMPING = 20  # seconds of work after which measured speed counts as much as the guesses


@dataclass(frozen=True)
class Job:
    """A command and what it needs.

    Args:
        name: Unique; its parts between slashes become folders.
        title: What a person calls it.
        command: The command; a leading `python` stands for this Python.
        needs: Names of the jobs that must have finished before.
        seconds: Guess of how long it takes.
        content: What its result depends on besides the command, such as the text of a config: a change makes the next run repeat it.
        outputs: Files or folders, outside the job's own folder, without which it does not count as finished.
    """

    name: str
    title: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    seconds: float = 10.0
    content: str = ''
    outputs: tuple[str, ...] = ()


class JobFailed(RuntimeError):
    """A command ended with an error; the message shows the command, the end of its log, and where the log is."""


class JobRunner:
    """Runs jobs in parallel lanes.

    Args:
        jobs: In any order.
        folder: Where the jobs' folders are.
        lanes: How many run at the same time.
        env: Environment variables on top of this process's.

    Raises:
        ValueError: Two jobs of the same name, one that needs an unknown job, or a circle.
    """

    def __init__(self, jobs: Iterable[Job], folder: str | Path, lanes: int = 1, env: Mapping[str, str] | None = None):
        self.jobs = in_order(jobs)
        self.folder = Path(folder)
        self.lanes = lanes
        self.env = dict(env or {})
        self.fingerprints: dict[str, str] = {}
        for job in self.jobs.values():
            parts = [job.command, job.content, [self.fingerprints[name] for name in job.needs]]
            self.fingerprints[job.name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.ranks = ranks(self.jobs)
        self.running: dict[str, tuple[subprocess.Popen, float]] = {}
        self.done: set[str] = set()
        self.display = Display()

    def run(self):
        """Run what has not been run.

        Raises:
            JobFailed: A command ended with an error. All others are stopped then.
            DataError: Another process is at work in the same folder.
        """
        with locked(self.folder), interruptible():
            self.done = self.kept()
            if self.done:
                self.display.event(f'{len(self.done)} of {len(self.jobs)} jobs had finished before and are kept.')
            try:
                while len(self.done) < len(self.jobs):
                    self.start_ready()
                    time.sleep(POLL)
                    self.collect()
                    self.display.status(self.status)
            finally:
                self.stop_all()
                self.display.close()

    def folder_of(self, name: str) -> Path:
        return self.folder / name

    def log_of(self, name: str) -> Path:
        return self.folder / name / 'job.log'

    def record(self, name: str) -> dict | None:
        """`command`, `seconds` and `fingerprint` of a finished job; None for one that has not finished."""
        path = self.folder / name / 'job.json'
        return json.loads(path.read_text()) if path.exists() else None

    def kept(self) -> set[str]:
        """Jobs that need not run again: the same command on the same content, its outputs there, and the same of all it needs."""
        kept = set()
        for job in self.jobs.values():
            record = self.record(job.name)
            same = record is not None and record['fingerprint'] == self.fingerprints[job.name]
            if same and kept.issuperset(job.needs) and all(Path(path).exists() for path in job.outputs):
                kept.add(job.name)
        return kept

    # ------------------------------------------------------------ running

    def start_ready(self):
        """Fill the free lanes, the jobs that most waits for first."""
        waiting = [job for name, job in self.jobs.items() if name not in self.done and name not in self.running]
        ready = sorted((job for job in waiting if self.done.issuperset(job.needs)), key=lambda job: -self.ranks[job.name])
        for job in ready[: self.lanes - len(self.running)]:
            self.start(job)

    def start(self, job: Job):
        folder = self.folder_of(job.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        number = len(self.done) + len(self.running) + 1
        self.display.event(f'[{number}/{len(self.jobs)}] {job.title}\n    {shown(job.command)}')
        command = [sys.executable if part == 'python' else part for part in job.command[:1]] + list(job.command[1:])
        with open(self.log_of(job.name), 'w') as log:
            process = subprocess.Popen(
                command,
                env=dict(os.environ, PYTHONUNBUFFERED='1', **self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it can be stopped with all that it started
            )
        self.running[job.name] = (process, time.time())

    def collect(self):
        """Take note of the processes that have ended."""
        for name, (process, began) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            job = self.jobs[name]
            missing = [path for path in job.outputs if not Path(path).exists()]
            if code or missing:
                raise JobFailed(self.failure(job, f'exit code {code}' if code else f'it did not write {", ".join(missing)}'))
            del self.running[name]
            seconds = round(time.time() - began, 1)
            record = dict(command=shown(job.command), seconds=seconds, fingerprint=self.fingerprints[name])
            write_file(self.folder_of(name) / 'job.json', json.dumps(record, indent=1))
            self.done.add(name)
            self.display.event(f'    done in {duration(seconds)}: {job.title}')

    def failure(self, job: Job, reason: str) -> str:
        log = self.log_of(job.name)
        tail = '\n'.join(log.read_text(errors='replace').replace('\r', '\n').splitlines()[-TAIL:])
        return f'{tail}\n\nThis failed ({reason}): {job.title}\n    {shown(job.command)}\nThe whole log is {log}'

    def stop_all(self):
        """End the running processes and all that they started."""
        for process, _ in self.running.values():
            signal_group(process, signal.SIGTERM)
        deadline = time.time() + PATIENCE
        for process, _ in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.time()))
            except subprocess.TimeoutExpired:
                pass
            signal_group(process, signal.SIGKILL)  # also what outlived its parent
            process.wait()
        self.running.clear()

    # ------------------------------------------------------------ progress

    def status(self) -> str:
        """One line: what runs and how far it is, and the time left."""
        remaining = {name: self.remaining(name) for name in self.jobs if name not in self.done}
        parts = []
        for name in self.running:
            elapsed = self.elapsed(name)
            parts.append(f'{self.jobs[name].title} {100 * elapsed / (elapsed + remaining[name] + 0.1):.0f} %')
        left = finish_time(remaining, self.jobs, self.lanes, list(self.running), self.ranks)
        return f'{len(self.done)}/{len(self.jobs)} done, about {duration(left)} left | {" | ".join(parts)}'

    def remaining(self, name: str) -> float:
        """Seconds that a job not yet done still takes: by its own log where that tells, else by the guess and the speed so far."""
        guess = self.jobs[name].seconds * self.slowness()
        if name not in self.running:
            return guess
        elapsed, told = self.elapsed(name), read_eta(self.log_of(name))
        # A job that overruns its guess still needs something.
        return max(guess - elapsed, 0.05 * guess) if told is None else told

    def elapsed(self, name: str) -> float:
        return time.time() - self.running[name][1]

    def slowness(self) -> float:
        """How much longer than guessed jobs take: those that finished, and those that run and tell.

        Each counts by the seconds spent on it, up to its guess, so that jobs that found nothing to do tell nothing about the others.
        """
        observed = [(self.record(name)['seconds'],) * 2 + (self.jobs[name].seconds,) for name in self.done]
        for name in self.running:
            told = read_eta(self.log_of(name))
            if told is not None:
                observed.append((self.elapsed(name), self.elapsed(name) + told, self.jobs[name].seconds))
        weights = [min(spent, guess) for spent, _, guess in observed]
        ratios = [whole / guess for _, whole, guess in observed]
        total = sum(weight * ratio for weight, ratio in zip(weights, ratios, strict=True))
        return (total + DAMPING) / (sum(weights) + DAMPING)


def in_order(jobs: Iterable[Job]) -> dict[str, Job]:
    """Jobs by name, each after those it needs.

    Raises:
        ValueError: See :class:`JobRunner`.
    """
    jobs = list(jobs)
    by_name = {job.name: job for job in jobs}
    if len(by_name) < len(jobs):
        raise ValueError(f'Two jobs have the same name; the names are {sorted(job.name for job in jobs)}')
    ordered: dict[str, Job] = {}
    while len(ordered) < len(jobs):
        ready = [job for job in jobs if job.name not in ordered and all(name in ordered for name in job.needs)]
        if not ready:
            stuck = {job.name: job.needs for job in jobs if job.name not in ordered}
            raise ValueError(f'These jobs wait for each other or for jobs that are not there: {stuck}')
        ordered.update((job.name, job) for job in ready)
    return ordered


def ranks(jobs: Mapping[str, Job]) -> dict[str, float]:
    """Seconds from the start of each job to the end of the longest chain that waits for it."""
    found: dict[str, float] = {}
    for job in reversed(jobs.values()):
        followers = [found[other.name] for other in jobs.values() if job.name in other.needs]
        found[job.name] = job.seconds + max(followers, default=0.0)
    return found


def finish_time(
    remaining: Mapping[str, float], jobs: Mapping[str, Job], lanes: int, running: Sequence[str], rank: Mapping[str, float]
) -> float:
    """Seconds until the last job ends, found by going through the run as :class:`JobRunner` will.

    Args:
        remaining: Seconds each unfinished job still takes.
        jobs: All jobs, in order.
        lanes: How many run at the same time.
        running: Those that run now.
        rank: See :func:`ranks`.
    """
    ends = {name: remaining[name] for name in running}
    finished = {name for name in jobs if name not in remaining}
    waiting = sorted((name for name in remaining if name not in ends), key=lambda name: -rank[name])
    now = 0.0
    while waiting or ends:
        for name in list(waiting):
            if len(ends) < lanes and finished.issuperset(jobs[name].needs):
                waiting.remove(name)
                ends[name] = now + remaining[name]
        first = min(ends, key=ends.get)
        now = ends.pop(first)
        finished.add(first)
    return now


def read_eta(log: Path) -> float | None:
    """The seconds left by the last line of mmengine's training or test loop in a log; None without one.

    The validation in between is passed over: its time is not that of the whole.
    """
    with open(log, 'rb') as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors='replace')
    found = re.findall(r'\((?:train|test)\).*?eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)', text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found[-1])
    return max(1.0, ((days * 24 + hours) * 60 + minutes) * 60 + seconds - (time.time() - log.stat().st_mtime))


def shown(command: Sequence[str]) -> str:
    """A command as a person types it: with the path of this Python, relative where it lies below the current folder."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python) if part == 'python' else part for part in command[:1]] + list(command[1:]))
