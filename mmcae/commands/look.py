"""One page (HTML, one file) of what encoders make of images: patch features as colours, similarity to a clicked patch, attention.

    mmcae look CHECKPOINT --images IMAGE
    mmcae look cae=CHECKPOINT mae=CHECKPOINT --images IMAGE IMAGE --size 448 --out look.html

Colours are principal components, over all images and matched between encoders. Attention is that of the cls token, per head and block, and,
for checkpoints of CAE's pretraining, that of the regressor from masked patches to the patches that it reads them from.
"""


def add_arguments(parser):
    parser.add_argument('encoders', nargs='+', metavar='ENCODER', help='CHECKPOINT, or NAME=CHECKPOINT')
    parser.add_argument('--images', nargs='+', required=True, metavar='IMAGE', help='image files of any sizes')
    parser.add_argument('--size', type=int, metavar='PIXELS', help="of the longer side as it is encoded (default: the encoder's)")
    parser.add_argument('--mask-ratio', type=float, default=0.5, help='share of patches hidden from the regressor (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    parser.add_argument('--num-heads', type=int, help='of encoders whose files do not tell')
    parser.add_argument('--decoder-num-heads', type=int, help='the same of their regressors')
    parser.add_argument('-o', '--out', default='look.html', help='the page to write (default: %(default)s)')


def run(args):
    from ..apis import load_cae, load_encoder_and_view
    from ..apis.look import write_encoder_page
    from ..checkpoints import read_weights
    from .arguments import check_arguments, named_encoders

    check_arguments(
        args, at_least=dict(size=1, seed=0, num_heads=1, decoder_num_heads=1), shares=['mask_ratio'], outputs=dict(out=('.html', '.htm'))
    )
    encoders, models = {}, {}
    settings = {} if args.num_heads is None else dict(num_heads=args.num_heads)
    for name, path in named_encoders(args.encoders).items():
        encoder, view = load_encoder_and_view(path, **settings)
        encoders[name] = encoder.eval(), view
        if 'regressor.mask_token' in read_weights(path).state:
            models[name] = load_cae(path, args.num_heads, args.decoder_num_heads).eval()
    page = write_encoder_page(encoders, args.images, args.out, args.size, models, args.mask_ratio, args.seed)
    print(f'Wrote {page}')
