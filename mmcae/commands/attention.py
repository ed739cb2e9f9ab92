"""Show where an encoder looks: the attention of its cls token to the patches of images, for each head.

mmcae attention CHECKPOINT IMAGE [IMAGE ...] --out attention.png
"""


def add_arguments(parser):
    parser.add_argument('checkpoint', help='any checkpoint with an encoder: of mmcae, the authors, mmpretrain, or a released ViT')
    parser.add_argument('images', nargs='+', help='image files of any sizes')
    parser.add_argument('--out', default='attention.png', help='the sheet to write (default: %(default)s)')
    parser.add_argument('--block', type=int, default=-1, help='block, from 0 or from the last backwards (default: %(default)s)')
    parser.add_argument('--img-size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help="default: the encoder's")
    parser.add_argument('--num-heads', type=int, help="default: as the checkpoint's own config says, else heads 64 wide")


def run(args):
    from ..apis import load_encoder_and_view
    from ..apis.images import load_image
    from ..visualization.attention import attention_maps, attention_sheet
    from ..visualization.sheet import save_picture
    from .arguments import PICTURES, check_arguments

    check_arguments(args, at_least=dict(img_size=1, num_heads=1), outputs=dict(out=PICTURES))
    encoder, view = load_encoder_and_view(args.checkpoint, tuple(args.img_size or ()) or None, crop=1.0, num_heads=args.num_heads)
    cuts = [view.cut(load_image(image, view.channels)) for image in args.images]
    maps = attention_maps(encoder, view.normalize(cuts), args.block)
    save_picture(attention_sheet(cuts, maps.numpy()), args.out)
