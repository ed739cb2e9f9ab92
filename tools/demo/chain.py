"""The whole chain on real handwritten digits: pretrain CAE, judge its encoder, carry it into detection and segmentation, write a report.

    python tools/demo.py                              # CAE and random initialisation, one seed: minutes on a CPU (make demo)
    python tools/demo.py --seeds 3 --all-encoders     # the table in the README: hours on a CPU (make demo-full)

Every step is a command that is printed before it runs, and that you can repeat and change by hand. Interrupt it at will: the next run
keeps what is finished. A changed config repeats what depends on it; after a change of code use --fresh.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import time
from pathlib import Path

from results import ENCODERS, PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / 'docs' / 'results' / 'digits_results.json'
DATA = Path('data/digits')
MAX_LANES = 4  # more do not shorten the demo: the longest chain of commands takes about as long


TOKENIZER = 'digits/tokenizer_digits.py'
LINEAR = 'digits/linear_vit-digits.py'
PRETRAININGS = {'cae': 'digits/cae_vit-digits.py', 'cae_no_align': 'digits/cae_no-align_vit-digits.py', 'mae': 'digits/mae_vit-digits.py'}
# What configs that start from an encoder have to know about it: mmpretrain's MAE has no layer scale.
OPTIONS = {'mae': ('model.backbone.layer_scale_init_value=0',)}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=1, help='repeat everything but data and tokenizer so often (default: %(default)s)')
    parser.add_argument('--all-encoders', action='store_true', help='also MAE, and CAE without alignment')
    parser.add_argument('--out', type=Path, help='where everything goes (default: work_dirs/demo, work_dirs/demo_full for more)')
    parser.add_argument('--lanes', type=int, help=f'commands at a time (default: one per core, at most {MAX_LANES})')
    parser.add_argument('--fresh', action='store_true', help='throw away what an earlier run left and start over')
    args = parser.parse_args()
    if args.seeds < 1 or (args.lanes is not None and args.lanes < 1):
        parser.error('--seeds and --lanes must be at least 1')
    args.out = args.out or Path('work_dirs', 'demo' if args.seeds == 1 and not args.all_encoders else 'demo_full')
    return args


def main():
    args = parse_args()
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        run(args)


def run(args):
    from report import write_report

    from mmcae.commands.jobs import JobFailed, JobRunner
    from mmcae.utils.progress import duration

    encoders = ['random', *PRETRAININGS] if args.all_encoders else ['random', 'cae']
    if args.fresh:
        start_over(args.out)
    jobs = plan(args.out, encoders, args.seeds)
    # One thread each: on models this small more of them only wait for each other.
    runner = JobRunner(jobs, args.out, args.lanes or min(cores(), MAX_LANES), env=dict(OMP_NUM_THREADS='1'))
    print(
        f'{len(jobs)} commands, {runner.lanes} at a time, each with OMP_NUM_THREADS=1; everything goes to {args.out}. '
        'Interrupt it at will: the next run goes on from there.',
        flush=True,
    )
    began = time.time()
    try:
        runner.run()
    except JobFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command goes on from here.')
    text = write_report(args.out, collect(args.out, encoders, args.seeds), PUBLISHED, runner, time.time() - began)
    print(f'\n{text}\nDone in {duration(time.time() - began)}. All of it: {args.out / "index.html"}', flush=True)


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def start_over(out):
    """Delete what an earlier demo wrote, and nothing else."""
    from mmcae.utils.errors import DataError

    if out.exists():
        if not (out / '.lock').exists():
            raise DataError(f'{out} was not made by this demo, so --fresh does not delete it: choose another --out, or delete it yourself')
        shutil.rmtree(out)


def collect(out, encoders, seeds):
    """The figures of all tests, as fractions, one per seed, by encoder and protocol."""
    figures = {}
    for seed in range(seeds):
        for encoder in encoders:
            for protocol in protocols():
                metrics = json.loads((out / f'seed{seed}/{encoder}/{protocol.name}/test/metrics.json').read_text())
                for metric in protocol.metrics:
                    name = protocol.name if metric.name == 'top1' else metric.name
                    if name in PROTOCOLS:
                        figures.setdefault((encoder, name), []).append(metrics[metric.key] / metric.perfect)
    return figures


# ---------------------------------------------------------------- the plan: every command, and what it waits for


def plan(out, encoders, seeds):
    """The commands of the demo as jobs."""
    tool = ROOT / 'tools/dataset_converters/make_digit_scenes.py'
    code = ''.join(path.read_text() for path in (tool, *sorted(tool.with_name('scenes').glob('*.py'))))
    marker = str(DATA / 'digit_scenes.json')
    jobs = [
        make_job('data', 'digit scenes', (), tool, '--out', DATA, content=code, outputs=(marker,)),
        training(out, 'tokenizer', 'tokenizer', ('data',), TOKENIZER),
    ]
    for seed in range(seeds):
        for encoder in reversed(encoders):  # what is first starts first, and most waits for the pretrainings
            jobs += judge(out, encoder, seed, f' (seed {seed})' if seeds > 1 else '')
    return jobs + drawings(out, encoders)


@functools.cache
def protocols():
    """How encoders are judged: the protocols of `mmcae evaluate` that the results show, the longest first."""
    from mmcae.commands.protocols import DIGITS

    by_name = {protocol.name: protocol for protocol in DIGITS}
    names = ('mask_rcnn', 'upernet', *(name for name in by_name if name in PROTOCOLS))
    return [by_name[name] for name in names]


def judge(out, encoder, seed, suffix):
    """Pretrain an encoder, then train and test on it by every protocol."""
    folder, seeded = f'seed{seed}/{encoder}', (f'randomness.seed={seed}',)
    pretraining, source, jobs = PRETRAININGS.get(encoder), None, []
    if pretraining:
        name, needs, options = f'{folder}/pretrain', ('data',), seeded
        if 'target_generator' in read(pretraining).model:
            tokenizer = checkpoint_of(out, 'tokenizer', TOKENIZER)
            needs, options = ('data', 'tokenizer'), (*seeded, f'model.target_generator.checkpoint={tokenizer}')
        jobs.append(training(out, name, f'{encoder}: pretraining{suffix}', needs, pretraining, options))
        source = checkpoint_of(out, name, pretraining)
    for protocol in protocols():
        name, title = f'{folder}/{protocol.name}', f'{encoder}: {protocol.title}{suffix}'
        needs = (f'{folder}/pretrain',) if pretraining else ('data',)
        options, checkpoint = OPTIONS.get(encoder, ()), source
        if protocol.trained:
            changes = (*seeded, *start_from(source, protocol.config), *options, *protocol.options)
            jobs.append(training(out, f'{name}/train', title, needs, protocol.config, changes))
            needs, checkpoint = (f'{name}/train',), checkpoint_of(out, f'{name}/train', protocol.config)
        elif not pretraining:
            # The linear probe leaves its encoder as it is, here random: its checkpoint holds one.
            needs, checkpoint = (f'{folder}/linear/train',), checkpoint_of(out, f'{folder}/linear/train', LINEAR)
        jobs.append(testing(out, f'{name}/test', f'{title}: test', needs, protocol.config, checkpoint, options))
    return jobs


def start_from(checkpoint, config):
    """The options by which a config starts from an encoder, or from random weights where there is none."""
    present = read(config).model.backbone.get('init_cfg')
    if checkpoint is None:
        return ('model.backbone.init_cfg=None',) if present else ()
    return (*(() if present else ('model.backbone.init_cfg.type=Pretrained',)), f'model.backbone.init_cfg.checkpoint={checkpoint}')


def training(out, name, title, needs, config, options=()):
    path = config_path(config)
    changes = ('--cfg-options', *options) if options else ()
    command = (ROOT / 'tools/train.py', path, '--work-dir', out / name, '--no-validate', *changes)  # a test follows each training
    return make_job(name, title, needs, *command, content=content(config))


def testing(out, name, title, needs, config, checkpoint, options=()):
    path = config_path(config)
    changes = ('--cfg-options', *options) if options else ()
    command = (ROOT / 'tools/test.py', path, checkpoint, '--work-dir', out / name, *changes)
    return make_job(name, title, needs, *command, content=content(config))


def drawings(out, encoders):
    """The pictures, all of the first seed."""
    from report import picture_of

    def draw(name, title, needs, tool, *arguments):
        return make_job(f'pictures/{name}', title, needs, ROOT / 'tools' / tool, *arguments, '--out', picture_of(out, name))

    def plot(kind, title, names):
        titles = [ENCODERS[name.split('/')[1]] for name in names]
        work_dirs = [out / name for name in names]
        return draw(f'{kind}_curves', title, names, 'analysis_tools/plot_curves.py', *work_dirs, '--names', *titles)

    tiles = [DATA / f'classification/test/{digit}/{digit:05d}.png' for digit in range(10)]
    scenes = [DATA / f'scenes96/test/{number:05d}.png' for number in range(6)]
    cae, config = 'seed0/cae/pretrain', PRETRAININGS['cae']
    checkpoint = checkpoint_of(out, cae, config)
    # mmengine leaves the config, with all changes, in the work dir.
    model = (out / cae / Path(config).name, checkpoint)
    reconstruct, large = 'visualization/reconstruct.py', ('--img-size', 96, 96)
    pretrained = [f'seed0/{encoder}/pretrain' for encoder in encoders if encoder in PRETRAININGS]
    jobs = [
        draw('digits', 'reconstructed digits', [cae], reconstruct, *model, *tiles, '--pairs', 2),
        draw('scenes', 'reconstructed scenes', [cae], reconstruct, *model, *scenes[:4], *large, '--pairs', 2),
        draw('attention', 'attention maps', [cae], 'visualization/attention.py', checkpoint, *scenes[:5], *large),
        plot('pretrain', 'pretraining curves', pretrained),
    ]
    for kind, title in (('mask_rcnn', 'detections'), ('upernet', 'segmentations')):
        config, names = f'digits/{kind}_vit-digits.py', [f'seed0/{encoder}/{kind}/train' for encoder in encoders]
        described = [encoder for encoder in encoders if encoder not in OPTIONS]  # by the config as it is, which draws them all
        drawn = [f'seed0/{encoder}/{kind}/train' for encoder in described]
        checkpoints = [checkpoint_of(out, name, config) for name in drawn]
        titles = [f'from {ENCODERS[encoder]}' for encoder in described]
        predictions = 'visualization/predictions.py'
        jobs.append(draw(kind, title, drawn, predictions, config_path(config), *checkpoints, '--names', *titles))
        jobs.append(plot(kind, f'curves of {kind}', names))
    return jobs


def make_job(name, title, needs, tool, *arguments, content='', outputs=()):
    """A job that runs a tool of the repository; its files are named as seen from the current folder."""
    from mmcae.commands.jobs import Job

    words = [os.path.relpath(word) if isinstance(word, Path) and word.is_absolute() else str(word) for word in (tool, *arguments)]
    return Job(name, title, ('python', *words), tuple(needs), content, outputs)


def config_path(name):
    return ROOT / 'configs' / name


@functools.cache
def read(config):
    from mmcae.utils.configs.loading import load_config

    return load_config(config_path(config))


def content(config):
    """All settings of a config as text: a change of it, or of a file it is based on, repeats the job."""
    return json.dumps(read(config).to_dict(), sort_keys=True, default=str)


def checkpoint_of(out, name, config):
    """The file that training by a config leaves at its end."""
    from mmcae.utils.configs.loading import last_checkpoint

    return str(out / name / last_checkpoint(read(config)))
