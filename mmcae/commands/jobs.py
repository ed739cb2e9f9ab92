"""Run commands that depend on each other, several at a time, each once.

Every job has a folder of its own with its log and, once it has finished, a record of what it was. A later run keeps the jobs whose record
still fits, so that an interrupted run goes on where it stopped, and a changed config repeats what depends on it.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from ..utils.files import write_file
from ..utils.locks import locked
from ..utils.processes import interruptible, signal_group
from ..utils.progress import Display, duration

POLL = 0.2  # seconds between two looks at the running processes
PATIENCE = 5  # seconds a process gets to end before it is killed
TAIL = 30  # lines of the log that a failure shows


@dataclass(frozen=True)
class Job:
    """A command and what it needs.

    Args:
        name: Unique; its parts between slashes become folders.
        title: What a person calls it.
        command: The command; a leading `python` stands for this Python.
        needs: Names of the jobs that must have finished before.
        content: What its result depends on besides the command, such as the text of a config: a change makes the next run repeat it.
        outputs: Files or folders, outside the job's own folder, without which it does not count as finished.
    """

    name: str
    title: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    content: str = ''
    outputs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Outputs that are not there."""
        return [path for path in self.outputs if not Path(path).exists()]


class JobFailed(RuntimeError):
    """A command ended with an error; the message shows the command, the end of its log, and where the log is."""


class JobRunner:
    """Runs jobs in parallel lanes; of those that can start, the first in the given order.

    Args:
        jobs: In any order.
        folder: Where the jobs' folders are.
        lanes: How many run at the same time.
        env: Environment variables on top of this process's.

    Raises:
        ValueError: Two jobs of the same name, one that needs an unknown job, or a circle.
    """

    def __init__(self, jobs: Iterable[Job], folder: str | Path, lanes: int = 1, env: Mapping[str, str] | None = None):
        jobs = list(jobs)
        self.jobs, self.folder, self.lanes, self.env = {job.name: job for job in jobs}, Path(folder), lanes, dict(env or {})
        if len(self.jobs) < len(jobs) or not {name for job in jobs for name in job.needs} <= set(self.jobs):
            raise ValueError(f'Names must be unique, and every job that is needed must be there: {[(job.name, job.needs) for job in jobs]}')
        self.fingerprints: dict[str, str] = {}
        for name in TopologicalSorter({job.name: job.needs for job in jobs}).static_order():  # CycleError is a ValueError
            job = self.jobs[name]
            parts = [job.command, job.content, [self.fingerprints[need] for need in job.needs]]
            self.fingerprints[name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.running: dict[str, tuple[subprocess.Popen, float]] = {}
        self.done: set[str] = set()

    def run(self):
        """Run what has not been run.

        Raises:
            JobFailed: A command ended with an error. All others are stopped then.
            DataError: Another process is at work in the same folder.
        """
        display = Display()
        with locked(self.folder), interruptible():
            for name, fingerprint in self.fingerprints.items():  # what is needed comes first
                job, record = self.jobs[name], self.record(name) or {}
                if record.get('fingerprint') == fingerprint and self.done.issuperset(job.needs) and not job.missing:
                    self.done.add(name)
            if self.done:
                display.event(f'{len(self.done)} of {len(self.jobs)} jobs had finished before and are kept.')
            try:
                while len(self.done) < len(self.jobs):
                    waiting = [job for name, job in self.jobs.items() if name not in self.done and name not in self.running]
                    for job in [job for job in waiting if self.done.issuperset(job.needs)][: self.lanes - len(self.running)]:
                        number = len(self.done) + len(self.running) + 1
                        display.event(f'[{number}/{len(self.jobs)}] {job.title}\n    {shown(job.command)}')
                        self.start(job)
                    time.sleep(POLL)
                    for name in [name for name, (process, _) in self.running.items() if process.poll() is not None]:
                        display.event(f'    done in {duration(self.finish(self.jobs[name]))}: {self.jobs[name].title}')
                    display.status(self.status)
            finally:
                self.stop_all()
                display.close()

    def status(self) -> str:
        """One line: how many jobs have finished, and what runs for how long."""
        running = [f'{self.jobs[name].title} {duration(time.time() - began)}' for name, (_, began) in self.running.items()]
        return f'{len(self.done)}/{len(self.jobs)} done | {" | ".join(running)}'

    def log_of(self, name: str) -> Path:
        """The file with what a job prints."""
        return self.folder / name / 'job.log'

    def record(self, name: str) -> dict | None:
        """`command`, `seconds` and `fingerprint` of a finished job; None for one that has not finished."""
        path = self.folder / name / 'job.json'
        return json.loads(path.read_text()) if path.exists() else None

    def start(self, job: Job):
        """Start a job in an empty folder."""
        shutil.rmtree(self.folder / job.name, ignore_errors=True)
        self.log_of(job.name).parent.mkdir(parents=True)
        command = [sys.executable if word == 'python' else word for word in job.command[:1]] + list(job.command[1:])
        env = dict(os.environ, PYTHONUNBUFFERED='1', **self.env)
        with open(self.log_of(job.name), 'w') as log:
            # In a session of its own, so that it can be stopped with all that it started.
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.running[job.name] = (process, time.time())

    def finish(self, job: Job) -> float:
        """Take note of a job that has ended; returns the seconds it took."""
        process, began = self.running[job.name]
        if process.returncode or job.missing:
            reason = f'exit code {process.returncode}' if process.returncode else f'it did not write {", ".join(job.missing)}'
            log = self.log_of(job.name)
            tail = '\n'.join(log.read_text(errors='replace').replace('\r', '\n').splitlines()[-TAIL:])
            raise JobFailed(f'{tail}\n\nThis failed ({reason}): {job.title}\n    {shown(job.command)}\nThe whole log is {log}')
        del self.running[job.name]
        record = dict(command=shown(job.command), seconds=round(time.time() - began, 1), fingerprint=self.fingerprints[job.name])
        write_file(self.folder / job.name / 'job.json', json.dumps(record, indent=1))
        self.done.add(job.name)
        return record['seconds']

    def stop_all(self):
        """End the running processes and all that they started."""
        processes, deadline = [process for process, _ in self.running.values()], time.time() + PATIENCE
        for process in processes:
            signal_group(process, signal.SIGTERM)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.time()))
            signal_group(process, signal.SIGKILL)  # also what outlived its parent
            process.wait()
        self.running.clear()


def shown(command: Sequence[str]) -> str:
    """A command as a person types it: with the path of this Python, relative where it lies below the current folder."""
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return shlex.join([str(python) if word == 'python' else word for word in command[:1]] + list(command[1:]))
