"""Judge one encoder by all protocols: nearest neighbours, linear and attentive probing, fine-tuning. Prints and saves one table.

    python tools/benchmarks/evaluate_encoder.py work_dirs/cae_vit-digits/iter_1600.pth --config-family digits
    python tools/benchmarks/evaluate_encoder.py random --config-family digits --protocols knn linear
    python tools/benchmarks/evaluate_encoder.py checkpoints/cae_vit-base-p16_1600e.pth --config-family imagenet --gpus 8

Every protocol is one or two commands that are printed and can be repeated by hand. Interrupt it at will: the next run goes on from there.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ('digits', 'fashion', 'imagenet')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help="with an encoder in any known layout; 'random' for one with random weights")
    parser.add_argument('--config-family', choices=FAMILIES, required=True, help='which configs')
    parser.add_argument('--protocols', nargs='+', metavar='NAME', help='only these (default: all of the family)')
    parser.add_argument('--out', type=Path, help='where results go (default: work_dirs/evaluation/NAME_OF_THE_CHECKPOINT)')
    parser.add_argument('--seed', type=int, default=0, help='of training, and of random weights (default: %(default)s)')
    parser.add_argument('--lanes', type=int, default=1, help='commands at a time (default: %(default)s)')
    parser.add_argument('--gpus', type=int, default=1, help='processes of each command, one for each GPU (default: %(default)s)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='changes of all configs; PROTOCOL:KEY=VALUE changes one alone',
    )
    args = parser.parse_args()
    if args.lanes < 1 or args.gpus < 1 or args.seed < 0:
        parser.error('--lanes and --gpus must be at least 1, --seed must not be negative')
    name = '_'.join(Path(args.checkpoint).with_suffix('').parts[-2:])
    args.out = args.out or Path('work_dirs', 'evaluation', f'{name}_{args.config_family}_seed{args.seed}')
    return args


def main():
    args = parse_args()
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        evaluate(args)


def evaluate(args):
    from mmcae.commands import evaluate as core
    from mmcae.commands.jobs import JobFailed, JobRunner
    from mmcae.engine.launch import require_checkpoint
    from mmcae.utils.files import write_file

    if args.checkpoint != core.RANDOM:
        require_checkpoint(args.checkpoint)
    family = core.protocols_for(args.config_family, args.checkpoint)
    protocols = core.choose(family, args.protocols)
    options = core.split_options(args.cfg_options, protocols)
    checkpoint, needed = core.prepare_encoder(args.checkpoint, ROOT / 'configs' / protocols[0].config, args.out, args.seed)
    options = {name: (f'randomness.seed={args.seed}', *needed, *changes) for name, changes in options.items()}
    jobs = core.plan(Path(os.path.relpath(ROOT)), args.out, checkpoint, protocols, options, args.gpus)
    # On models as small as those of the digits the threads of a command only wait for each other, and so do those of several commands.
    threads = dict(OMP_NUM_THREADS='1') if args.lanes > 1 or args.config_family != 'imagenet' else {}
    try:
        JobRunner(jobs, args.out, args.lanes, env=threads).run()
    except JobFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command goes on from here.')
    figures = core.read_figures(args.out, family)  # also those of earlier runs with other --protocols
    text = core.table(figures, family)
    results = dict(checkpoint=args.checkpoint, family=args.config_family, protocols=figures)
    write_file(args.out / 'results.json', json.dumps(results, indent=1) + '\n')
    write_file(args.out / 'results.md', f'Encoder: {args.checkpoint}\n\n{text}\n')
    print(f'\n{text}\n\nWrote {args.out / "results.json"} and results.md')


if __name__ == '__main__':
    main()
