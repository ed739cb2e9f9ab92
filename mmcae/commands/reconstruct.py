"""Show what a pretrained CAE makes of the masked part of images, drawn by its tokenizer.

    mmcae reconstruct CONFIG CHECKPOINT IMAGE [IMAGE ...] --out sheet.png
    mmcae reconstruct CONFIG CHECKPOINT IMAGE --masks 4

Each row: the image, what the model saw, its prediction, and what a perfect prediction would look like.
"""


def add_arguments(parser):
    parser.add_argument('config', help='the pretraining config; it names the tokenizer')
    parser.add_argument('checkpoint', help='a pretraining checkpoint')
    parser.add_argument('images', nargs='+', help='image files of any sizes')
    parser.add_argument('--out', default='reconstructions.png', help='the sheet to write (default: %(default)s)')
    parser.add_argument('--mask-ratio', type=float, default=0.5, help='share of the patches that is hidden (default: %(default)s)')
    parser.add_argument('--img-size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help='default: that of the config')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    parser.add_argument('--masks', type=int, default=1, help='of each image, a row for each (default: %(default)s)')
    parser.add_argument('--pairs', type=int, default=1, help='images beside each other in a row of the sheet (default: %(default)s)')


def run(args):
    from ..apis import load_pretrained, reconstruct
    from ..visualization.reconstruction import reconstruction_sheet
    from ..visualization.sheet import save_picture
    from .arguments import PICTURES, check_arguments

    check_arguments(args, at_least=dict(img_size=1, seed=0, masks=1, pairs=1), shares=['mask_ratio'], outputs=dict(out=PICTURES))
    model = load_pretrained(args.config, args.checkpoint)
    results = [
        reconstruct(model, image, args.mask_ratio, tuple(args.img_size or ()) or None, args.seed + number)
        for number, image in enumerate(image for image in args.images for _ in range(args.masks))
    ]
    save_picture(reconstruction_sheet(results, pairs=args.pairs), args.out)
    if results[0].accuracy is not None:
        share = sum(one.accuracy * one.mask.sum() for one in results) / sum(one.mask.sum() for one in results)
        print(f'{share:.1%} of the masked tokens were predicted right.')
