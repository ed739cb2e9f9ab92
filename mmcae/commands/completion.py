"""Print what makes a shell complete the commands and options of mmcae, and the names of its configs.

eval "$(mmcae completion bash)"        # in ~/.bashrc; `zsh` in ~/.zshrc
mmcae completion fish > ~/.config/fish/completions/mmcae.fish
"""

import argparse
import shlex

BASH = """\
_mmcae() {
    local cur=${COMP_WORDS[COMP_CWORD]} words configs=@CONFIGS@
    if (( COMP_CWORD == 1 )); then
        words=@COMMANDS@
    else
        case ${COMP_WORDS[1]} in
@CASES@
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _mmcae mmcae
"""
ZSH = 'autoload -U +X bashcompinit && bashcompinit\n' + BASH


def add_arguments(parser):
    parser.add_argument('shell', choices=['bash', 'zsh', 'fish'], help='whose language it is in')


def run(args):
    from ..utils.packaged import packaged_configs
    from .main import COMMANDS

    configs = ' '.join(packaged_configs())
    actions = {name: actions_of(name) for name in COMMANDS}
    if args.shell == 'fish':
        return print('\n'.join(fish(COMMANDS, actions, configs)))
    cases = []
    for name, own in actions.items():
        words = [option for action in own for option in action.option_strings]
        words += [str(choice) for action in own if not action.option_strings for choice in action.choices or ()]
        cases.append(f'            {name}) words="{" ".join(words)}{" $configs" if takes_config(own) else ""}" ;;')
    script = ZSH if args.shell == 'zsh' else BASH
    script = script.replace('@CONFIGS@', shlex.quote(configs))
    print(script.replace('@COMMANDS@', shlex.quote(' '.join(COMMANDS))).replace('@CASES@', '\n'.join(cases)), end='')


def actions_of(name):
    """The arguments of a command for people, as argparse keeps them; none for one that has a parser of its own."""
    from importlib import import_module

    from .main import make_parser

    module = import_module(f'mmcae.commands.{name}')
    actions = make_parser(module)._actions if hasattr(module, 'add_arguments') else []
    return [action for action in actions if action.help != argparse.SUPPRESS]


def takes_config(actions):
    """Whether one of a command's arguments is a config: they are called `config`, and `name` in `mmcae configs`."""
    return any(action.dest == 'config' or (action.dest == 'name' and not action.option_strings) for action in actions)


def fish(commands, actions, configs):
    """Lines for fish."""
    for name, text in commands.items():
        yield f'complete -c mmcae -n __fish_use_subcommand -f -a {name} -d {shlex.quote(text)}'
        here = f'complete -c mmcae -n "__fish_seen_subcommand_from {name}"'
        if takes_config(actions[name]):
            yield f'{here} -a {shlex.quote(configs)}'
        for action in actions[name]:
            for option in action.option_strings:
                if option.startswith('--'):
                    yield f'{here} -l {option[2:]} -d {shlex.quote((action.help or "").split(" (default")[0])}'
            if not action.option_strings and action.choices:
                yield f'{here} -f -a {shlex.quote(" ".join(map(str, action.choices)))}'
