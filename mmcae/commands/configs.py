"""The configs that come with mmcae: list them, show one with all it is based on, or copy one to change it.

mmcae configs list
mmcae configs list upernet                             # those with this in their name
mmcae configs show cae/cae_vit-small_folder            # every setting, bases and changes included
mmcae configs show cae/cae_vit-small_folder data_root=/images max_epochs=100
mmcae configs copy cae/cae_vit-small_folder mine.py    # its bases stay in mmcae: train it by `mmcae train mine.py`
mmcae configs for CHECKPOINT detection > mine.py       # a config that trains this task on this very encoder
"""

import contextlib
import sys
from pathlib import Path


def add_arguments(parser):
    parser.add_argument('action', nargs='?', default='list', choices=['list', 'show', 'copy', 'for'], help='what to do (default: list)')
    parser.add_argument('name', nargs='?', help='of a config; of `list`: a part of the names; of `for`: a checkpoint')
    parser.add_argument(
        'rest', nargs='*', default=[], metavar='FILE | KEY=VALUE | TASK', help='of `copy`: where to; of `show`: changes; of `for`: tasks'
    )
    parser.add_argument('--overwrite', action='store_true', help='copy over a file that exists')


def check(args, parser):
    if args.name is None and args.action != 'list':
        parser.error(f'{args.action} needs the name of a {"checkpoint" if args.action == "for" else "config; `list` shows them"}')
    if (args.action == 'list' and args.rest) or (args.action == 'copy' and len(args.rest) > 1):
        parser.error(f'{args.action} has too many arguments')


def run(args):
    {'list': list_configs, 'show': show, 'copy': copy, 'for': print_snippets}[args.action](args)


def list_configs(args):
    from ..utils.errors import ConfigError, nearest
    from ..utils.packaged import packaged_configs

    known = packaged_configs()
    names = [name for name in known if args.name is None or args.name in name]
    if not names:
        raise ConfigError(
            f'No config has {args.name!r} in its name{nearest(args.name, {part for name in known for part in name.split("/")})}'
        )
    print('\n'.join(names))


def show(args):
    from ..utils.configs.loading import load_config

    print(load_config(args.name, args.rest).pretty_text)


def copy(args):
    from ..utils.errors import ConfigError
    from ..utils.files import write_file
    from ..utils.packaged import find_config, standalone
    from .arguments import check_output

    source = find_config(args.name)
    target = Path(args.rest[0] if args.rest else source.name)
    target = target / source.name if target.is_dir() else target
    check_output(target, 'FILE', ('.py',))
    if target.exists() and not args.overwrite:
        raise ConfigError(f'{target} exists: give another name, or --overwrite')
    write_file(target, standalone(source))
    print(f'Wrote {target}, which builds on the configs of mmcae. Train it by: mmcae train {target}')


def print_snippets(args):
    from ..apis import load_encoder
    from ..utils.errors import ConfigError, nearest
    from .snippets import RECIPES, snippet

    for task in args.rest:
        if task not in RECIPES:
            raise ConfigError(f'There are no configs for {task!r}' + (nearest(task, RECIPES) or f'; there are {", ".join(RECIPES)}'))
    with contextlib.redirect_stdout(sys.stderr):  # what is printed is a config, without the report of loading
        spec = load_encoder(args.name).spec
    print('\n'.join(snippet(task, spec, Path(args.name).absolute()) for task in args.rest or RECIPES), end='')
