"""Does an installed mmcae work? Runs the commands of a new user on images made here.

    python tests/test_package/smoke.py OUT               # the core, each command as a process of its own
    python tests/test_package/smoke.py OUT --full        # and detection and segmentation
    python tests/test_package/smoke.py OUT --together    # the core in one process, which takes a quarter of the time

It uses the files of the installed package alone and needs nothing of the checkout it lies in. OUT is a folder for data and results. It
prints a line for each command, and `OUT/summary.json` tells how many have worked, of how many, and why the others have not; the exit code
is 0 where all of them have worked. OpenMMLab's mim is tried where it is installed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

# Which mmengine finds in the files of an installed package, and not of an editable one.
HUB = """
import mmcae
from mmengine.hub import get_config

assert get_config('mmcae::cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py').model.type == 'mmcae.CAE'
"""
SMALL = ('arch=tiny', 'embed_dims=192', 'image_size=32', 'batch_size=64', 'num_workers=0', 'max_epochs=1')
SHORT = ('train_cfg.max_iters=2', 'default_hooks.logger.interval=1')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, metavar='OUT')
    parser.add_argument('--full', action='store_true', help='detection and segmentation, too')
    parser.add_argument('--together', action='store_true', help='the core, in one process')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    os.chdir(out)
    os.environ.update(OMP_NUM_THREADS='1', MMCAE_CACHE=str(out / 'cache'))  # on tiny models OpenMP's threads only wait for each other
    make_images(out / 'data')
    if args.together:
        together(core(out))
        return 0
    commands = {
        'doctor': ('doctor',),
        'config of the hub': (PYTHON, '-c', HUB),
        **core(out),
        **rest(out),
        **(mim(out) if find_spec('mim') else {}),
        **(dense(out) if args.full else {}),
    }
    reasons = {name: run(name, command, out) for name, command in commands.items()}
    failures = '; '.join(f'{name}: {reason}' for name, reason in reasons.items() if reason)
    passed = sum(not reason for reason in reasons.values())
    Path('summary.json').write_text(json.dumps([passed, len(reasons), failures]))
    print(f'{passed} of {len(reasons)} commands have worked. {failures}', flush=True)
    return bool(failures)


def make_images(root):
    """Unlabelled images in a tree of folders, and a class tree with the splits that the probes read."""
    random = np.random.default_rng(0)
    for folder, count in (('pretrain/tiles32', 32), *((f'classification/{split}', 4) for split in ('train', 'val', 'test'))):
        for label in range(10):
            path = root / folder / str(label)
            path.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = 24 * label + random.normal(0, 20, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / f'{i}.png')


def train(out, name, config, *changes):
    return ('train', config, '--work-dir', out / name, *changes)


def core(out):
    """What needs neither mmcv's operators nor mmdet and mmseg: names and commands of mmcae."""
    data, encoder = out / 'data', out / 'pretraining' / 'iter_2.pth'
    labelled, starting = f'data_root={data / "classification"}', f'model.backbone.init_cfg.checkpoint={encoder}'
    commands = {
        'pretraining on a folder': train(out, 'folder', 'cae_vit-small_folder', f'data_root={data / "pretrain"}', *SMALL),
        'pretraining': train(out, 'pretraining', 'digits/cae_pixels_vit-digits', f'data_root={data / "pretrain"}', *SHORT),
        'kNN': (
            *('test', 'digits/knn_vit-digits', encoder, '--work-dir', out / 'knn', labelled),
            'test_cfg.bank_dataloader.dataset.labels=1.0',
        ),
        'linear probe': train(
            out, 'linear', 'digits/linear_vit-digits', labelled, starting, 'train_dataloader.dataset.labels=1.0', 'max_iters=2'
        ),
        'embed': ('embed', encoder, data / 'classification/test', '--out', out / 'features.npz', '--overwrite'),
        'attention': ('attention', encoder, data / 'classification/test/3/0.png', '--out', out / 'attention.png'),
        'reconstruct': (
            *('reconstruct', 'digits/cae_pixels_vit-digits', encoder, data / 'classification/test/3/0.png'),
            *('--out', out / 'reconstruction.png'),
        ),
        'configs show': ('configs', 'show', 'digits/knn_vit-digits'),
    }
    for layout in ('timm', 'mmpretrain'):
        commands[f'conversion to {layout}'] = ('convert', encoder, out / f'{layout}.safetensors', '--to', layout, '--force')
    commands['export to timm'] = ('export', encoder, out / 'encoder_timm', '--to', 'timm', '--overwrite')
    return commands


def rest(out):
    """What a user does next: judge the encoder, look at it, write a report, take a config and pack images."""
    data, encoder = out / 'data/classification', out / 'pretraining' / 'iter_2.pth'
    labels, linear = 'dataset.labels=1.0', 'linear:train_dataloader.'
    options = (f'data_root={data}', f'knn:test_cfg.bank_dataloader.{labels}', f'{linear}{labels}', 'linear:max_iters=2')
    family = ('--config-family', 'digits', '--protocols', 'knn', 'linear')
    return {
        'evaluate': ('evaluate', encoder, *family, '--out', out / 'evaluated', '--cfg-options', *options),
        'judge': ('judge', encoder, '--data', data / 'train', '--probes', 'knn', '--out', out / 'judged'),
        'look': ('look', encoder, '--images', data / 'test/3/0.png', '--out', out / 'look.html'),
        'report': ('report', out / 'pretraining', out / 'evaluated', '--out', out / 'report.html'),
        'curves': ('curves', out / 'pretraining', '--out', out / 'curves.png'),
        'configs list': ('configs', 'list'),
        'configs copy': ('configs', 'copy', 'cae_vit-small_folder', out / 'mine.py', '--overwrite'),
        'dry run': train(out, 'dry', out / 'mine.py', f'data_root={out / "data/pretrain"}', *SMALL, '--dry-run'),
        'pack': ('pack', out / 'data/pretrain', out / 'packed'),
        'embed of packed images': ('embed', encoder, out / 'packed', '--out', out / 'packed.npz', '--overwrite'),
    }


def mim(out):
    """OpenMMLab's command, which finds configs and tools in the package."""
    config, data = 'cae_pixels_vit-digits.py', f'data_root={out / "data/pretrain"}'
    options = ('--gpus', '0', '--work-dir', out / 'mim', '--cfg-options', data, *SHORT)
    return {
        'mim train': (MIM, 'train', 'mmcae', config, *options),
        'mim search': (MIM, 'search', 'mmcae', '--model', 'cae'),
    }


def dense(out):
    """Detection and segmentation."""
    scenes = out / 'scenes'
    starting = f'model.backbone.init_cfg.checkpoint={out / "pretraining/iter_2.pth"}'
    return {
        'scenes': (TOOLS, 'dataset_converters/make_digit_scenes.py', '--out', scenes, '--scale', '0.02', '--workers', '1'),
        'detection': train(out, 'detection', 'digits/mask_rcnn_vit-digits', f'data_root={scenes}/', starting, *SHORT),
        'segmentation': train(out, 'segmentation', 'digits/upernet_vit-digits', f'data_root={scenes}/', *SHORT),
    }


TOOLS = object()  # before the path of a tool, in place of a command
PYTHON = object()  # before arguments of Python itself
MIM = object()  # before arguments of mim


def run(name, command, out):
    """Run one command; its output goes to a file, and to the screen if it fails.

    Returns:
        str: Why it has failed, as the last line of its output; '' if it has not.
    """
    if command[0] is TOOLS:
        from mmcae.utils.packaged import TOOLS as folder

        command = (sys.executable, folder / command[1], *command[2:])
    elif command[0] is PYTHON:
        command = (sys.executable, *command[1:])
    elif command[0] is MIM:
        command = (Path(sys.executable).parent / 'mim', *command[1:])
    else:
        command = (sys.executable, '-m', 'mmcae', *command)
    began, log, reason = time.time(), out / f'{name.replace(" ", "_")}.log', ''
    with open(log, 'w') as output:
        try:
            subprocess.run(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, timeout=1200, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            reason = str(error)
    if reason:
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        reason = lines[-1] if lines else reason
        print(*(f'        {line}' for line in lines[-15:]), sep='\n', flush=True)
    print(f'{"failed" if reason else "ok":>6}  {time.time() - began:5.1f} s  {name}', flush=True)
    return reason


def together(commands):
    """Run commands in this process; the first that fails ends it."""
    from mmcae.commands.main import run_command

    for name, command in commands.items():
        print(f'---- {name}', flush=True)
        run_command(command[0], list(map(str, command[1:])))


if __name__ == '__main__':
    sys.exit(main())
