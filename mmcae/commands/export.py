"""Export an encoder to timm, Hugging Face, ONNX, LW-DETR, PanDerm or Meta's DINO.

    mmcae export work_dirs/NAME/epoch_300.pth encoder_timm --to timm
    mmcae export CHECKPOINT encoder_hf --to hf
    mmcae export CHECKPOINT encoder_hf --to hf --push USER/NAME        # upload the folder, where you are logged in
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
FOLDERS = ('timm', 'hf')


def add_arguments(parser):
    parser.add_argument('encoder', help='a checkpoint with an encoder, or a folder of a released model')
    parser.add_argument('out', type=Path, metavar='OUT', help='the folder or file to write')
    parser.add_argument('--to', required=True, choices=TARGETS, help='; '.join(f'{name}: {text}' for name, text in TARGETS.items()))
    parser.add_argument(
        '--prefix', default='', help="which encoder, where the checkpoint has several: what its names begin with, as 'teacher.'"
    )
    parser.add_argument('--norm', help="which final norm, where the checkpoint has two: 'norm' or 'fc_norm'")
    parser.add_argument('--model-name', metavar='NAME', help="of the encoder in timm, where its file does not tell, such as CLIP's")
    parser.add_argument('--num-heads', type=int, help='of the encoder, where its file does not tell')
    parser.add_argument(
        '--img-size', type=int, nargs='+', metavar='PIXELS', help="one number, or height and width (default: the encoder's)"
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    parser.add_argument(
        '--push', metavar='USER/NAME', help='upload OUT, of timm or hf, to this repository of the Hugging Face Hub; a new one is private'
    )


def check(args, parser):
    if args.img_size is not None and len(args.img_size) > 2:
        parser.error('--img-size takes one or two numbers')
    if args.push and args.to not in FOLDERS:
        parser.error(f'--push uploads the folders of {" and ".join(FOLDERS)}, not what --to {args.to} writes')


def run(args):
    """Write OUT and print how it is read."""
    from ..apis import load_encoder
    from ..checkpoints.formats import check_output, export_encoder

    check_output(args.out, args.to, args.overwrite)  # before a large file is read
    hub = hub_of_user() if args.push else None
    size = args.img_size and (args.img_size[0] if len(args.img_size) == 1 else tuple(args.img_size))
    settings = {name: value for name, value in dict(img_size=size, model_name=args.model_name).items() if value is not None}
    encoder = load_encoder(args.encoder, args.num_heads, args.prefix, args.norm, **settings)
    report = export_encoder(encoder, args.out, args.to, args.overwrite)
    print('\n'.join([f'{args.out}: {args.to}, {encoder.num_layers} blocks, {encoder.embed_dims} wide', *report]))
    if hub:
        hub.create_repo(args.push, private=True, exist_ok=True)
        print(f'Uploaded to {hub.upload_folder(repo_id=args.push, folder_path=args.out, commit_message="Encoder exported by mmcae")}')


def hub_of_user():
    """The Hugging Face Hub, if the user is logged in and it can be reached.

    Raises:
        ConfigError: Neither a login nor a token, or one that the hub refuses.
    """
    from huggingface_hub import HfApi

    from ..checkpoints import first_sentence
    from ..utils.errors import ConfigError

    hub = HfApi()
    try:
        hub.whoami()
    except Exception as error:  # of many kinds: no token, a refused one, no network
        raise ConfigError(
            f'--push needs a login at the Hugging Face Hub (hf auth login, or HF_TOKEN): {first_sentence(str(error))}'
        ) from error
    return hub
