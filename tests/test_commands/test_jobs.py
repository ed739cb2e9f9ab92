"""The job runner: order, lanes, what is kept, what a failure and an interruption leave behind; with real processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mmcae.commands.jobs import Job, JobFailed, JobRunner, shown
from mmcae.utils.errors import DataError
from mmcae.utils.locks import locked


def script(text):
    return ('python', '-c', text)


def append(path, word):
    """A command that adds a word to a file when it begins and again, in capitals, when it ends."""
    return ('bash', '-c', 'echo "$1" >> "$0"; sleep .3; echo "${1^^}" >> "$0"', str(path), word)


def touch(path):
    return ('bash', '-c', 'printf x >> "$0"', str(path))


def test_jobs_run_after_what_they_need(tmp_path):
    log = tmp_path / 'order'
    jobs = [
        Job('c', 'third', append(log, 'c'), needs=('b',)),
        Job('b', 'second', append(log, 'b'), needs=('a',)),
        Job('a', 'first', append(log, 'a')),
    ]
    JobRunner(jobs, tmp_path / 'out', lanes=3).run()
    assert log.read_text().split() == ['a', 'A', 'b', 'B', 'c', 'C']


@pytest.mark.parametrize('lanes, at_once', [(1, 1), (2, 2)])
def test_as_many_run_at_once_as_there_are_lanes(tmp_path, lanes, at_once):
    log = tmp_path / 'order'
    JobRunner([Job(name, name, append(log, name)) for name in 'abcd'], tmp_path / 'out', lanes=lanes).run()
    running, most = 0, 0
    for word in log.read_text().split():
        running += 1 if word.islower() else -1
        most = max(most, running)
    assert most == at_once


def test_of_those_that_can_start_the_first_does(tmp_path):
    log = tmp_path / 'order'
    jobs = [
        Job('tail', 'tail', append(log, 'tail'), needs=('head',)),
        Job('head', 'head', append(log, 'head')),
        Job('short', 'short', append(log, 'short')),
    ]
    JobRunner(jobs, tmp_path / 'out', lanes=1).run()
    assert [word for word in log.read_text().split() if word.islower()] == ['head', 'tail', 'short']


def test_environment_and_log(tmp_path):
    job = Job('group/one', 'one', script('import os; print("threads", os.environ["OMP_NUM_THREADS"])'))
    runner = JobRunner([job], tmp_path, env={'OMP_NUM_THREADS': '7'})
    runner.run()
    assert (tmp_path / 'group/one/job.log').read_text() == 'threads 7\n'
    assert runner.record('group/one')['command'].endswith("""-c 'import os; print("threads", os.environ["OMP_NUM_THREADS"])'""")


class Project:
    """Three jobs, a <- b and c, that count how often each ran."""

    def __init__(self, folder):
        self.folder = folder
        self.jobs = [
            Job('a', 'a', touch(folder / 'a.txt'), outputs=(str(folder / 'a.txt'),), content='one'),
            Job('b', 'b', touch(folder / 'b.txt'), needs=('a',)),
            Job('c', 'c', touch(folder / 'c.txt')),
        ]

    def run(self):
        JobRunner(self.jobs, self.folder / 'out', lanes=2).run()
        return tuple(len((self.folder / f'{name}.txt').read_text()) for name in 'abc')


def test_finished_jobs_are_kept(tmp_path):
    project = Project(tmp_path)
    assert project.run() == (1, 1, 1)
    assert project.run() == (1, 1, 1)


def test_a_change_repeats_a_job_and_what_needs_it(tmp_path):
    project = Project(tmp_path)
    project.run()
    project.jobs[0] = replace(project.jobs[0], content='two')
    assert project.run() == (2, 2, 1)


def test_a_lost_output_is_made_again(tmp_path):
    project = Project(tmp_path)
    project.run()
    (tmp_path / 'a.txt').unlink()
    assert project.run() == (1, 2, 1)


def test_a_job_starts_with_an_empty_folder(tmp_path):
    command = script(f'import os; print(sorted(os.listdir({str(tmp_path / "a")!r})))')
    JobRunner([Job('a', 'a', command)], tmp_path).run()
    (tmp_path / 'a' / 'left_over').touch()
    (tmp_path / 'a' / 'job.json').unlink()
    JobRunner([Job('a', 'a', command)], tmp_path).run()
    assert (tmp_path / 'a/job.log').read_text() == "['job.log']\n"


def test_a_failure_stops_the_others_and_shows_the_log_and_the_command(tmp_path):
    jobs = [
        Job('good', 'good', touch(tmp_path / 'good.txt')),
        Job('bad', 'the bad one', script('print("what went wrong"); raise SystemExit(3)')),
        Job('long', 'long', script('import time; time.sleep(600)')),
        Job('never', 'never', touch(tmp_path / 'never.txt'), needs=('bad',)),
    ]
    began = time.time()
    with pytest.raises(JobFailed) as caught:
        JobRunner(jobs, tmp_path / 'out', lanes=2).run()
    assert time.time() - began < 500, 'waited for the long one'
    message = str(caught.value)
    assert 'what went wrong' in message and 'exit code 3' in message and 'the bad one' in message and 'job.log' in message
    assert shown(jobs[1].command) in message
    assert not (tmp_path / 'never.txt').exists()
    # The next run keeps what was good and tries the bad one again.
    jobs[1] = replace(jobs[1], command=touch(tmp_path / 'bad.txt'))
    jobs[2] = replace(jobs[2], command=touch(tmp_path / 'long.txt'))
    JobRunner(jobs, tmp_path / 'out', lanes=2).run()
    assert (tmp_path / 'good.txt').read_text() == 'x' and (tmp_path / 'never.txt').exists()


def test_a_job_that_does_not_write_its_output_has_failed(tmp_path):
    with pytest.raises(JobFailed, match='did not write .*nothing.txt'):
        JobRunner([Job('a', 'a', script('pass'), outputs=(str(tmp_path / 'nothing.txt'),))], tmp_path / 'out').run()


RUN_FOREVER = """
import sys
from mmcae.commands.jobs import Job, JobRunner
JobRunner([Job('a', 'a', ('bash', '-c', 'sleep 60 & echo $$ $! > "$0"; wait', sys.argv[1] + '/pids'))], sys.argv[1] + '/out').run()
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_that_was_started(tmp_path, number):
    process = subprocess.Popen([sys.executable, '-c', RUN_FOREVER, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    pids = wait_for_text(tmp_path / 'pids', words=2)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode != 0
    for _ in range(1000):  # a signal takes a moment to end a process that nobody waits for
        if not any(is_alive(int(pid)) for pid in pids):
            break
        time.sleep(0.05)
    assert not any(is_alive(int(pid)) for pid in pids)


def test_one_folder_serves_one_run_at_a_time(tmp_path):
    job = Job('a', 'a', script('pass'))
    with locked(tmp_path), pytest.raises(DataError, match=f'{tmp_path} is in use by process {os.getpid()}'):
        JobRunner([job], tmp_path).run()
    JobRunner([job], tmp_path).run()


def wait_for_text(path, words):
    for _ in range(3000):
        if path.exists() and len(path.read_text().split()) == words:
            return path.read_text().split()
        time.sleep(0.1)
    pytest.fail(f'{path} was not written')


def is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_jobs_that_cannot_be_ordered_are_refused(tmp_path):
    with pytest.raises(ValueError, match='cycle'):
        JobRunner([Job('a', 'a', (), needs=('b',)), Job('b', 'b', (), needs=('a',))], tmp_path)
    with pytest.raises(ValueError, match='must be there'):
        JobRunner([Job('a', 'a', (), needs=('ghost',))], tmp_path)
    with pytest.raises(ValueError, match='must be unique'):
        JobRunner([Job('a', 'a', ()), Job('a', 'a', ())], tmp_path)


def test_the_status_tells_what_runs_for_how_long(tmp_path):
    runner = JobRunner([Job(name, f'job {name}', ()) for name in 'abc'], tmp_path)
    runner.done = {'a'}
    runner.running = {'b': (None, time.time() - 65)}
    assert runner.status() == '1/3 done | job b 1:05'


def test_commands_as_people_write_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'executable', str(tmp_path / '.venv/bin/python'))
    assert shown(('python', 'tools/train.py', 'a b')) == ".venv/bin/python tools/train.py 'a b'"
    monkeypatch.setattr(sys, 'executable', '/elsewhere/python')
    assert shown(('make', 'python')) == 'make python'
