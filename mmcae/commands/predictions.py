"""Draw what detection or segmentation models predict on the first test images, beside the truth, one column per checkpoint.

mmcae predictions CONFIG CHECKPOINT [CHECKPOINT ...] --out sheet.png
mmcae predictions CONFIG A.pth B.pth --names "from random weights" "from CAE"
"""


def add_arguments(parser):
    parser.add_argument('config', help='a detection or segmentation config')
    parser.add_argument('checkpoints', nargs='+', help="checkpoints of the config's model")
    parser.add_argument('--names', nargs='+', help='titles of the columns, one per checkpoint (default: the files)')
    parser.add_argument('--out', default='predictions.png', help='the sheet to write (default: %(default)s)')
    parser.add_argument('--count', type=int, default=6, help='number of images (default: %(default)s)')
    parser.add_argument('--min-score', type=float, default=0.5, help='detections below it are not drawn (default: %(default)s)')


def check(args, parser):
    args.names = args.names or args.checkpoints
    if len(set(args.names)) != len(args.checkpoints):
        parser.error(f'--names needs a different title for each of the {len(args.checkpoints)} checkpoints')


def run(args):
    from ..engine.launch import require_checkpoint
    from ..utils.configs.loading import load_config
    from ..visualization.predictions import prediction_sheet
    from ..visualization.sheet import save_picture
    from .arguments import PICTURES, check_arguments

    check_arguments(args, at_least=dict(count=1, min_score=0), outputs=dict(out=PICTURES))
    for checkpoint in args.checkpoints:
        require_checkpoint(checkpoint)
    checkpoints = dict(zip(args.names, args.checkpoints, strict=True))
    save_picture(prediction_sheet(load_config(args.config), checkpoints, args.count, min_score=args.min_score), args.out)
