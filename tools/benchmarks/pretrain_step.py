"""One training step of CAE: mmcae's recipe against mmpretrain's own CAE, with the same weights, batch and masks.

    OMP_NUM_THREADS=2 python tools/benchmarks/pretrain_step.py --json work_dirs/benchmarks/pretrain_step.json
    python tools/benchmarks/pretrain_step.py --device cuda --batch-size 256 --compile

A step is what both train with: uint8 pixels to losses, backward pass, clipping, AdamW. mmpretrain's model and optimizer are those of its
config, with the number of masked patches set to that of the masks; in float32, and on a GPU also by its own mixed precision. Ours are those
of our recipe, but for drop path, which mmpretrain's config does without. All have to give the same losses and gradients before anything is
timed.

The columns from `tokenizer` to `optimizer` are the split of a step in seconds, on a GPU of further steps that wait after each part: forward
passes of the parts, the losses, the backward pass, and the update with its clipping. The rest (normalising pixels, logs) has no column.

With half of the patches masked, ours is also timed with complementary masks: half of the images, each predicted twice, so that a step has
as many predictions as the ordinary one.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

from contenders import (
    OURS,
    PARTS,
    THEIRS,
    add_size_arguments,
    build,
    build_all,
    check,
    functions_of,
    make_batch,
    masked_patches,
    metered,
    step,
)
from options import add_timing_options


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where to compute (default: %(default)s)')
    add_size_arguments(parser, batch_size=8)
    parser.add_argument('--mask-ratio', type=float, default=0.5, help='share of masked patches (default: %(default)s)')
    parser.add_argument(
        '--mask-ratios',
        type=float,
        nargs='*',
        default=[0.3, 0.4, 0.6, 0.75],
        metavar='R',
        help='further ones, for ours (default: %(default)s)',
    )
    parser.add_argument('--compile', action='store_true', help='time ours compiled too (minutes of compilation on a CPU)')
    add_timing_options(parser, rounds=7)
    args = parser.parse_args()
    if args.device == 'cuda' and args.clock == 'cpu':
        parser.error('--clock cpu does not see what a GPU does')
    if min(args.rounds, args.batch_size) < 1:
        parser.error('--rounds and --batch-size must be at least 1')
    if any(not 0 < ratio < 1 for ratio in (args.mask_ratio, *args.mask_ratios)):
        parser.error('mask ratios must lie between 0 and 1')
    return args


def main():
    args = parse_args()
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, at_least=dict(img_size=1, width=1, depth=1, tokenizer_width=1), outputs=dict(json=()))
        compare(args)


def compare(args):
    import timing

    device = timing.device_of(args.device)
    contenders = contenders_of(args)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, 'tokenizer.pth')
        models = build_all(args, contenders, tokenizer)
        batch = make_batch(args, args.mask_ratio)
        single = make_batch(args, args.mask_ratio, images=1)
        check(models, single)
        flops = {name: args.batch_size * timing.count_flops(partial(step, *models[name], single)) for name in (THEIRS, OURS)}
        times, parts = time_steps(args, models, batch, device)
        others = sweep(args, models, device)
        del models
        memory = {name: timing.peak_memory(build_step, args, how, tokenizer, device=device) for name, how in contenders.items()}
        complementary = compare_complementary(args, tokenizer, device)

    faster = {name: timing.ratio(times[THEIRS], times[name]) for name in contenders}
    rows = []
    for name, how in contenders.items():
        rate = timing.matrix_rate(device, how['dtype'] or 'float32', clock=args.clock)
        used = flops[OURS if how['ours'] else THEIRS] / statistics.median(times[name]) / rate
        more = {'times mmpretrain': timing.show(faster[name]), 'of matrix rate': f'{used:.0%}', 'peak MiB': memory[name]}
        rows.append(row(args, name, args.mask_ratio, times[name], **more, **parts[name]))
    rows += [row(args, name, ratio, seconds) for (name, ratio), seconds in others.items()]
    if complementary:
        rows += [row(args, name, args.mask_ratio, seconds) for name, seconds in complementary['seconds'].items()]
    results = dict(
        ours_vs_mmpretrain=dict(
            throughput=faster[OURS]['median'],
            peak_memory=memory[OURS] / memory[THEIRS],
            throughput_bf16=faster[f'{OURS} bf16']['median'],
        ),
        complementary_vs_plain=complementary and complementary['ratios'],
        throughput=faster,
        peak_memory_mib=memory,
        seconds=times,
    )
    timing.report(
        f'One training step of CAE, {args.batch_size} images of {args.img_size} px, {args.clock} clock', rows, device, results, args.json
    )


def row(args, name, ratio, seconds, **more):
    """A line of the table; what was not measured stays empty."""
    time = statistics.median(seconds)
    empty = dict.fromkeys(('times mmpretrain', 'of matrix rate', 'peak MiB', *PARTS))
    return {'contender': name, 'masked': ratio, 's/step': time, 'images/s': args.batch_size / time, **empty, **more}


def contenders_of(args):
    """Name -> how it computes: its framework, the precision of model and tokenizer, and whether it is compiled."""
    contenders = {
        THEIRS: dict(ours=False, dtype=None),
        OURS: dict(ours=True, dtype=None),
        f'{OURS} bf16': dict(ours=True, dtype='bfloat16'),
    }
    if args.device == 'cuda':
        contenders[f'{THEIRS} fp16'] = dict(ours=False, dtype='float16')
        contenders[f'{OURS} fp16'] = dict(ours=True, dtype='float16')
    else:  # on a GPU the tokenizer computes in float16 by default
        contenders[f'{OURS} bf16, tokenizer too'] = dict(ours=True, dtype='bfloat16', tokenizer_dtype='bfloat16')
    if args.compile:
        contenders |= {f'{name}, compiled': dict(how, compile=True) for name, how in contenders.items() if how['ours']}
    return contenders


def build_step(args, how, tokenizer, images=None):
    """A contender alone with random weights, for measuring its memory."""
    return partial(step, *build(args, **how, tokenizer=tokenizer), make_batch(args, args.mask_ratio, images))


# ---------------------------------------------------------------- measurements


def time_steps(args, models, batch, device):
    """Name -> seconds of each step, and name -> part -> seconds, the median over the steps."""
    from timing import CLOCKS, synchronize, take_turns

    def clock():
        synchronize(device)
        return CLOCKS[args.clock]()

    split = {name: [] for name in models}

    def watched_step(name):
        with metered(functions_of(*models[name]), clock) as passed:
            step(*models[name], batch)
        split[name].append(passed)

    watched = {name: partial(watched_step, name) for name in models}
    if device.type == 'cpu':  # looking at the clock takes no time there
        times = take_turns(watched, args.rounds, device, clock=args.clock)
    else:
        times = take_turns({name: partial(step, *built, batch) for name, built in models.items()}, args.rounds, device)
        take_turns(watched, rounds=3, device=device)
    medians = {name: {part: statistics.median(passed[part] for passed in several[1:]) for part in PARTS} for name, several in split.items()}
    return times, medians


def compare_complementary(args, tokenizer, device):
    """Ours with complementary masks against ours without, at equally many predictions a step; None where half of the patches is not masked.

    Returns:
        `seconds` of each, and `ratios`: `predictions_per_second`, and `peak_memory_per_prediction`.
    """
    import timing

    patches = (args.img_size // 16) ** 2
    if 2 * masked_patches(args, args.mask_ratio) != patches or args.batch_size % 2:
        return None
    plain = dict(ours=True, dtype=None)
    contenders = {
        f'{OURS}, plain': (plain, args.batch_size),
        f'{OURS}, complementary': (dict(plain, complementary=True), args.batch_size // 2),
    }
    steps = {name: build_step(args, how, tokenizer, images) for name, (how, images) in contenders.items()}
    seconds = timing.take_turns(steps, args.rounds, device, clock=args.clock)
    del steps
    memory = [timing.peak_memory(build_step, args, how, tokenizer, images, device=device) for how, images in contenders.values()]
    ratios = dict(
        predictions_per_second=timing.ratio(*seconds.values())['median'],
        peak_memory_per_prediction=memory[1] / memory[0],
    )
    return dict(seconds=seconds, ratios=ratios)


def sweep(args, models, device):
    """(name, mask ratio) -> times of ours, as is and in bfloat16."""
    import timing

    steps = {}
    for name in (OURS, f'{OURS} bf16'):
        for ratio in args.mask_ratios:
            steps[name, ratio] = partial(step, *models[name], make_batch(args, ratio))
    return timing.take_turns(steps, min(args.rounds, 3), device, clock=args.clock)


if __name__ == '__main__':
    main()
