"""Convert checkpoints between mmcae, the authors' CAE, mmpretrain and timm, and OpenAI's tokenizer into plain tensors.

    python tools/model_converters/convert.py cae_base_1600e.pth cae.pth --to mmcae
    python tools/model_converters/convert.py work_dirs/NAME/epoch_300.pth encoder.safetensors --to timm --pool avg
    python tools/model_converters/convert.py encoder.pkl data/tokenizers/dalle_encoder.pth

The layout of SRC is recognised by its keys; any checkpoint of the known layouts will do, whole or with an encoder alone. DST gets tensors
only. Nothing in SRC is executed. docs/checkpoints.md has more.
"""

import argparse
from collections import Counter
from pathlib import Path

TARGETS = {
    'mmcae': 'encoder, regressor and decoder under our names',
    'encoder': 'the encoder alone under our names, without prefix',
    'official': "the authors' names",
    'mmpretrain': "mmpretrain's names: for its CAE, or with the prefix `backbone.` for its BEiTViT",
    'timm': "the encoder under the names of timm's BEiT",
    'tokenizer': "a tokenizer: SRC is OpenAI's encoder.pkl or decoder.pkl, or mmpretrain's CAE with the tokenizer in it",
}
KINDS = ('mmcae', 'official', 'mmpretrain', 'encoder', 'mmpretrain-encoder')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, metavar='SRC', help='a checkpoint: .pth, .safetensors, or .pkl of OpenAI')
    parser.add_argument('dst', type=Path, metavar='DST', help='what to write; .pth or .safetensors decides the format')
    targets = '; '.join(f'{name}: {text}' for name, text in TARGETS.items())
    parser.add_argument('--to', choices=TARGETS, help=f'{targets} (the default where SRC ends in .pkl)')
    parser.add_argument('--from', dest='kind', choices=KINDS, help='the layout of SRC, where its keys do not tell')
    parser.add_argument(
        '--pool',
        choices=('token', 'avg'),
        help="which features a classifier will take from timm's or mmpretrain's model, since their names of the norm depend on it: the cls "
        'token (token, the default) or the mean over the patches (avg)',
    )
    parser.add_argument('--num-heads', type=int, help="heads of the encoder, for timm's arguments, where SRC has no config that tells")
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    args = parser.parse_args()
    if args.num_heads is not None and args.num_heads < 1:
        parser.error('--num-heads must be at least 1')
    if args.to is None and args.src.suffix != '.pkl':
        parser.error('the following arguments are required: --to')
    args.to = args.to or 'tokenizer'
    if args.pool and args.to not in ('timm', 'mmpretrain'):
        parser.error(f'--pool has no meaning with --to {args.to}')
    if args.num_heads and args.to != 'timm':
        parser.error(f'--num-heads has no meaning with --to {args.to}')
    return args


def main():
    args = parse_args()
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        print(convert(args))


def convert(args):
    """Write DST; returns the report."""
    from mmcae.checkpoints import write_state_dict
    from mmcae.utils.errors import CheckpointError

    if args.dst.exists() and args.src.exists() and args.dst.samefile(args.src):
        raise CheckpointError(f'{args.dst} is SRC itself: give another name')
    if args.dst.exists() and not args.force:
        raise CheckpointError(f'{args.dst} exists: give another name, or --force to overwrite it')
    converted, report = (convert_tokenizer if args.to == 'tokenizer' else convert_cae)(args)
    write_state_dict(args.dst, converted)
    return '\n'.join([*report[:1], f'{args.dst}: {len(converted)} tensors, {args.to}', *report[1:]])


def convert_cae(args):
    from mmcae.apis.load import config_of, timm_arguments
    from mmcae.checkpoints import (
        cae_of,
        detect_kind,
        encoder_of,
        left_out,
        load_state,
        read_checkpoint,
        to_mmcae,
        to_mmpretrain,
        to_official,
        to_timm,
    )

    content = read_checkpoint(args.src)
    state = load_state(content, args.src)
    kind = args.kind or detect_kind(state, args.src)
    ours = cae_of(to_mmcae(state, kind))
    pool = args.pool or 'token'
    if args.to == 'mmcae':
        converted = ours
    elif args.to == 'official':
        converted = to_official(ours)
    elif args.to == 'mmpretrain':
        converted = to_mmpretrain(ours, pool)
    else:
        converted = encoder_of(ours) if args.to == 'encoder' else to_timm(ours, pool)
    unused = [key for key in ours if not key.startswith('backbone.')] if args.to in ('encoder', 'timm') or pool == 'avg' else []
    parts = Counter(key.split('.')[0] for key in [*left_out(state, kind), *unused])
    report = [f'{args.src}: {len(state)} tensors, {kind}']
    if parts:
        report.append('Left out: ' + ', '.join(f'{part} ({count})' for part, count in parts.items()))
    if args.to == 'timm':
        arguments = timm_arguments(ours, args.num_heads or config_of(content).get('num_heads'), pool)
        name, settings = arguments.pop('model_name'), dict(checkpoint_path=str(args.dst), **arguments)
        report.append(f'timm.create_model({name!r}, {", ".join(f"{key}={value!r}" for key, value in settings.items())})')
        report.append("Its images are normalised as in the pretraining; timm's own default for this name is another.")
    return converted, report


def convert_tokenizer(args):
    from mmcae.checkpoints import load_state, tokenizer_of
    from mmcae.utils.errors import CheckpointError
    from mmcae.utils.safe_unpickle import read_openai_pickle

    if args.src.suffix == '.pkl':
        state = read_openai_pickle(args.src)
        return state, [f"{args.src}: {len(state)} tensors, OpenAI's"]
    state = load_state(args.src)
    tokenizer = tokenizer_of(state)
    if not tokenizer:
        raise CheckpointError(f"{args.src} holds no tokenizer: it has to be mmpretrain's CAE, or OpenAI's file with a name in .pkl")
    return tokenizer, [f'{args.src}: {len(state)} tensors', f'Left out: {len(state) - len(tokenizer)} tensors of other parts']


if __name__ == '__main__':
    main()
