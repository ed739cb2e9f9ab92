"""Convert checkpoints between mmcae, the authors' CAE, mmpretrain and timm, and OpenAI's tokenizer into plain tensors.

    mmcae convert cae_base_1600e.pth cae.pth --to mmcae
    mmcae convert work_dirs/NAME/epoch_300.pth encoder.safetensors --to timm --pool avg
    mmcae convert encoder.pkl data/tokenizers/dalle_encoder.pth

The layout of SRC is recognised by its keys; any checkpoint of the known layouts will do, whole or with an encoder alone. DST gets the
tensors and a description of the encoder. Nothing in SRC is executed. docs/checkpoints.md has more.
"""

from pathlib import Path

TARGETS = {
    'mmcae': 'encoder, regressor and decoder under our names',
    'encoder': 'the encoder alone under our names, without prefix',
    'official': "the authors' names",
    'mmpretrain': "mmpretrain's names: for its CAE, or with the prefix `backbone.` for its BEiTViT",
    'timm': "the encoder under the names of timm's BEiT",
    'tokenizer': "a tokenizer: SRC is OpenAI's encoder.pkl or decoder.pkl, or mmpretrain's CAE with the tokenizer in it",
}
KINDS = ('mmcae', 'official', 'mmpretrain', 'encoder', 'mmpretrain-encoder', 'huggingface')


def add_arguments(parser):
    parser.add_argument('src', type=Path, metavar='SRC', help='a checkpoint: .pth, .safetensors, or .pkl of OpenAI')
    parser.add_argument('dst', type=Path, metavar='DST', help='what to write; .pth or .safetensors decides the format')
    targets = '; '.join(f'{name}: {text}' for name, text in TARGETS.items())
    parser.add_argument('--to', choices=TARGETS, help=f'{targets} (the default where SRC ends in .pkl)')
    parser.add_argument('--from', dest='kind', choices=KINDS, help='the layout of SRC, where its keys do not tell')
    parser.add_argument('--prefix', default='', help="which model of SRC, where it has several: what its names begin with, as 'teacher.'")
    parser.add_argument('--norm', help="which final norm of SRC, where it has two: 'norm' or 'fc_norm', 'ln1' or 'ln2'")
    parser.add_argument(
        '--pool',
        choices=('token', 'avg'),
        help="which features a classifier will take from timm's or mmpretrain's model, since their names of the norm depend on it: the cls "
        'token (token, the default) or the mean over the patches (avg)',
    )
    parser.add_argument('--num-heads', type=int, help='heads of the encoder, where SRC does not tell')
    parser.add_argument('--overwrite', '--force', action='store_true', help='replace DST')


def check(args, parser):
    if args.num_heads is not None and args.num_heads < 1:
        parser.error('--num-heads must be at least 1')
    if args.to is None and args.src.suffix != '.pkl':
        parser.error('the following arguments are required: --to')
    args.to = args.to or 'tokenizer'
    if args.pool and args.to not in ('timm', 'mmpretrain'):
        parser.error(f'--pool has no meaning with --to {args.to}')
    if args.to == 'tokenizer' and (args.num_heads or args.prefix or args.norm or args.kind):
        parser.error('--num-heads, --prefix, --norm and --from have no meaning with --to tokenizer')


def run(args):
    """Write DST and print a report."""
    from ..utils.errors import CheckpointError

    if args.dst.exists() and args.src.exists() and args.dst.samefile(args.src):
        raise CheckpointError(f'{args.dst} is SRC itself: give another name')
    if args.dst.exists() and not args.overwrite:
        raise CheckpointError(f'{args.dst} exists: give another name, or --overwrite to replace it')
    print('\n'.join((convert_tokenizer if args.to == 'tokenizer' else convert_cae)(args)))


def convert_cae(args):
    from ..checkpoints import metadata, read_weights, timm_arguments, to_mmpretrain, to_official, to_timm, write_state_dict
    from ..checkpoints.weights import unknown_heads
    from ..utils.errors import CheckpointError

    weights = read_weights(args.src, args.prefix, args.kind, args.norm)
    weights.check_norms()
    spec, cae, pool = weights.spec(args.num_heads), weights.cae, args.pool or 'token'
    if spec.type == 'TimmEncoder' and args.to not in ('mmcae', 'encoder'):
        raise CheckpointError(
            f'{args.src} holds a ViT of timm, for which the layout {args.to!r} has no names: mmcae export writes it for other tools'
        )
    if args.to == 'timm' and spec.num_heads is None:
        raise unknown_heads(weights.origin, 'encoder', spec.embed_dims, 'num_heads')
    make = dict(
        mmcae=lambda: cae,
        encoder=lambda: weights.encoder,
        official=lambda: to_official(cae),
        mmpretrain=lambda: to_mmpretrain(cae, pool),
        timm=lambda: to_timm(cae, pool),
    )
    converted = make[args.to]()
    whole = args.to in ('mmcae', 'official', 'mmpretrain') and pool == 'token'
    container = 'model' if args.to == 'official' else 'state_dict'
    write_state_dict(args.dst, converted, metadata(spec, weights.method if whole else None), container)

    parts = weights.left_out
    if not whole:
        parts.update(key.split('.')[0] for key in cae if not key.startswith('backbone.'))
    report = [f'{args.src}: {len(weights.place.state)} tensors, {weights.place.kind}', f'{args.dst}: {len(converted)} tensors, {args.to}']
    if parts:
        report.append('Left out: ' + ', '.join(f'{part} ({count})' for part, count in parts.items()))
    if spec.num_heads is None:
        report.append(f'The number of heads is not known, and whoever loads {args.dst} will be asked: --num-heads writes it down')
    if args.to == 'timm':
        arguments = timm_arguments(spec, pool)
        name, settings = arguments.pop('model_name'), dict(checkpoint_path=str(args.dst), **arguments)
        report.append(f'timm.create_model({name!r}, {", ".join(f"{key}={value!r}" for key, value in settings.items())})')
        report.append("Its images are normalised as in the pretraining; timm's own default for this name is another.")
    return report


def convert_tokenizer(args):
    from ..checkpoints import load_state, tokenizer_of, write_state_dict
    from ..checkpoints.modules import read_module
    from ..utils.errors import CheckpointError

    if args.src.suffix == '.pkl':
        tokenizer = read_module(args.src)
        report = [f"{args.src}: {len(tokenizer)} tensors, OpenAI's"]
    else:
        state = load_state(args.src)
        tokenizer = tokenizer_of(state)
        if not tokenizer:
            raise CheckpointError(f"{args.src} holds no tokenizer: it has to be mmpretrain's CAE, or OpenAI's file with a name in .pkl")
        report = [f'{args.src}: {len(state)} tensors', f'Left out: {len(state) - len(tokenizer)} tensors of other parts']
    write_state_dict(args.dst, tokenizer)
    return [*report[:1], f'{args.dst}: {len(tokenizer)} tensors, {args.to}', *report[1:]]
