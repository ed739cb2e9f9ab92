"""The protocols by which an encoder is judged, as commands to run and figures to read: the core of `mmcae evaluate`."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import compat
from ..apis import load_encoder
from ..checkpoints import EncoderSpec, metadata, write_state_dict
from ..registry import MODELS
from ..utils.configs.loading import last_checkpoint, load_config
from ..utils.errors import ConfigError, nearest
from ..utils.files import write_file
from ..utils.packaged import find_config
from .downstream import config_text
from .jobs import Job

OWN = ('mmcae', 'official', 'mmpretrain')  # layouts that models of these configs are tested from; others are written anew in ours
RANDOM = 'random'  # in the place of a checkpoint: an encoder as it is before any training
FEW = 'train_dataloader.dataset.labels'


@dataclass(frozen=True)
class Metric:
    """A figure of a test.

    Args:
        name: In results.json.
        key: In metrics.json.
        title: Of its column.
        perfect: The value of a perfect model in metrics.json.
    """

    name: str
    key: str
    title: str
    perfect: float = 100.0


def accuracy(prefix: str = '') -> tuple[Metric, ...]:
    """What classification is judged by."""
    return Metric('top1', f'{prefix}accuracy/top1', 'top-1'), Metric('top5', f'{prefix}accuracy/top5', 'top-5')


SEGMENTATION = (Metric('mIoU', 'mIoU', 'mIoU'), Metric('aAcc', 'aAcc', 'pixel accuracy'))
DETECTION = (Metric('box_mAP', 'coco/bbox_mAP', 'box mAP', 1.0), Metric('segm_mAP', 'coco/segm_mAP', 'mask mAP', 1.0))


@dataclass(frozen=True)
class Protocol:
    """One way to judge an encoder: train on it (or not), then test.

    Args:
        name: What a person calls it on the command line.
        title: What a person reads in the table.
        config: Below configs/.
        options: Changes of the config, as key=value.
        trained: Whether something is trained before the test.
        metrics: The main one, and others that are shown beside it.
        library: The import name of an optional library that it needs. Such protocols are run only when they are named.
    """

    name: str
    title: str
    config: str
    options: tuple[str, ...] = ()
    trained: bool = True
    metrics: tuple[Metric, ...] = accuracy()
    library: str = ''


def small(data: str) -> tuple[Protocol, ...]:
    """The protocols on the digits or on Fashion-MNIST."""
    names = ('knn', 'linear', 'attentive', 'finetune')
    knn, linear, attentive, finetune = (f'{data}/{name}_vit-{data}.py' for name in names)

    def dense(name: str, title: str, metrics: tuple[Metric, ...], library: str, trained: bool = True) -> Protocol:
        return Protocol(name, title, f'{data}/{name}_vit-{data}.py', (), trained, metrics, library)

    return (
        Protocol('knn', 'kNN, k = 10, 2,000 labels', knn, trained=False, metrics=accuracy('k10/')),
        Protocol('linear_500', 'linear probe, 500 labels', linear, (f'{FEW}=500',)),
        Protocol('linear', 'linear probe, 2,000 labels', linear),
        Protocol('attentive_500', 'attentive probe, 500 labels', attentive, (f'{FEW}=500',)),
        Protocol('attentive', 'attentive probe, 2,000 labels', attentive),
        Protocol('finetune_100', 'fine-tuning, 100 labels', finetune, (f'{FEW}=100',)),
        Protocol('finetune_500', 'fine-tuning, 500 labels', finetune, (f'{FEW}=500',)),
        dense('knn_segmentation', 'kNN segmentation, frozen', SEGMENTATION, 'mmseg', trained=False),
        dense('linear_segmentation', 'linear segmentation, frozen', SEGMENTATION, 'mmseg', trained=False),
        dense('upernet', 'UperNet', SEGMENTATION, 'mmseg'),
        dense('mask_rcnn', 'Mask R-CNN', DETECTION, 'mmdet'),
    )


DIGITS, FASHION = small('digits'), small('fashion')


def imagenet(size: str, finetune: str) -> tuple[Protocol, ...]:
    """The protocols of section 4.2 of the paper for one size of the encoder, and kNN."""
    return (
        Protocol('knn', 'kNN, k = 20', f'knn/knn_vit-{size}-p16_cae_in1k.py', trained=False, metrics=accuracy('k20/')),
        Protocol('linear', 'linear probe', f'linear_probe/linear_vit-{size}-p16_cae_32xb512-amp-90e_in1k.py'),
        Protocol('attentive', 'attentive probe', f'attentive_probe/attentive_vit-{size}-p16_cae_32xb256-amp-90e_in1k.py'),
        Protocol('finetune', 'fine-tuning', f'finetune/{finetune}'),
    )


# Recipes of a family, of which the one for the encoder that is nearest in size is taken; the configs are written for the very encoder.
FAMILIES = {
    'digits': (DIGITS,),
    'fashion': (FASHION,),
    'imagenet': (
        imagenet('base', 'finetune_vit-base-p16_cae_32xb128-amp-100e_in1k.py'),
        imagenet('large', 'finetune_vit-large-p16_cae_32xb64-accum2-amp-50e_in1k.py'),
    ),
}


def protocols_for(family: str, spec: EncoderSpec | None) -> tuple[Protocol, ...]:
    """All protocols of a family, by the recipe for encoders of about this size.

    Args:
        family: In :data:`FAMILIES`.
        spec: The encoder; None for the one of the first recipe.
    """
    if spec is None:
        return FAMILIES[family][0]

    def distance(recipe):
        theirs = spec_of(find_config(recipe[0].config))
        return abs(math.log(weights_of(theirs) / weights_of(spec)))

    return min(FAMILIES[family], key=distance)


def weights_of(spec: EncoderSpec) -> int:
    """About how many weights its blocks have."""
    return spec.num_layers * spec.embed_dims * (4 * spec.embed_dims + 2 * spec.feedforward_channels)


def spec_of(config: Path) -> EncoderSpec:
    """The encoder of a config, as it comes out of pretraining: without the bias tables of fine-tuning."""
    with torch.device('meta'):
        return build_backbone(config).spec


def build_backbone(config: Path) -> torch.nn.Module:
    """The encoder of a config, with random weights."""
    return MODELS.build(dict(load_config(config).model.backbone, init_cfg=None, use_rel_pos_bias=False))


def choose(protocols: Sequence[Protocol], names: Sequence[str] | None) -> list[Protocol]:
    """Those of the given names; where there are none, all that need no optional library.

    Raises:
        ConfigError: There is no protocol of such a name.
        DependencyError: A protocol needs a library that is not installed.
    """
    known = [protocol.name for protocol in protocols]
    for name in names or ():
        if name not in known:
            raise ConfigError(f'There is no protocol {name!r} here' + (nearest(name, known) or f'; there are {", ".join(known)}'))
    chosen = [protocol for protocol in protocols if (protocol.name in names if names else not protocol.library)]
    for library in {protocol.library for protocol in chosen} - {''}:
        compat.require(library)
    return chosen


def split_options(options: Sequence[str], protocols: Sequence[Protocol]) -> dict[str, tuple[str, ...]]:
    """Options by protocol: `key=value` is for all, `protocol:key=value` for one alone.

    Raises:
        ConfigError: An option for a protocol that is not run.
    """
    by_protocol = {protocol.name: () for protocol in protocols}
    for option in options:
        name, colon, rest = option.partition(':')
        only_one = colon and '=' not in name
        if only_one and name not in by_protocol:
            raise ConfigError(f'--cfg-options {option}: there is no protocol {name!r} here; there are {", ".join(by_protocol)}')
        for target in [name] if only_one else by_protocol:
            by_protocol[target] += (rest if only_one else option,)
    return by_protocol


def prepare_encoder(checkpoint: str, family: str, out: Path, seed: int, num_heads: int | None = None) -> tuple[str, EncoderSpec]:
    """Look at the encoder, and load it once, before hours are spent on it.

    Args:
        checkpoint: A file or a folder of any layout, or 'random' for an encoder of random weights, which is written to `out`, as is the
            encoder of a layout that only :func:`mmcae.apis.load_encoder` reads.
        family: Says which encoder a random one is.
        out: A folder.
        seed: Of the random weights.
        num_heads: Of the encoder, where its file does not tell.

    Returns:
        The checkpoint's path, and the encoder's spec.

    Raises:
        CheckpointError: It cannot be read, holds no encoder, or does not tell all of it.
    """
    if checkpoint == RANDOM:
        path = out / f'random_seed{seed}.pth'
        if not path.exists():  # a second run must not make the results of the first look outdated
            torch.manual_seed(seed)
            encoder = build_backbone(find_config(FAMILIES[family][0][0].config))
            write_state_dict(path, encoder.state_dict(), metadata(encoder.spec))
        checkpoint = str(path)
    encoder = load_encoder(checkpoint, num_heads)
    if Path(checkpoint).is_dir() or encoder.spec.origin.library not in OWN:
        path = out / f'encoder_{state_of(checkpoint)}.pth'
        if not path.exists():
            write_state_dict(path, encoder.state_dict(), metadata(encoder.spec))
        checkpoint = str(path)
    return checkpoint, encoder.spec


def state_of(checkpoint: str) -> str:
    """What tells one state of a file, or of a folder's files, from another."""
    files = sorted(Path(checkpoint).iterdir()) if Path(checkpoint).is_dir() else [Path(checkpoint)]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([os.path.abspath(checkpoint), stats]).encode()).hexdigest()[:12]


def write_configs(out: Path, protocols: Sequence[Protocol], spec: EncoderSpec, checkpoint: str) -> dict[str, str]:
    """A config for this encoder by each of the protocols, in `OUT/configs`.

    Returns:
        Paths by protocol.

    Raises:
        ConfigError: A protocol cannot be for images of the encoder's channels.
    """
    paths = {}
    for protocol in protocols:
        path, base = out / 'configs' / f'{protocol.name}.py', find_config(protocol.config)
        text = config_text(path, base, load_config(base), spec, checkpoint, f'{protocol.title} of {checkpoint}, by `mmcae evaluate`')
        write_file(path, text)
        paths[protocol.name] = os.path.relpath(path)
    return paths


def plan(
    out: Path,
    checkpoint: str,
    protocols: Sequence[Protocol],
    configs: Mapping[str, str],
    options: Mapping[str, Sequence[str]],
    processes: int = 1,
) -> list[Job]:
    """The commands that judge an encoder, as jobs: `NAME/train` where something is trained, and `NAME/test`.

    Args:
        out: The folder whose subfolders are the work dirs.
        checkpoint: The encoder's file.
        protocols: What to run.
        configs: Their configs, see :func:`write_configs`.
        options: Changes of the configs, by protocol.
        processes: How many processes each command has, one for each GPU.
    """
    file = Path(checkpoint).stat()
    jobs = []
    for protocol in protocols:
        config = configs[protocol.name]
        changes = (*protocol.options, *options[protocol.name])
        content = json.dumps([load_config(config, changes).to_dict(), file.st_size, file.st_mtime_ns], sort_keys=True, default=str)
        trained, needs = checkpoint, ()
        if protocol.trained:
            work_dir = out / protocol.name / 'train'
            command = (*mmcae('train', processes, config), '--work-dir', str(work_dir), *changes)
            jobs.append(Job(f'{protocol.name}/train', protocol.title, command, (), content))
            trained, needs = str(work_dir / last_checkpoint(load_config(config, changes))), (f'{protocol.name}/train',)
        command = (*mmcae('test', processes, config, trained), '--work-dir', str(out / protocol.name / 'test'), *changes)
        jobs.append(Job(f'{protocol.name}/test', f'{protocol.title}: test', command, needs, content))
    return jobs


def mmcae(name: str, processes: int, *arguments) -> tuple[str, ...]:
    """The beginning of a command of mmcae's, in one process or in several."""
    several = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)) if processes > 1 else ()
    return ('python', *several, '-m', 'mmcae', name, *map(str, arguments))


def read_figures(out: Path, protocols: Sequence[Protocol]) -> dict[str, dict[str, float]]:
    """`{protocol: {metric: fraction}}`, the main metric first, for all protocols whose test has been run."""
    figures = {}
    for protocol in protocols:
        path = out / protocol.name / 'test' / 'metrics.json'
        if path.exists():
            metrics = json.loads(path.read_text())
            figures[protocol.name] = {
                metric.name: round(metrics[metric.key] / metric.perfect, 6) for metric in protocol.metrics if metric.key in metrics
            }
    return figures


def table(figures: Mapping[str, Mapping[str, float]], protocols: Sequence[Protocol]) -> str:
    """The figures as a table in Markdown, in per cent, with a column for each metric that one of the protocols has."""
    protocols = [protocol for protocol in protocols if protocol.name in figures]
    columns = dict.fromkeys((metric.name, metric.title) for protocol in protocols for metric in protocol.metrics)
    lines = ['| protocol | ' + ' | '.join(title for _, title in columns) + ' |', '|---' * (1 + len(columns)) + '|']
    for protocol in protocols:
        found = figures[protocol.name]
        cells = [f'{100 * found[name]:.1f}' if name in found else '-' for name, _ in columns]
        lines.append(f'| {protocol.title} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)
