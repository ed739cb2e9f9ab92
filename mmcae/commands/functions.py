"""The commands for scripts and notebooks: `mmcae.train`, `mmcae.embed` and `mmcae.load_encoder`."""

from pathlib import Path

from ..apis import embed
from ..apis.features import load_encoder_and_view
from .main import make_parser

__all__ = ['embed', 'load_encoder', 'train']


def train(config, work_dir=None, resume=None, amp=False, auto_scale_lr=False, no_validate=False, settings=None, **variables):
    """Train as a config says: what `mmcae train` does.

    Args:
        config (str | Path): A config file, or the name of one that comes with mmcae.
        work_dir (str | Path, optional): Where checkpoints and logs go. Defaults to work_dirs/NAME_OF_THE_CONFIG.
        resume (str | Path | bool, optional): A checkpoint to go on from, or True for the newest in the work dir.
        amp (bool): Mixed precision.
        auto_scale_lr (bool): Scale the config's lr by the batch.
        no_validate (bool): No evaluation while training.
        settings (dict, optional): Changes by dotted keys, such as `{'train_dataloader.batch_size': 32}`.
        **variables: Changes of what needs no dots, such as `data_root='images'`.

    Returns:
        Path: The last checkpoint.

    Raises:
        InputError: Of :mod:`mmcae.utils.errors`; the message says what is wrong and what to do.
    """
    from . import train as command

    changes = [
        f'{key}={value if isinstance(value, str | Path) else repr(value)}' for key, value in {**(settings or {}), **variables}.items()
    ]
    args = make_parser(command).parse_args([str(config)])
    args.changes, args.work_dir = changes, None if work_dir is None else str(work_dir)
    args.amp, args.auto_scale_lr, args.no_validate = amp, auto_scale_lr, no_validate
    args.resume = 'auto' if resume is True else str(resume) if resume else None
    return command.run(args)


def load_encoder(source, **settings):
    """An encoder, and the transform of the images that it expects.

    Args:
        source (str | Path | Mapping): A checkpoint of mmcae, the authors, mmpretrain, or a released ViT.
        **settings: `img_size`, `mean`, `std` and `crop` of :func:`mmcae.apis.extract_features`; the rest are arguments of
            :func:`mmcae.apis.load_encoder`.

    Returns:
        tuple[CAEViT, View]: The encoder in eval mode, whose `spec` describes it; and what makes a float32 tensor (C, h, w) of an image,
        which is a file's name, a PIL image or an array. Both go to other processes by pickling.

    Raises:
        CheckpointError: See :func:`mmcae.apis.load_encoder`.
    """
    return load_encoder_and_view(source, **settings)
