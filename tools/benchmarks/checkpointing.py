"""What gradient checkpointing saves and costs: the backbone of a config in training, with `with_cp` off and on.

    OMP_NUM_THREADS=2 python tools/benchmarks/checkpointing.py configs/mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py
    python tools/benchmarks/checkpointing.py CONFIG --size 1024x1024 --batch-size 2 --device cuda --dtype bfloat16

A step is a forward pass and a backward pass from a fixed gradient of all maps. The size is height x width in pixels and is padded as the
config's data preprocessor pads it, else to multiples of 16. Peak memory is that of a process of its own: weights, their gradients, and
activations, but no optimizer. The gradients of both have to agree before they are timed.
"""

import argparse
import statistics
from functools import partial

from options import size_of

KEPT, RECOMPUTED = 'kept', 'recomputed'  # the activations, with with_cp=False and with_cp=True


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a detector or segmentor whose backbone is mmcae.CAEViT')
    parser.add_argument('--size', type=size_of, default=(800, 1333), metavar='HxW', help='of the images (default: 800x1333)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images (default: %(default)s)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where to compute (default: %(default)s)')
    parser.add_argument(
        '--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32', help='of autocast (default: %(default)s, none)'
    )
    parser.add_argument('--rounds', type=int, default=3, help='how often each is timed; 0: memory alone (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes of the config')
    parser.add_argument('--json', metavar='FILE', help='write the results there')
    args = parser.parse_args()
    if min(args.batch_size, *args.size) < 1 or args.rounds < 0:
        parser.error('--batch-size and --size must be at least 1, --rounds at least 0')
    return args


def main():
    args = parse_args()
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, outputs=dict(json=()))
        compare(args)


def compare(args):
    import timing

    from mmcae.utils.configs.loading import load_config
    from mmcae.utils.errors import ConfigError

    device = timing.device_of(args.device)
    cfg = load_config(args.config, args.cfg_options)
    settings = cfg.model.get('backbone', {})
    if settings.get('type') != 'mmcae.CAEViT':
        raise ConfigError(f'{args.config}: its backbone is {settings.get("type")}, and gradient checkpointing is that of mmcae.CAEViT')
    settings = settings.to_dict()
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 16)
    shape = (args.batch_size, settings.get('in_channels', 3), *(-(-pixels // divisor) * divisor for pixels in args.size))
    builds = {name: (settings, name == RECOMPUTED, shape, args.device, args.dtype) for name in (KEPT, RECOMPUTED)}
    memory = {name: timing.peak_memory(build, *builds[name], device=device, runs=1) for name in builds}
    rows = [{'activations': name, 'peak MiB': memory[name], f'memory / {KEPT}': memory[name] / memory[KEPT]} for name in builds]
    results = dict(peak_memory_mib=memory, shape=shape)
    if args.rounds:
        runs = {name: build(*arguments) for name, arguments in builds.items()}
        check(runs)
        results['seconds'] = times = timing.take_turns(runs, args.rounds, device, warmup=0)  # the check was one
        for row, name in zip(rows, runs, strict=True):
            row['seconds'] = statistics.median(times[name])
            row[f'time / {KEPT}'] = timing.show(timing.ratio(times[name], times[KEPT]))
    title = f'{args.config}: the backbone in training, {shape[0]} x {shape[2]}x{shape[3]} pixels, {args.dtype}'
    timing.report(title, rows, device, results, args.json)


def build(settings, with_cp, shape, device, dtype):
    """A step of the backbone with random weights: call it."""
    import torch

    from mmcae.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(dict(settings, with_cp=with_cp, init_cfg=None)).to(device).train()
    return partial(step, model, torch.randn(shape, device=device), dtype)


def step(model, images, dtype):
    """Forward and backward pass; the gradients are left in the model, which is returned."""
    import torch

    torch.manual_seed(1)  # the same drop path in both
    model.zero_grad()
    with torch.autocast(images.device.type, dtype=getattr(torch, dtype), enabled=dtype != 'float32'):
        maps = model(images)
    torch.autograd.backward(maps, [torch.linspace(-1, 1, x.shape[-1], device=x.device).to(x.dtype).expand_as(x) for x in maps])
    return model


def check(runs):
    """Compare the gradients of the first block."""
    kept, recomputed = (run().blocks[0].attn.qkv.weight.grad for run in runs.values())
    error = ((kept - recomputed).norm() / kept.norm()).item()
    if not error <= 1e-3:
        raise SystemExit(f'Gradient checkpointing changes the gradient of the first block by {error:.2g} of its norm')


if __name__ == '__main__':
    main()
