"""Loader workers and ranks that die: the others end soon, with one line that says why."""

import os
import signal
import time

LONG = ['train_cfg.max_epochs=1000']


def the_error(training):
    assert training.wait() == 2 and 'Traceback' not in training.text, training.text
    return training.text.strip().splitlines()[-1]


def test_loader_worker(start):
    training = start(options=LONG)
    training.wait_for(r'Epoch\(train\) +\[1\]\[2/6\]')
    (worker,) = training.children()
    os.kill(worker, signal.SIGKILL)
    line = the_error(training)
    assert line.startswith(f'error: DataLoader worker (pid {worker}) is killed by signal: Killed. Most often the system killed it') or (
        line.startswith('error: DataLoader worker') and str(worker) in line and 'exited unexpectedly' in line
    )
    assert 'go on with --resume' in line


def test_signals_to_all_processes_leave_the_loader_workers_at_work(start, tmp_path):
    """Slurm signals every process of a job step, a terminal every process in its foreground; the main process decides."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)):
        training = start('--resume', options=LONG)
        training.wait_for(r'Epoch\(train\) +\[\d+\]\[2/6\]')
        training.send_to_all(number)
        training.send_to_all(number)  # torchrun passes on what its children have got already
        assert training.wait() == code, training.text
        assert 'Traceback' not in training.text and 'saved it to' in training.text
        newest = max(tmp_path.glob('run/recovery_*.pth'), key=lambda path: path.stat().st_mtime_ns)
        assert f'stopped after iteration {newest.stem.removeprefix("recovery_")}' in training.text.replace('Stopped', 'stopped')


VALIDATED = """
train_dataloader.update(num_workers=1)
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=1000)
val_dataloader = dict(train_dataloader, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False))
val_cfg, val_evaluator = dict(), dict(type='Accuracy')
default_hooks = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='mmcae.CheckpointHook'))
"""


def test_signals_to_all_processes_leave_the_workers_of_the_validation_at_work(start, image_folder, tiny_classifier, tmp_path):
    training = start(config=tiny_classifier(image_folder('labelled', size=(16, 16)), VALIDATED))
    training.wait_for(r'Epoch\(train\) +\[2\]\[1/2\]')
    training.send_to_all(signal.SIGTERM)
    assert training.wait() == 143, training.text
    assert list(tmp_path.glob('run/recovery_*.pth')) and training.text.count('SIGTERM: saving after this iteration.') == 1


def test_output_that_nobody_reads(start, tmp_path):
    """As of `mmcae train ... | tee log.txt`, where Ctrl-C ends `tee` at once, and of a terminal that is closed."""

    def lose_reader():
        reader, writer = os.pipe()
        os.close(reader)
        for stream in (1, 2):
            os.dup2(writer, stream)

    training = start(options=LONG, limits=[lose_reader])
    while not (tmp_path / 'run/epoch_1.pth').exists():
        assert training.running(), 'ended'
        time.sleep(0.01)
    training.send_to_all(signal.SIGINT)
    assert training.wait() == 130 and list(tmp_path.glob('run/recovery_*.pth'))


def test_nohup_is_respected(start, tmp_path):
    training = start(options=['train_cfg.max_epochs=4'], limits=[lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)])
    training.wait_for(r'Epoch\(train\) +\[1\]\[2/6\]')
    training.send_to_all(signal.SIGHUP)
    assert training.wait() == 0 and 'SIGHUP' not in training.text


def test_rank_that_is_killed(start):
    first, second = start(options=LONG, processes=2)
    first.wait_for(r'Epoch\(train\) +\[1\]\[2/3\]')
    second.send_to_all(signal.SIGKILL)
    line = the_error(first)
    assert line.startswith('error (rank 0): Another process of this training has died') and '--resume' in line
    assert second.wait() == -signal.SIGKILL


def test_rank_that_hangs(start, variant):
    """The other gives up after env_cfg.dist_cfg.timeout, which is longer than a busy machine stalls."""
    hook = dict(type='SignalAt', iteration=2, number=int(signal.SIGSTOP), rank=1)
    config = variant(f'default_hooks = dict(signal={hook})')
    first, _ = start(config=config, options=[*LONG, 'env_cfg.dist_cfg.timeout=15'], processes=2)
    assert 'has not answered for env_cfg.dist_cfg.timeout seconds' in the_error(first)
