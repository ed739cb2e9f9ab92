"""What a training on GPUs would take, before anyone queues a job: memory, batch, images a second, loader cores, hours.

    mmcae plan cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k --gpus 32 --gpu A100
    mmcae plan CONFIG --gpus 64 --gpu H100 model.backbone.with_cp=True
    mmcae plan CONFIG --gpu H100 --share 0.45 --images 1281167 --json plan.json
    mmcae plan mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco --gpus 32 --gpu H100

Nothing is trained, read or downloaded, and no GPU is needed: a step is computed on tensors that have shapes and no numbers. Its memory is
counted tensor by tensor; its time is its arithmetic over a share of the GPU's matrix rate, which you state (--share). What a detector
computes depends on the images: counted are images of the largest size, 8 objects in each, and all the proposals, RoIs and positives that
train_cfg allows; of a detector of one stage, all points or anchors as positives.
"""

import math
import re

from .arguments import add_changes
from .train import check_scaling, learning_rate

# Options that are not given. Images of ImageNet are 500x375, those of COCO 640x480, with masks, at 1024x1024. ViTDet-B's published log has
# 2.8 images a second on an A100 in float32: 0.08 of 156 TFLOPS.
DEFAULTS = dict(share=0.35, images_per_core=570.0, kilobytes=110.0)
DEFAULTS_OF_DETECTORS = dict(share=0.08, images_per_core=45.0, kilobytes=160.0)
# Training images, by the name of a folder in data_root.
IMAGES = {r'imagenet([-_]?1k)?|ilsvrc2012': 1_281_167, r'ade20k|adechallengedata2016': 20_210, 'voc2012': 10_582, 'coco(2017)?': 117_266}


def add_arguments(parser):
    parser.add_argument('config', help='a config file, or the name of one that comes with mmcae')
    parser.add_argument('--gpus', type=int, default=8, help='how many (default: %(default)s)')
    parser.add_argument(
        '--gpu', default='A100', help='kind: V100-32, A100-40, A100, L40S, RTX4090, H100, H200, B200 (default: %(default)s)'
    )
    parser.add_argument(
        '--share',
        type=float,
        help=f"share of the GPU's matrix rate that the step reaches ({default_of('share')})",
    )
    parser.add_argument('--images', type=int, help="training images (default: the data set's where it is known)")
    parser.add_argument(
        '--images-per-core',
        type=float,
        help=f'that one core loads in a second ({default_of("images_per_core")})',
    )
    parser.add_argument('--kilobytes', type=float, help=f'of a file ({default_of("kilobytes")})')
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    add_changes(parser)


def default_of(name: str) -> str:
    """For the help of an option."""
    return f'default: {DEFAULTS[name]:g}; for a detector {DEFAULTS_OF_DETECTORS[name]:g}'


def run(args):
    from ..apis.planning import GPUS
    from ..utils.configs.loading import load_config
    from ..utils.errors import ConfigError, nearest
    from .arguments import check_arguments

    check_arguments(args, at_least=dict(gpus=1, images=1), shares=('share',), outputs=dict(json=('.json',)))
    for name in ('images_per_core', 'kilobytes'):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
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
    check_scaling(cfg)
    if 'DeepSpeed' in cfg.optim_wrapper.get('type', ''):
        raise ConfigError(
            f"{args.config} cannot be planned: DeepSpeed's step is its own. Plan the same model with an optimizer of torch, such as "
            'cae/cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k'
        )
    if cfg.optim_wrapper.get('type', 'OptimWrapper') in ('AmpOptimWrapper', 'mmcae.AmpOptimWrapper'):
        cfg.optim_wrapper.update(type='mmcae.AmpOptimWrapper', dtype='bfloat16')  # mmengine's needs a GPU; float16 takes the same memory
    if cfg.get('default_scope') in compat.LIBRARIES:
        compat.require(cfg.default_scope)
    batch = cfg.train_dataloader.batch_size
    small = max(2, batch // 4)  # batch norms cannot train on one image
    costs = count_costs(cfg, (small, 2 * small))
    shards = args.gpus if 'FSDP' in str((cfg.get('strategy') or {}).get('type')) else 1
    costs = costs.shared_out(shards)
    defaults = DEFAULTS_OF_DETECTORS if costs.objects else DEFAULTS
    share, per_core, kilobytes = (getattr(args, name) or default for name, default in defaults.items())
    memory, rate = GPUS[args.gpu]
    capacity = memory * 1e9 * USABLE
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    speed = args.gpus * share * rate * 1e12 / (2 * costs.step)
    images = args.images or known_images(cfg.train_dataloader.dataset)
    total = images_of_schedule(cfg, images, args.gpus * batch)
    cores = speed / args.gpus / per_core
    hours = total / speed / 3600 if total else None
    return dict(
        parameters=costs.parameters,
        multiply_adds_forward=costs.multiply_adds,
        multiply_adds_step=costs.step,
        image_size=costs.image_size,
        objects_per_image=costs.objects,
        batch_size=batch,
        accumulative_counts=accumulated,
        shards=shards,
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
        share=share,
        images_per_second=speed,
        loader_cores_per_gpu=cores,
        images_per_core=per_core,
        kilobytes_per_image=kilobytes,
        read_per_second=speed * kilobytes * 1e3,
        images_of_schedule=total,
        hours=hours,
        gpu_hours=hours * args.gpus if hours else None,
    )


def known_images(dataset) -> int | None:
    """How many training images a well-known data set has, or the part of it that a config takes; None for others."""
    labels = dataset.get('labels')  # of mmcae.LabelSubset: a share, or a number
    if labels is not None and not isinstance(labels, float):
        return labels
    if 'data_root' not in dataset and 'dataset' in dataset:
        images = known_images(dataset.dataset)
        return images and round((labels or 1) * images)
    folders = str(dataset.get('data_root', '')).lower().split('/')
    return next((images for name, images in IMAGES.items() if any(re.fullmatch(name, folder) for folder in folders)), None)


def repeated(dataset) -> int:
    """How often an epoch has each image, by the `times` of RepeatDataset."""
    return dataset.get('times', 1) * (repeated(dataset.dataset) if 'dataset' in dataset else 1)


def images_of_schedule(cfg, images: int | None, batch: int) -> int | None:
    """Images of the whole training: epochs by the data set, or iterations by the batch of all GPUs."""
    schedule = cfg.train_cfg
    if schedule.get('max_iters'):
        return schedule.max_iters * batch
    return schedule.max_epochs * images * repeated(cfg.train_dataloader.dataset) if images else None


# ---------------------------------------------------------------- the page


def describe(cfg, args, figures: dict) -> str:
    """The plan as text."""
    memory, batch = figures['memory'], figures['batch_size']
    lines = [f'{args.config} on {args.gpus} x {args.gpu}', '']
    forward = figures['multiply_adds_forward']
    lines += ['part                      parameters  G multiply-adds (forward, per image)']
    for name, number in figures['parameters'].items():
        if number or forward.get(name):
            lines.append(f'{name:24} {shown(number / 1e6, 1):>9} M  {shown(forward.get(name, 0) / 1e9, 2)}')
    height, width = figures['image_size']
    lines += ['', f'images of {height}x{width} pixels (height x width)']
    if figures['objects_per_image']:
        lines[-1] += f', the largest of the pipeline, {figures["objects_per_image"]} objects in each; '
        if cfg.model.get('roi_head'):
            lines[-1] += 'as many proposals, RoIs and'
            lines.append('    positives as train_cfg allows, and the RoIs spread evenly over the maps of the pyramid')
        else:
            lines[-1] += 'all points or anchors count as positives'
    lines += ['', f'a training step: {shown(figures["multiply_adds_step"] / 1e9, 1)} G multiply-adds per image, backward pass included', '']
    lines.append(f'memory per GPU at batch {batch}: {gigabytes(memory["peak"])} of {gigabytes(memory["capacity"])} usable')
    lines.append(
        f'    weights {gigabytes(memory["weights"])}, optimizer {gigabytes(memory["optimizer"])}, gradients '
        f'{gigabytes(memory["gradients"])}, activations and the rest {gigabytes(memory["activations_per_image"])} per image'
    )
    if figures['shards'] > 1:
        lines.append(f'    what is trained is shared out over {figures["shards"]} GPUs; the blocks that a step gathers are in no count')
    lines.append(f'    the largest batch that fits: {figures["largest_batch"]}{remedy(cfg, figures)}')
    lines.append(f'effective batch: {figures["effective_batch"]}{learning_rate(cfg, figures["effective_batch"])}')
    lines.append('')
    speed = figures['images_per_second']
    lines.append(f'images per second at {figures["share"]:.0%} of the matrix rate: {shown(speed)} ({shown(speed / args.gpus)} per GPU)')
    lines.append(
        f'loader cores per GPU at {figures["images_per_core"]:g} images per second and core: {shown(figures["loader_cores_per_gpu"], 1)}'
    )
    lines.append(
        f'reads from storage at {figures["kilobytes_per_image"]:g} kB per image: {shown(figures["read_per_second"] / 1e6)} MB per second'
    )
    if figures['hours'] is None:
        lines.append('hours: say --images, the number of training images')
    else:
        lines.append(f'the whole schedule: {shown(figures["hours"], 1)} hours, {shown(figures["gpu_hours"])} GPU-hours')
    return '\n'.join(lines)


def remedy(cfg, figures: dict) -> str:
    """What to do where the config's batch does not fit, as changes that `mmcae plan` and `mmcae train` take."""
    largest, batch = figures['largest_batch'], figures['batch_size']
    if largest >= batch:
        return ''
    remedies = []
    memory = figures['memory']
    fits_without_images = memory['weights'] + memory['gradients'] + memory['optimizer'] <= memory['capacity']
    if fits_without_images and can_recompute(cfg):
        remedies.append('recompute activations: model.backbone.with_cp=True')
    if largest:
        size = next((size for size in range(largest, largest // 2, -1) if batch % size == 0), largest)
        steps = -(-batch // size)
        update = figures['effective_batch'] // batch * size * steps
        longer = f' and {steps} times the iterations' if cfg.train_cfg.get('max_iters') else ''
        accumulated = f'train_dataloader.batch_size={size} optim_wrapper.accumulative_counts={steps * figures["accumulative_counts"]}'
        remedies.append(f'accumulate gradients: {accumulated}{longer} (effective batch {update})')
    elif figures['shards'] == 1 < figures['effective_batch'] // batch // figures['accumulative_counts']:
        remedies.append('share the model out over the GPUs: runner_type=FlexibleRunner strategy.type=mmcae.FSDP2Strategy')
    return f'{"" if largest else ", not one image"}; {", or ".join(remedies) or "take larger GPUs or a smaller model"}'


def can_recompute(cfg) -> bool:
    """Whether the encoder could recompute its activations, and does not."""
    import inspect

    from mmengine.registry import MODELS

    backbone = cfg.model.get('backbone') or {}
    return bool(backbone) and not backbone.get('with_cp') and 'with_cp' in inspect.signature(MODELS.get(backbone.type)).parameters


def gigabytes(size: float) -> str:
    """Bytes as text, in 10^9."""
    return f'{shown(size / 1e9, 2)} GB'


def shown(number: float, decimals: int | None = None) -> str:
    """A number as text, with so many decimals (by default one below 10), or up to three where they would all be zeros."""
    decimals = int(number < 10) if decimals is None else decimals
    if 0 < number < 10**-decimals:
        decimals = min(-math.floor(math.log10(number)), 3)
    return f'{number:,.{decimals}f}'
