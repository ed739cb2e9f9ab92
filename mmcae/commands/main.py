"""The command `mmcae`, and how each command is run."""

import argparse
import re
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from ..utils.errors import REFUSED, as_keyword, nearest, one_line_errors, spelled_by
from ..utils.output import discard
from ..version import __version__

# Name -> what it does; the module of that name in this folder has the rest.
COMMANDS = {
    'train': 'train what a config describes: pretraining, classification, detection, segmentation',
    'plan': 'memory, batch, images a second, loader cores and hours of a training on GPUs, without one',
    'test': 'judge a checkpoint on the test set of a config',
    'embed': 'features of all images of a folder, in one file',
    'evaluate': 'judge an encoder by nearest neighbours, linear and attentive probing, fine-tuning',
    'judge': 'judge frozen encoders by all that the labels of a data set allow, in one table',
    'look': 'write one page of what encoders make of images: features as colours, similarity, attention',
    'attention': 'draw where an encoder looks',
    'reconstruct': 'draw what a pretrained model makes of masked images',
    'predictions': 'draw what detectors or segmentors predict, beside the truth',
    'curves': 'plot what training runs logged',
    'report': 'write one page about one or several work dirs',
    'export': 'export an encoder to timm, Hugging Face, ONNX, LW-DETR, PanDerm',
    'convert': 'convert a checkpoint from or to another library',
    'pack': 'pack a folder of images into few large files',
    'tokens': 'store the tokens of images, so that pretraining needs no tokenizer',
    'demo': 'the whole chain on handwritten digits, minutes on a CPU',
    'configs': 'list, show or copy the configs that come with mmcae',
    'completion': 'print what makes a shell complete the commands, options and configs of mmcae',
    'doctor': 'show what is installed, what is missing, and the remedy',
}
DESCRIPTION = """\
mmcae pretrains vision transformers on your images, judges them, and carries them into other tasks.

    mmcae train cae/cae_vit-small_folder data_root=FOLDER    # pretrain on the images below a folder
    mmcae embed CHECKPOINT FOLDER --out features.npz         # features of all images below a folder
    mmcae evaluate CHECKPOINT --config-family imagenet

Every command has --help with examples. Commands:
"""


def main(arguments=None):
    """The command `mmcae`.

    Args:
        arguments (list[str], optional): Those of the command line by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else '--help'
    if name == 'help' and len(arguments) > 1:
        name, arguments = arguments[1], [arguments[1], '--help']
    if name in ('-h', '--help', 'help'):
        width = max(map(len, COMMANDS))
        print('usage: mmcae COMMAND ...\n\n' + DESCRIPTION)
        print('\n'.join(f'    {command:{width}}  {text}' for command, text in COMMANDS.items()))
    elif name in ('--version', 'version'):
        print(f'mmcae {__version__}')
    elif name in COMMANDS:
        run_command(name, arguments[1:], f'mmcae {name}')
    else:
        others = nearest(name, COMMANDS) or f'; there are {", ".join(COMMANDS)}'
        print(f'error: mmcae has no command {name!r}{others}', file=sys.stderr)
        raise SystemExit(REFUSED)


def run_command(name, arguments=None, prog=None):
    """Run a command: read its arguments, then do its work. What cannot work ends with one line on stderr and exit code 2.

    Args:
        name (str): One of `COMMANDS`.
        arguments (list[str], optional): Those of the command line by default.
        prog (str, optional): What usage messages call the program; the script's name by default.
    """
    module = import_module(f'mmcae.commands.{name}')
    if hasattr(module, 'main'):  # it has a parser of its own
        return module.main(arguments)
    parser = make_parser(module, prog)
    args = parser.parse_intermixed_args(arguments)
    if hasattr(module, 'check'):
        module.check(args, parser)
    with one_line_errors(), spelled_by(partial(as_option, parser)):
        if find_spec('mmengine'):  # `doctor` has to run without
            import_module('mmcae.registry')
        try:
            module.run(args)
        except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
            discard(sys.stdout)
            sys.exit(1)
        except KeyboardInterrupt:
            if not hasattr(module, 'INTERRUPTED'):
                raise
            sys.exit(f'\n{module.INTERRUPTED}')


def as_option(parser, name, value=None):
    """An argument of mmcae's functions as an option of this command; where it has none, of one that writes files which this one reads.

    Commands with a config have the argument in it.
    """
    for command in (None,) if option_of(parser, 'cfg_options') else (None, 'convert', 'export'):
        option = option_of(make_parser(import_module(f'mmcae.commands.{command}')) if command else parser, name)
        if option:
            text = option if value is None else f'{option} {value}'
            return f'{text} to mmcae {command}, and what it writes to this command' if command else text
    return as_keyword(name, value)


def option_of(parser, name):
    """The option whose value is kept under a name, such as '--num-heads'."""
    return next((action.option_strings[0] for action in parser._actions if action.dest == name and action.option_strings), None)


class OneLineParser(argparse.ArgumentParser):
    """Refuses arguments in one line, as everything else is refused, without the usage in front of it."""

    def error(self, message):
        unknown = re.match('unrecognized arguments: (-[^ =]+)', message)
        hint = nearest(unknown[1], self._option_string_actions) if unknown else ''
        self.exit(REFUSED, f'error: {message}{hint} ({self.prog} --help shows all arguments)\n')


def make_parser(module, prog=None):
    """The parser of a command's module."""
    parser = OneLineParser(prog=prog, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    return parser
