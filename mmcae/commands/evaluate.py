"""Judge one encoder by several protocols: nearest neighbours, probing, fine-tuning, segmentation, detection. Prints and saves one table.

    mmcae evaluate work_dirs/cae_vit-digits/iter_1600.pth --config-family digits
    mmcae evaluate work_dirs/cae_vit-digits/iter_1600.pth --config-family digits --protocols upernet mask_rcnn
    mmcae evaluate random --config-family digits --protocols knn linear
    mmcae evaluate checkpoints/cae_vit-base-p16_1600e.pth --config-family imagenet --gpus 8

The encoder may have any size: the config of each protocol is written for it, into OUT/configs, from the recipe of the family and from what
the file tells of the encoder (sizes, view, normalisation). Every protocol is one or two commands that are printed and can be repeated by
hand. Interrupt it at will: the next run goes on from there.
"""

import json
import sys
from pathlib import Path

INTERRUPTED = 'Interrupted. The same command goes on from here.'
FAMILIES = ('digits', 'fashion', 'imagenet')


def add_arguments(parser):
    parser.add_argument(
        'checkpoint', help="with an encoder in any known layout, or a folder of Hugging Face's; 'random' for one with random weights"
    )
    parser.add_argument('--config-family', choices=FAMILIES, required=True, help='which configs')
    parser.add_argument('--protocols', nargs='+', metavar='NAME', help='only these (default: all that classify)')
    parser.add_argument('--out', type=Path, help='where results go (default: work_dirs/evaluation/NAME_OF_THE_CHECKPOINT)')
    parser.add_argument('--num-heads', type=int, help='of the encoder, where its file does not tell')
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


def check(args, parser):
    if args.lanes < 1 or args.gpus < 1 or args.seed < 0:
        parser.error('--lanes and --gpus must be at least 1, --seed must not be negative')
    name = '_'.join(Path(args.checkpoint).with_suffix('').parts[-2:])
    args.out = args.out or Path('work_dirs', 'evaluation', f'{name}_{args.config_family}_seed{args.seed}')


def run(args):
    from ..engine.launch import require_checkpoint
    from ..utils.files import write_file
    from . import protocols as core
    from .jobs import JobFailed, JobRunner

    if args.checkpoint != core.RANDOM and not Path(args.checkpoint).is_dir():
        require_checkpoint(args.checkpoint)
    family = core.FAMILIES[args.config_family][0]
    core.choose(family, args.protocols)  # before the encoder is loaded
    checkpoint, spec = core.prepare_encoder(args.checkpoint, args.config_family, args.out, args.seed, args.num_heads)
    family = core.protocols_for(args.config_family, spec)
    protocols = core.choose(family, args.protocols)
    options = core.split_options(args.cfg_options, protocols)
    options = {name: (f'randomness.seed={args.seed}', *changes) for name, changes in options.items()}
    configs = core.write_configs(args.out, protocols, spec, checkpoint)
    jobs = core.plan(args.out, checkpoint, protocols, configs, options, args.gpus)
    # On models as small as those of the digits the threads of a command only wait for each other, and so do those of several commands.
    threads = dict(OMP_NUM_THREADS='1') if args.lanes > 1 or args.config_family != 'imagenet' else {}
    try:
        JobRunner(jobs, args.out, args.lanes, env=threads).run()
    except JobFailed as error:
        sys.exit(str(error))
    figures = core.read_figures(args.out, family)  # also those of earlier runs with other --protocols
    text = core.table(figures, family)
    results = dict(checkpoint=args.checkpoint, family=args.config_family, protocols=figures)
    write_file(args.out / 'results.json', json.dumps(results, indent=1) + '\n')
    write_file(args.out / 'results.md', f'Encoder: {args.checkpoint}\n\n{text}\n')
    print(f'\n{text}\n\nWrote {args.out / "results.json"} and results.md')
