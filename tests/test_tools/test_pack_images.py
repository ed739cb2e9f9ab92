"""tools/dataset_converters/pack_images.py as a process: packed, killed and gone on with, read again, filtered, split; refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from mmcae.datasets.sources.shards import ShardReader

TOOL = 'tools/dataset_converters/pack_images.py'


def paths_in(folder):
    reader = ShardReader(folder)
    return sorted(reader.path(i) for i in range(len(reader)))


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != '.lock'}


def test_a_tree_with_damaged_files_and_damage_to_the_result(run_tool, image_folder, tmp_path):
    source, out = image_folder(classes=('cat', 'dog/old'), count=5), tmp_path / 'packed'
    (source / 'cat/broken.jpg').write_bytes((source / 'cat/000.jpg').read_bytes()[:300])
    (source / 'notes.txt').write_text('no image')
    code, output = run_tool(TOOL, source, out, '--workers', '1')
    assert code == 2 and '1 of 11 files cannot be read as images, such as cat/broken.jpg' in output and '--max-bad-files' in output
    code, output = run_tool(TOOL, source, out, '--workers', '1', '--max-bad-files', '0.1')
    assert code == 0 and '10 of 11 files in 1 shards' in output and '1 unreadable' in output, output
    assert 'unreadable\tcat/broken.jpg\t' in (out / 'left_out.tsv').read_text()
    assert paths_in(out) == sorted(f'{c}/{i:03d}.{("jpg", "png")[i % 2]}' for c in ('cat', 'dog/old') for i in range(5))

    assert run_tool(TOOL, '--verify', out) == (0, f'{out}: 10 images, all as they were packed\n')
    shard = out / 'shard-000000.tar'
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    code, output = run_tool(TOOL, '--verify', out)
    assert code == 2 and 'shard-000000.tar is damaged at its image 1' in output


def test_killed_and_gone_on_with_it_is_the_same(run_tool, tmp_path, repository):
    source, out = tmp_path / 'images', tmp_path / 'packed'
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(900):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(source / f'{i}.png')
    for i in range(0, 900, 50):
        (source / f'{i}.png').write_bytes(b'broken')
    command = ['--shard-size', '0.05', '--workers', '1', '--max-bad-files', '0.1']
    manifest = dict(complete=True)
    while manifest['complete']:  # until it is killed before it has ended
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, repository / TOOL, source, out, *command], stdout=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list(out.glob('shard-*.tar'))) < 3:
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        manifest = json.loads((out / 'pack.json').read_text())
    assert 0 < manifest['consumed'] < 900
    (out / 'shard-000099.tar.part').write_bytes(b'left by a power cut')

    code, output = run_tool(TOOL, source, out, *command)
    assert code == 0 and f'{manifest["consumed"]:,} of 900 files were done with before' in output, output
    assert '882 of 900 files' in output and '18 unreadable' in output
    code, _ = run_tool(TOOL, source, tmp_path / 'at once', *command[:2], '--workers', '0', *command[4:])
    assert code == 0 and content(out) == content(tmp_path / 'at once')

    code, output = run_tool(TOOL, source, out, *command)
    assert code == 0 and '882 of 900 files' in output
    (source / 'new.png').write_bytes((source / '1.png').read_bytes())
    code, output = run_tool(TOOL, source, out, *command)
    assert code == 2 and 'the list of files changed' in output


def test_tiles_split_by_patient_without_the_empty_ones(run_tool, tmp_path):
    source, out = tmp_path / 'tiles', tmp_path / 'packed'
    rng = np.random.default_rng(0)
    for slide in range(6):
        (source / f'TCGA-{slide // 2}-slide{slide}').mkdir(parents=True)
        for tile in range(6):
            colour = (244, 243, 243) if tile < 2 else (205, 145, 185)
            pixels = np.clip(rng.normal(colour, 3, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(source / f'TCGA-{slide // 2}-slide{slide}/{tile}_0.25.png')
    command = (TOOL, source, out, '--workers', '1', '--min-tissue', '0.3', '--split-by', r'^TCGA-(\d)', '--val-share', '0.3')
    code, output = run_tool(*command)
    assert code == 0 and 'train: 24 files of 2 ids' in output and 'val: 12 files of 1 ids' in output and '8 background' in output, output
    train, val = paths_in(out / 'train'), paths_in(out / 'val')
    assert len(train) == 16 and len(val) == 8 and not any(path.split('/')[1][0] in '01' for path in train + val)
    assert not {path[:6] for path in train} & {path[:6] for path in val}
    assert run_tool(TOOL, '--verify', out)[1].count('all as they were packed') == 2
    (source / 'stray.png').write_bytes((source / 'TCGA-0-slide0/3_0.25.png').read_bytes())
    code, output = run_tool(TOOL, source, tmp_path / 'other', *command[3:])
    assert code == 2 and 'no id in 1 of 37 paths, such as stray.png' in output and not (tmp_path / 'other').exists()


def test_a_list_of_files(run_tool, image_folder, tmp_path):
    source = image_folder(classes=('cat', 'dog'), count=4)
    (tmp_path / 'list.txt').write_text(f'dog/001.png\n{source}/cat/000.jpg\n')
    code, output = run_tool(TOOL, source, tmp_path / 'packed', '--list', tmp_path / 'list.txt', '--workers', '0')
    assert code == 0 and paths_in(tmp_path / 'packed') == ['cat/000.jpg', 'dog/001.png'], output
    code, output = run_tool(TOOL, source / 'cat', tmp_path / 'other', '--list', tmp_path / 'list.txt')
    assert code == 2 and 'dog/001.png' in output


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('{empty}', '{out}'), 'no image'),
        (('{empty}/nowhere', '{out}'), 'does not exist'),
        (('{broken}', '{out}'), '2 of 2 files cannot be read'),
        (('{broken}', '{broken}'), 'name a folder outside of it'),
        (('{broken}',), 'SOURCE and DESTINATION'),
        (('--verify', '{empty}'), 'holds no packed images'),
        (('{broken}', '{out}', '--min-tissue', '2'), 'no share'),
        (('{broken}', '{out}', '--split-by', 'x', '--val-share', '0'), '--val-share'),
        (('{broken}', '{out}', '--shard-size', '0'), '--shard-size'),
    ],
)
def test_what_cannot_be_packed_is_refused(run_tool, tmp_path, arguments, message):
    folders = {name: tmp_path / name for name in ('empty', 'broken', 'out')}
    folders['empty'].mkdir()
    folders['broken'].mkdir()
    for name in ('a.jpg', 'b.png'):
        (folders['broken'] / name).write_bytes(b'broken')
    code, output = run_tool(TOOL, *(argument.format(**folders) for argument in arguments))
    assert code == 2 and message in output, output
