"""Export an encoder to timm, Hugging Face, ONNX, LW-DETR, PanDerm or Meta's DINO.

    mmcae export work_dirs/NAME/epoch_300.pth encoder_timm --to timm
    mmcae export CHECKPOINT encoder_hf --to hf
    mmcae export CHECKPOINT encoder.onnx --to onnx
    mmcae export CHECKPOINT encoder.pth --to lw-detr

ENCODER is any checkpoint with an encoder, or a folder of Hugging Face's. OUT is a folder for timm and hf, a file for the others. The last
lines that are printed say how the other tool reads it. docs/adapt.md has more; mmcae convert changes layouts of whole CAE checkpoints.
"""

from pathlib import Path

TARGETS = {
    'timm': "a folder for timm.create_model('local-dir:OUT', pretrained=True)",
    'hf': "a folder for transformers.AutoModel.from_pretrained('OUT'), with image processor and model card",
    'onnx': 'all tokens after the final norm, for any batch and image size',
    'lw-detr': "a file for LW-DETR's --pretrained_encoder",
    'panderm': "a file for PanDerm's --pretrained_checkpoint",
    'meta': "the names of Meta's DINOv2 or DINOv3, for an encoder that came so",
}


def add_arguments(parser):
    parser.add_argument('encoder', help='a checkpoint with an encoder, or a folder of a released model')
    parser.add_argument('out', type=Path, metavar='OUT', help='the folder or file to write')
    parser.add_argument('--to', required=True, choices=TARGETS, help='; '.join(f'{name}: {text}' for name, text in TARGETS.items()))
    parser.add_argument(
        '--prefix', default='', help="which encoder, where the checkpoint has several: what its names begin with, as 'teacher.'"
    )
    parser.add_argument('--norm', help="which final norm, where the checkpoint has two: 'norm' or 'fc_norm'")
    parser.add_argument('--num-heads', type=int, help='of the encoder, where its file does not tell')
    parser.add_argument(
        '--img-size', type=int, nargs='+', metavar='PIXELS', help="one number, or height and width (default: the encoder's)"
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')


def check(args, parser):
    if args.img_size is not None and len(args.img_size) > 2:
        parser.error('--img-size takes one or two numbers')


def run(args):
    """Write OUT and print how it is read."""
    from ..apis import load_encoder
    from ..checkpoints.formats import check_output, export_encoder

    check_output(args.out, args.to, args.overwrite)  # before a large file is read
    size = args.img_size and (args.img_size[0] if len(args.img_size) == 1 else tuple(args.img_size))
    settings = {} if size is None else dict(img_size=size)
    encoder = load_encoder(args.encoder, args.num_heads, args.prefix, args.norm, **settings)
    report = export_encoder(encoder, args.out, args.to, args.overwrite)
    print('\n'.join([f'{args.out}: {args.to}, {encoder.num_layers} blocks, {encoder.embed_dims} wide', *report]))
