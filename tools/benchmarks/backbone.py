"""The encoders as backbones: CAEViT and TimmEncoder against mmpretrain's BEiTViT and timm's Beit, with the same weights and images.

    OMP_NUM_THREADS=2 python tools/benchmarks/backbone.py --json work_dirs/benchmarks/backbone.json
    python tools/benchmarks/backbone.py --device cuda --dtype bfloat16 --sizes 800x1333 --batch-sizes 4

Inference is a forward pass without gradients; training is a forward pass, and a backward pass from a fixed gradient of the output tokens.
Sizes are height x width in pixels and are padded to multiples of 16, as the detectors' data preprocessor does. All are built for the
size, since timm's takes no other. Their outputs, and in float32 their gradients, have to agree before anything is timed. TimmEncoder runs
timm's plain ViT, which has no relative position bias, and is left out with one.
"""

import argparse
import statistics
from functools import partial

from options import add_timing_options, size_of

OURS, ADOPTED, MMPRETRAIN, TIMM = 'CAEViT', 'TimmEncoder', 'BEiTViT', 'timm Beit'
MODES = ('inference', 'training')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where to compute (default: %(default)s)')
    parser.add_argument(
        '--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32', help='of autocast (default: %(default)s, none)'
    )
    parser.add_argument(
        '--sizes',
        type=size_of,
        nargs='+',
        default=[(224, 224), (512, 512), (800, 1333)],
        metavar='HxW',
        help='of the images (default: 224 512 800x1333)',
    )
    parser.add_argument(
        '--batch-sizes', type=int, nargs='+', default=[8, 2, 1], metavar='N', help='images, one number for each size (default: 8 2 1)'
    )
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES, help='what to time (default: both)')
    parser.add_argument('--width', type=int, default=768, help='of the tokens; heads are 64 wide (default: %(default)s)')
    parser.add_argument('--depth', type=int, default=12, help='number of blocks (default: %(default)s)')
    parser.add_argument('--rel-pos-bias', action='store_true', help='with a relative position bias in each block, as segmentation has it')
    add_timing_options(parser, rounds=7)
    args = parser.parse_args()
    if args.device == 'cuda' and args.clock == 'cpu':
        parser.error('--clock cpu does not see what a GPU does')
    if len(args.batch_sizes) != len(args.sizes):
        parser.error(f'{len(args.sizes)} --sizes need as many --batch-sizes')
    if min(args.rounds, *args.batch_sizes) < 1:
        parser.error('--rounds and --batch-sizes must be at least 1')
    return args


def main():
    args = parse_args()
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, at_least=dict(width=1, depth=1), outputs=dict(json=()))
        compare(args)


def compare(args):
    import timing

    device = timing.device_of(args.device)
    rows, results = [], {}
    for size, batch_size in zip(args.sizes, args.batch_sizes, strict=True):
        models = build_all(args, size)
        images = make_images(args, size, batch_size)
        check(args, models, images)
        for mode in args.modes:
            runs = {name: partial(run, model, images, args.dtype, mode) for name, model in models.items()}
            times = timing.take_turns(runs, args.rounds, device, clock=args.clock)
            memory = {name: timing.peak_memory(build_run, args, name, size, batch_size, mode, device=device) for name in models}
            setting = f'{size[0]}x{size[1]} {mode}'
            results[setting] = dict(seconds=times, peak_memory_mib=memory, time={}, memory={})
            for name in models:
                relative = timing.ratio(times[name], times[MMPRETRAIN])
                results[setting]['time'][name] = relative
                results[setting]['memory'][name] = memory[name] / memory[MMPRETRAIN]
                rows.append(
                    {
                        'size': f'{size[0]}x{size[1]}',
                        'images': batch_size,
                        'mode': mode,
                        'backbone': name,
                        'seconds': statistics.median(times[name]),
                        'time / BEiTViT': timing.show(relative),
                        'peak MiB': memory[name],
                        'memory / BEiTViT': memory[name] / memory[MMPRETRAIN],
                    }
                )
        del models, runs
    bias = ' with relative position bias' if args.rel_pos_bias else ''
    timing.report(
        f'ViT of {args.depth} blocks, {args.width} wide, patch 16{bias}, {args.dtype}, {args.clock} clock',
        rows,
        device,
        dict(settings=results),
        args.json,
    )


# ---------------------------------------------------------------- the contenders


def padded(size):
    return tuple(-(-pixels // 16) * 16 for pixels in size)


def make_images(args, size, batch_size):
    import torch

    return torch.randn(batch_size, 3, *padded(size), generator=torch.Generator().manual_seed(0)).to(args.device)


def build_all(args, size):
    """Name -> model in training mode, without any drop path, all with the same weights."""
    import torch

    from mmcae.checkpoints import to_mmpretrain, to_timm

    torch.manual_seed(0)
    names = (OURS, *([] if args.rel_pos_bias else [ADOPTED]), MMPRETRAIN, TIMM)
    models = {name: build(args, name, size) for name in names}
    ours = models[OURS]
    with torch.no_grad():  # biases and bias tables start at zero, where a mistake would not show
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = {f'backbone.{key}': value for key, value in ours.state_dict().items()}
    theirs = {key.removeprefix('backbone.'): value for key, value in to_mmpretrain(state).items()}
    load(models[MMPRETRAIN], theirs)
    load(models[TIMM], to_timm(state))
    if ADOPTED in models:
        load(models[ADOPTED].vit, plain_vit(to_timm(state)))
    return models


def plain_vit(state):
    """Weights of timm's Beit under the names of its VisionTransformer, in which keys have a bias."""
    import torch

    state = {key.replace('gamma_1', 'ls1.gamma').replace('gamma_2', 'ls2.gamma'): value for key, value in state.items()}
    for key in [key for key in state if key.endswith('q_bias')]:
        query, value = state.pop(key), state.pop(key.replace('q_bias', 'v_bias'))
        state[key.replace('q_bias', 'qkv.bias')] = torch.cat((query, torch.zeros_like(query), value))
    return state


def load(model, state):
    """Load weights; only the indices of bias tables, which are no weights, may be missing."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [*unexpected, *(key for key in missing if not key.endswith('relative_position_index'))]
    if wrong:
        raise SystemExit(f'{type(model).__name__} has other weights than CAEViT: {", ".join(wrong[:5])}')


def build(args, name, size):
    """A backbone with random weights that gives the tokens of its last block, normalised."""
    heads = max(1, args.width // 64)
    common = dict(img_size=padded(size), patch_size=16, use_rel_pos_bias=args.rel_pos_bias)
    if name == TIMM:
        from timm.models.beit import Beit

        sizes = dict(embed_dim=args.width, depth=args.depth, num_heads=heads)
        model = Beit(**common, **sizes, init_values=0.1, use_abs_pos_emb=True, num_classes=0, global_pool='token')
    elif name == ADOPTED:
        from mmcae.models import TimmEncoder

        sizes = dict(embed_dim=args.width, depth=args.depth, num_heads=heads)
        model = TimmEncoder('vit_base_patch16_224', img_size=padded(size), **sizes, init_values=0.1)
    else:
        from mmpretrain.models import BEiTViT

        from mmcae.models import CAEViT

        arch = dict(embed_dims=args.width, num_layers=args.depth, num_heads=heads, feedforward_channels=4 * args.width)
        common |= dict(arch=arch, layer_scale_init_value=0.1, final_norm=True, out_type='raw')
        model = CAEViT(**common) if name == OURS else BEiTViT(**common, use_abs_pos_emb=True)
    model = model.to(args.device)
    model.train()  # which returns None in mmpretrain
    return model


def tokens_of(model, images):
    for whole in ('encode', 'forward_features'):
        if hasattr(model, whole):
            return getattr(model, whole)(images)
    return model(images)[-1]


def run(model, images, dtype, mode, keep=False):
    """One forward pass, in training with its backward pass; `keep` the gradients."""
    import torch

    autocast = torch.autocast(images.device.type, dtype=getattr(torch, dtype), enabled=dtype != 'float32')
    with torch.set_grad_enabled(mode == 'training'), autocast:
        tokens = tokens_of(model, images)
    if mode == 'training':
        tokens.backward(torch.linspace(-1, 1, tokens.shape[-1], device=tokens.device).to(tokens.dtype).expand_as(tokens))
        if not keep:
            model.zero_grad()
    return tokens


def build_run(args, name, size, batch_size, mode):
    """A contender alone with random weights, for measuring its memory."""
    return partial(run, build(args, name, size), make_images(args, size, batch_size), args.dtype, mode)


def check(args, models, images):
    """Compare the tokens, and the gradient of the first block, with BEiTViT's."""
    tolerance = 1e-3 if args.dtype == 'float32' else 0.1
    found = {}
    for name, model in models.items():
        found[name] = dict(tokens=run(model, images, args.dtype, 'inference').float())
        if 'training' in args.modes:
            run(model, images[:1], args.dtype, 'training', keep=True)
            blocks = model.layers if name == MMPRETRAIN else model.vit.blocks if name == ADOPTED else model.blocks
            found[name]['gradient'] = blocks[0].attn.qkv.weight.grad
            model.zero_grad()
    for name, values in found.items():
        for kind, value in values.items():
            wanted = found[MMPRETRAIN][kind]
            error = ((value - wanted).norm() / wanted.norm()).item()
            if not error <= tolerance:
                raise SystemExit(f'{name} computes something else than {MMPRETRAIN}: the {kind} differs by {error:.2g} of its norm')


if __name__ == '__main__':
    main()
