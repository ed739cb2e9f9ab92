"""One page (HTML, one file) of what encoders make of images: patch features as colours, similarity to a clicked patch, attention.

    mmcae look CHECKPOINT --images IMAGE
    mmcae look cae=CHECKPOINT mae=CHECKPOINT --images IMAGE IMAGE --size 448 --out look.html
    mmcae look CHECKPOINT --configs CONFIG --images IMAGE

Colours are principal components, over all images and matched between encoders. Attention is that of the cls token, per head and block, and,
for checkpoints of CAE's pretraining, that of the regressor from masked patches to the patches that it reads them from. With the
config of its pretraining, a checkpoint reconstructs the images from several masks.
"""


def add_arguments(parser):
    parser.add_argument('encoders', nargs='+', metavar='ENCODER', help='CHECKPOINT, or NAME=CHECKPOINT')
    parser.add_argument('--images', nargs='+', required=True, metavar='IMAGE', help='image files of any sizes')
    parser.add_argument(
        '--configs', nargs='+', default=[], metavar='CONFIG', help='of pretrainings, for reconstructions; of several: NAME=CONFIG'
    )
    parser.add_argument('--size', type=int, metavar='PIXELS', help="of the longer side as it is encoded (default: the encoder's)")
    parser.add_argument(
        '--mask-ratio', type=float, default=0.5, help='share of patches hidden from pretraining models (default: %(default)s)'
    )
    parser.add_argument('--masks', type=int, default=3, help='of each image that is reconstructed (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    parser.add_argument('--num-heads', type=int, help='of encoders whose files do not tell')
    parser.add_argument('--decoder-num-heads', type=int, help='the same of their regressors')
    parser.add_argument('-o', '--out', default='look.html', help='the page to write (default: %(default)s)')


def run(args):
    from ..apis.look import load_shown, write_encoder_page
    from .arguments import check_arguments, named_encoders

    check_arguments(
        args,
        at_least=dict(size=1, seed=0, masks=1, num_heads=1, decoder_num_heads=1),
        shares=['mask_ratio'],
        outputs=dict(out=('.html', '.htm')),
    )
    paths = named_encoders(args.encoders)
    configs = named_configs(args.configs, paths)
    encoders = {name: load_shown(path, configs.get(name), args.num_heads, args.decoder_num_heads) for name, path in paths.items()}
    settings = dict(side=args.size, mask_ratio=args.mask_ratio, masks=args.masks, seed=args.seed)
    print(f'Wrote {write_encoder_page(encoders, args.images, args.out, **settings)}')


def named_configs(configs, encoders):
    """Configs by the names of encoders: `NAME=CONFIG`, or CONFIG where there is one encoder alone."""
    from ..utils.errors import ConfigError

    found = {}
    for text in configs:
        name, equals, path = text.partition('=')
        if not equals and len(encoders) == 1:
            (name,), path = encoders, text
        if name not in encoders or not path:
            raise ConfigError(f'--configs {text}: give NAME=CONFIG, with a name out of {", ".join(encoders)}')
        found[name] = path
    return found
