"""Two trainings for one work dir: the second is refused by name, and whatever ended the first, the folder is free after it."""

import json
import os
import re
import signal
import socket

import pytest

LONG = ['train_cfg.max_epochs=1000', 'train_dataloader.num_workers=0', 'default_hooks.checkpoint.recovery_interval=1']


def refusals(training):
    """The last lines of a training that is refused, in all its processes."""
    trainings = training if isinstance(training, list) else [training]
    assert [one.wait() for one in trainings] == [2] * len(trainings), [one.text for one in trainings]
    assert not any('Traceback' in one.text for one in trainings)
    return [one.text.strip().splitlines()[-1] for one in trainings]


@pytest.mark.parametrize('processes', [None, 2])
def test_the_second_is_refused_and_leaves_no_trace(start, tmp_path, processes):
    run = tmp_path / 'run'
    first = start(options=LONG)
    first.wait_for(r'Epoch\(train\) +\[1\]')
    before = {name for name in os.listdir(run) if name[0] == '2'}  # folders of logs
    for arguments in ((), ('--resume',)):
        lines = refusals(start(*arguments, options=LONG, processes=processes))
        host = re.escape(socket.gethostname())
        who = rf'{run} is in use by process {first.process} of host {host} \(since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\)'
        for rank, line in enumerate(lines):
            named = f' (rank {rank})' if processes else ''
            assert re.match(rf'error{re.escape(named)}: {who}: wait until it ends, or name another folder', line), line
    assert {name for name in os.listdir(run) if name[0] == '2'} == before and first.running()
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert start('--resume', options=[*LONG, 'train_cfg.max_epochs=1']).wait() == 0  # by this process's children as well


@pytest.mark.parametrize('processes', [None, 2])
def test_a_killed_training_frees_its_folder_and_its_remains_are_swept(start, tmp_path, processes):
    run = tmp_path / 'run'
    options = [option for option in LONG if 'num_workers' not in option]  # with loader workers, which outlive it for a moment
    trainings = start(options=options, processes=processes)
    first = trainings[0] if processes else trainings
    first.wait_for(r'Epoch\(train\) +\[2\]')
    for training in trainings if processes else [first]:
        training.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    (run / f'unfinished-{re.sub(chr(92) + "W", "_", socket.gethostname())}-{first.process}-0123456789abcdef.partial').touch()
    again = start('--resume', options=[*options, 'train_cfg.max_epochs=3'], processes=processes)
    again = again if processes else [again]
    assert [training.wait() for training in again] == [0] * len(again), again[0].text
    assert 'resumed from' in again[0].text
    assert not list(run.glob('*.partial')) and not (run / '.lock').read_text()


def test_a_training_on_another_host_is_named_with_the_way_to_free_the_folder(start, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    lock = run / '.lock'
    lock.touch()
    holder = dict(host='gpu07', boot='x', pid=4711, started='1', since='2025-01-02 03:04:05', job=None, file=lock.stat().st_ino)
    lock.write_text(json.dumps(holder))
    (line,) = refusals(start(options=LONG))
    assert f'{run} is in use by process 4711 of host gpu07 (since 2025-01-02 03:04:05)' in line and line.endswith(f'rm {lock}')
    assert os.listdir(run) == ['.lock']
    lock.unlink()
    assert start(options=[*LONG, 'train_cfg.max_epochs=1']).wait() == 0
