"""What a training on GPUs would take, before anyone queues a job: memory, batch, images a second, loader cores, hours.

    mmcae plan cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k --gpus 32 --gpu A100
    mmcae plan CONFIG --gpus 64 --gpu H100 model.backbone.with_cp=True
    mmcae plan CONFIG --gpu H100 --share 0.45 --images 1281167 --json plan.json

Nothing is trained, read or downloaded, and no GPU is needed: a step is computed on tensors that have shapes and no numbers. Its memory is
counted tensor by tensor; its time is its arithmetic over a share of the GPU's matrix rate, which you state (--share). Detectors cannot be
planned: what they compute depends on the objects of the images.
"""

from .arguments import add_changes

DEFAULT_SHARE, PER_CORE, KILOBYTES = 0.35, 570.0, 110.0
IMAGES = {'imagenet': 1_281_167, 'ade': 20_210, 'voc12': 10_582}  # training images, by a part of data_root


def add_arguments(parser):
    parser.add_argument('config', help='a config file, or the name of one that comes with mmcae')
    parser.add_argument('--gpus', type=int, default=8, help='how many (default: %(default)s)')
    parser.add_argument(
        '--gpu', default='A100', help='kind: V100-32, A100-40, A100, L40S, RTX4090, H100, H200, B200 (default: %(default)s)'
    )
    parser.add_argument(
        '--share', type=float, default=DEFAULT_SHARE, help="share of the GPU's matrix rate that the step reaches (default: %(default)s)"
    )
    parser.add_argument('--images', type=int, help="training images (default: the data set's where it is known)")
    parser.add_argument(
        '--images-per-core', type=float, default=PER_CORE, help='that one core loads in a second (default: %(default)s, for 500x375 pixels)'
    )
    parser.add_argument('--kilobytes', type=float, default=KILOBYTES, help='of a file (default: %(default)s, as in ImageNet)')
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    add_changes(parser)


def run(args):
    from ..apis.planning import GPUS
    from ..utils.configs.loading import load_config
    from ..utils.errors import ConfigError, nearest
    from .arguments import check_arguments

    check_arguments(args, at_least=dict(gpus=1, images=1), shares=('share',), outputs=dict(json=('.json',)))
    for name in ('images_per_core', 'kilobytes'):
        if not getattr(args, name) > 0:
            raise ConfigError(f'--{name.replace("_", "-")} {getattr(args, name)}: expected a number above 0')
    if args.gpu not in GPUS:
        raise ConfigError(f'--gpu {args.gpu}: known are {", ".join(GPUS)}{nearest(args.gpu, GPUS)}')
    cfg = load_config(args.config, [*args.changes, *args.cfg_options])
    figures = make_plan(cfg, args)
    print(describe(cfg, args, figures))
    if args.json:
        import json

        from ..utils.files import write_file

        write_file(args.json, json.dumps(figures, indent=1) + '\n')


def make_plan(cfg, args) -> dict:
    """All figures, as plain numbers: bytes, seconds and images unless a name says otherwise."""
    from .. import compat
    from ..apis.planning import GPUS, USABLE, count_costs
    from ..utils.errors import ConfigError

    if not cfg.get('train_dataloader') or not cfg.get('optim_wrapper'):
        raise ConfigError(f'{args.config} describes no training: it has no train_dataloader or no optim_wrapper')
    if cfg.optim_wrapper.get('type', 'OptimWrapper') in ('AmpOptimWrapper', 'mmcae.AmpOptimWrapper'):
        cfg.optim_wrapper.dtype = 'bfloat16'  # half precision takes the same memory in either form
    if cfg.get('default_scope') in compat.LIBRARIES:
        compat.require(cfg.default_scope)
    batch = cfg.train_dataloader.batch_size
    small = max(2, batch // 4)  # batch norms cannot train on one image
    costs = count_costs(cfg, (small, 2 * small))
    memory, rate = GPUS[args.gpu]
    capacity = memory * 1e9 * USABLE
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    speed = args.gpus * args.share * rate * 1e12 / (2 * costs.step)
    images = args.images or known_images(cfg)
    total = images_of_schedule(cfg, images, args.gpus * batch)
    cores = speed / args.gpus / args.images_per_core
    hours = total / speed / 3600 if total else None
    return dict(
        parameters=costs.parameters,
        multiply_adds_forward=costs.multiply_adds,
        multiply_adds_step=costs.step,
        batch_size=batch,
        memory=dict(
            peak=costs.peak(batch),
            weights=costs.weights,
            gradients=costs.gradients,
            optimizer=costs.optimizer,
            activations_per_image=costs.line[1],
            capacity=capacity,
        ),
        largest_batch=costs.largest_batch(capacity),
        effective_batch=args.gpus * batch * accumulated,
        images_per_second=speed,
        loader_cores_per_gpu=cores,
        read_per_second=speed * args.kilobytes * 1e3,
        images_of_schedule=total,
        hours=hours,
        gpu_hours=hours * args.gpus if hours else None,
    )


def known_images(cfg) -> int | None:
    """How many training images a well-known data set has; None for others."""
    dataset = cfg.train_dataloader.dataset
    while 'data_root' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    root = str(dataset.get('data_root', '')).lower()
    return next((images for name, images in IMAGES.items() if name in root), None)


def images_of_schedule(cfg, images: int | None, batch: int) -> int | None:
    """Images of the whole training: epochs by the data set, or iterations by the batch of all GPUs."""
    schedule = cfg.train_cfg
    if schedule.get('max_iters'):
        return schedule.max_iters * batch
    return schedule.max_epochs * images if images else None


# ---------------------------------------------------------------- the page


def describe(cfg, args, figures: dict) -> str:
    """The plan as text."""
    memory, batch = figures['memory'], figures['batch_size']
    lines = [f'{args.config} on {args.gpus} x {args.gpu}', '']
    forward = figures['multiply_adds_forward']
    lines += ['part                      parameters  G multiply-adds (forward, per image)']
    for name, number in figures['parameters'].items():
        if number or forward.get(name):
            lines.append(f'{name:24} {number / 1e6:9.1f} M  {forward.get(name, 0) / 1e9:.2f}')
    lines += ['', f'a training step: {figures["multiply_adds_step"] / 1e9:.1f} G multiply-adds per image, backward pass included', '']
    lines.append(f'memory per GPU at batch {batch}: {gigabytes(memory["peak"])} of {gigabytes(memory["capacity"])} usable')
    lines.append(
        f'    weights {gigabytes(memory["weights"])}, optimizer {gigabytes(memory["optimizer"])}, gradients '
        f'{gigabytes(memory["gradients"])}, activations and the rest {gigabytes(memory["activations_per_image"])} per image'
    )
    lines.append(f'    the largest batch that fits: {figures["largest_batch"]}{remedy(cfg, figures)}')
    scaling = cfg.get('auto_scale_lr') or {}
    base, lr = scaling.get('base_batch_size'), cfg.optim_wrapper.get('optimizer', {}).get('lr')
    chosen = f' (chosen for a batch of {base}; --auto-scale-lr adapts it)' if base and base != figures['effective_batch'] else ''
    lines.append(f'effective batch: {figures["effective_batch"]}' + (f', lr {lr:g}{chosen}' if lr is not None else ''))
    lines.append('')
    speed = figures['images_per_second']
    lines.append(f'images per second at {args.share:.0%} of the matrix rate: {speed:,.0f} ({speed / args.gpus:,.0f} per GPU)')
    lines.append(f'loader cores per GPU at {args.images_per_core:g} images per second and core: {figures["loader_cores_per_gpu"]:.1f}')
    lines.append(f'reads from storage at {args.kilobytes:g} kB per image: {figures["read_per_second"] / 1e6:,.0f} MB per second')
    if figures['hours'] is None:
        lines.append('hours: say --images, the number of training images')
    else:
        lines.append(f'the whole schedule: {figures["hours"]:,.1f} hours, {figures["gpu_hours"]:,.0f} GPU-hours')
    return '\n'.join(lines)


def remedy(cfg, figures: dict) -> str:
    """What to do where the config's batch does not fit."""
    largest, batch = figures['largest_batch'], figures['batch_size']
    if largest >= batch:
        return ''
    if largest == 0:
        return '; not one image: shard the model over GPUs (FSDP, docs/distributed.md)'
    if not cfg.model.get('backbone', {}).get('with_cp'):
        return '; recompute activations (model.backbone.with_cp=True), or accumulate gradients over smaller batches'
    steps = -(-batch // largest)
    return f'; train_dataloader.batch_size={-(-batch // steps)} optim_wrapper.accumulative_counts={steps} has the same effective batch'


def gigabytes(size: float) -> str:
    """Bytes as text, in 10^9."""
    return f'{size / 1e9:.2f} GB'
