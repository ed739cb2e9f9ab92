"""Multiply-adds of a training step of CAE, part by part and at several mask ratios: mmcae's recipe against mmpretrain's CAE.

    python tools/benchmarks/flops.py --json work_dirs/benchmarks/flops.json
    python tools/benchmarks/flops.py --width 1024 --depth 24

Counted are matrix products and convolutions, in giga multiply-adds per image, while the step runs. The last column is what the encoder does
outside attention, in mega multiply-adds per visible token: the same number at every mask ratio says that its cost is linear in them.
"""

import argparse
import tempfile
from pathlib import Path

from contenders import OURS, PARTS, THEIRS, add_size_arguments, build_all, check, functions_of, make_batch, metered, step


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where to compute (default: %(default)s)')
    add_size_arguments(parser, batch_size=2)
    parser.add_argument(
        '--mask-ratios',
        type=float,
        nargs='+',
        default=[0.5, 0.3, 0.4, 0.6, 0.75],
        metavar='R',
        help='the first for both (default: %(default)s)',
    )
    parser.add_argument('--json', metavar='FILE', help='write the results there')
    args = parser.parse_args()
    if any(not 0 < ratio < 1 for ratio in args.mask_ratios):
        parser.error('mask ratios must lie between 0 and 1')
    args.mask_ratio = args.mask_ratios[0]
    return args


def main():
    args = parse_args()
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, at_least=dict(batch_size=1, img_size=1, width=1, depth=1, tokenizer_width=1), outputs=dict(json=()))
        count(args)


def count(args):
    import timing

    device = timing.device_of(args.device)
    contenders = {THEIRS: dict(ours=False, dtype=None), OURS: dict(ours=True, dtype=None)}
    with tempfile.TemporaryDirectory() as folder:
        models = build_all(args, contenders, Path(folder, 'tokenizer.pth'))
    check(models, make_batch(args, args.mask_ratio))
    rows = [row_of(args, THEIRS, models[THEIRS], args.mask_ratio)]
    rows += [row_of(args, OURS, models[OURS], ratio) for ratio in args.mask_ratios]
    timing.report(f'Giga multiply-adds per image of {args.img_size} px in a training step', rows, device, {}, args.json)


def row_of(args, name, built, ratio):
    """The counts of one contender at one mask ratio."""
    import numpy as np
    import torch
    from timing import flop_counter

    model, optim_wrapper = built
    batch = make_batch(args, ratio)
    with flop_counter() as counter:

        def total_and_attention():
            by_operator = counter.get_flop_counts().get('Global', {})
            return np.array([sum(by_operator.values()), by_operator.get(torch.ops.aten.bmm, 0)])

        with metered(functions_of(model, optim_wrapper), total_and_attention) as counts:
            step(model, optim_wrapper, batch)
        step_total = counter.get_total_flops()
    images = 2 * args.batch_size  # an addition counts as an operation of its own
    visible = int(batch['data_samples'][0].mask.logical_not().sum())
    total, attention = counts['encoder']
    return {
        'contender': name,
        'masked': ratio,
        'visible patches': visible,
        **{part: counts[part][0] / images / 1e9 for part in PARTS if part not in ('loss', 'optimizer')},
        'step': step_total / images / 1e9,
        'encoder per token': (total - attention) / images / (visible + 1) / 1e6,
    }


if __name__ == '__main__':
    main()
