"""Draw a few random views of every image and store their tokens, so that a pretraining needs no tokenizer; resumable.

    mmcae tokens cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k data/imagenet_tokens
    mmcae train cae/cae_vit-base-p16_stored-tokens_32xb64-amp-coslr-300e_in1k

CONFIG is a pretraining whose targets are tokens: it names the images, the views and the tokenizer. What it changes and saves:
docs/tokenizers.md.
"""

import os
from pathlib import Path

from .arguments import add_changes

WHERE = ('checkpoint', 'init_cfg')  # of a tokenizer's settings those that tell where its weights lie, not which they are
INTERRUPTED = 'Interrupted. The same command goes on from here.'


def add_arguments(parser):
    parser.add_argument('config', help='of a pretraining')
    parser.add_argument('folder', type=Path, help='to write')
    parser.add_argument('--views', type=int, default=8, help='of each image (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='other views (default: %(default)s)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='where the tokenizer computes (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=16, help='images at a time, with all their views (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes that read images (default: %(default)s)')
    add_changes(parser)


def check(args, parser):
    if min(args.views, args.batch_size) < 1 or min(args.workers, args.seed) < 0:
        parser.error('--views and --batch-size must be at least 1, --workers and --seed must not be negative')


def run(args):
    from mmengine.registry import init_default_scope

    from .. import compat
    from ..checkpoints import weights_checksum
    from ..datasets import check_data
    from ..datasets.sources.store_tokens import UNREADABLE, RandomViews, fill
    from ..datasets.sources.token_store import Manifest
    from ..models.targets.base import Tokenizer
    from ..registry import DATASETS, MODELS
    from ..utils.configs.loading import load_config
    from ..utils.errors import ConfigError, DataError
    from .arguments import device_of

    compat.import_mmpretrain()
    init_default_scope('mmpretrain')
    cfg = load_config(args.config, [*args.changes, *args.cfg_options])
    if not cfg.model.get('target_generator'):
        raise ConfigError(f'{args.config} describes no pretraining with a tokenizer: it has no model.target_generator')
    tokenizer = MODELS.build(cfg.model.target_generator)
    if not isinstance(tokenizer, Tokenizer) or tokenizer.vocab_size > 2**16:
        raise ConfigError(
            f'{args.config}: the targets of {type(tokenizer).__name__} are not up to {2**16:,} tokens, which are what is stored'
        )
    check_data(cfg)
    device = device_of(args.device)
    tokenizer, preprocessor = tokenizer.to(device).eval(), MODELS.build(cfg.data_preprocessor).to(device)
    tokenizer.check_preprocessor(preprocessor)

    def tokenize(images):
        return tokenizer.tokenize(preprocessor(dict(inputs=[images, images], data_samples=[]), False)['inputs'][1])

    views = RandomViews(DATASETS.build(cfg.train_dataloader.dataset), args.views, args.seed)
    grid = tokenizer.token_grid(views.draw[-1].second_size)
    settings = dict(
        files=views.names(),
        loading=repr(views.dataset.pipeline.transforms[0]),
        transforms=[repr(step) for step in views.draw],
        seed=args.seed,
        normalisation=[getattr(preprocessor, f'second_{name}').flatten().tolist() for name in ('mean', 'std')],
        tokenizer={name: repr(value) for name, value in cfg.model.target_generator.to_dict().items() if name not in WHERE},
        weights=weights_checksum(tokenizer.state_dict()),
    )
    manifest = fill(
        args.folder, Manifest(len(views), args.views, grid, tokenizer.vocab_size, settings), views, tokenize, args.batch_size, args.workers
    )
    if manifest.unreadable == manifest.images:
        raise DataError(f'None of the {manifest.images:,} images can be read: {args.folder / UNREADABLE} says why')
    left_out = f'; {manifest.unreadable:,} images cannot be read ({args.folder / UNREADABLE})' if manifest.unreadable else ''
    tokens = f'{grid[0]}x{grid[1]} of {manifest.vocab_size:,} tokens each'
    print(f'{args.folder}: {manifest.views} views of {manifest.images:,} images, {tokens}{left_out}')
