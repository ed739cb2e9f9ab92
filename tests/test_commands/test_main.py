"""The command `mmcae`: its help, its commands by name, and what an unknown name is told."""

import subprocess
import sys
from functools import partial
from importlib import import_module

import pytest
import torch

from mmcae.commands.main import COMMANDS, as_option, main, make_parser
from mmcae.utils.errors import argument, spelled_by

MMCAE = 'mmcae/__main__.py'
# Asks for the help of all commands in one process, which would show what any of them has imported.
HELP = """
import sys
sys.orig_argv[1:] = ['mmcae']
from mmcae.commands.main import COMMANDS, main
for name in ['', *COMMANDS]:
    try:
        main([name, '--help'][not name:])
    except SystemExit as stop:
        assert not stop.code, name
slow = {'torch', 'mmengine', 'numpy'} & set(sys.modules)
assert not slow, slow
"""


def refused(capsys, *arguments):
    """The last line that a call is refused with."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_help_of_everything_waits_for_no_library():
    done = subprocess.run([sys.executable, '-c', HELP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f'\n    {name}' in done.stdout for name in COMMANDS)
    assert 'usage: mmcae train' in done.stdout and 'mmcae train cae/cae_vit-small_folder' in done.stdout


@pytest.mark.parametrize('name', [name for name in COMMANDS if name != 'demo'])
def test_every_command_is_a_module_with_examples(name):
    module = import_module(f'mmcae.commands.{name}')
    text = make_parser(module, f'mmcae {name}').format_help()
    assert f'mmcae {name}' in module.__doc__ and module.__doc__.splitlines()[0] in text


def test_an_unknown_command(capsys):
    assert refused(capsys, 'trian').startswith("error: mmcae has no command 'trian'; did you mean 'train'")
    assert 'there are train, ' in refused(capsys, 'xyzzy')


def test_version(capsys):
    import mmcae

    for word in ('--version', 'version'):
        main([word])
        assert capsys.readouterr().out == f'mmcae {mmcae.__version__}\n'


def test_help_is_a_command(capsys):
    main(['help'])
    assert 'usage: mmcae COMMAND' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(['help', 'embed'])
    assert not stop.value.code and 'usage: mmcae embed' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ('train', 'the following arguments are required: config (mmcae train --help shows all arguments)'),
        ('embed a b', 'the following arguments are required: --out (mmcae embed --help shows all arguments)'),
        ('embed a b --out c.npz --workdir 3', 'unrecognized arguments: --workdir 3; did you mean '),
        ('train a --workdir=b', "did you mean '--work-dir'?"),
        ('configs shwo', "invalid choice: 'shwo'"),
        ('export a b --to onx', "invalid choice: 'onx'"),
        ('export a b.onnx --to onnx --push me/x', '--push uploads the folders of timm and hf'),
    ],
)
def test_arguments_are_refused_in_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    output = capsys.readouterr()
    assert stop.value.code == 2 and not output.out
    assert output.err.startswith('error: ') and output.err.count('\n') == 1 and said in output.err


def test_configs_alone_lists_them(capsys):
    main(['configs'])
    assert 'custom/cae_vit-small_folder' in capsys.readouterr().out.splitlines()


def test_an_unknown_config(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, 'train', 'cae/cae_vit-smal_folder')
    assert "'custom/cae_vit-small_folder'" in line and str(tmp_path / 'cae') in line and 'configs' in line


def test_changes_stand_beside_the_config_or_behind_cfg_options(capsys):
    for arguments in (['max_epochs=x'], ['--cfg-options', 'max_epochs=x']):
        assert 'max_epochs=x' in refused(capsys, 'train', 'custom/cae_vit-small_folder', '--amp', *arguments)


@pytest.mark.parametrize('rank', ['--local-rank=1', '--local_rank=1'])
def test_the_rank_that_a_launcher_adds_is_accepted(capsys, rank):
    assert 'There is no config nothing' in refused(capsys, 'train', 'nothing', '--launcher', 'pytorch', rank)


def test_resume_swallows_no_change(capsys):
    line = refused(capsys, 'train', 'custom/cae_vit-small_folder', '--resume', 'max_epochs=x')
    assert 'max_epochs=x' in line


def test_module_and_tool_are_the_command(fork_tool, tmp_path):
    for tool, arguments in ((MMCAE, ['train']), ('tools/train.py', [])):
        code, output = fork_tool(tool, *arguments, 'nothing.py', cwd=tmp_path)
        assert code == 2 and f'There is no config nothing.py, neither in {tmp_path}' in output.splitlines()[-1]


@pytest.mark.parametrize(
    'words, remedy',
    [
        (('attention', 'HEADS', 'a.png'), 'encoder (48 wide), and tensors cannot: give --num-heads. '),
        (
            ('look', 'HEADS', '--images', 'a.png', '--num-heads', '4'),
            'regressor and decoder (48 wide), and tensors cannot: give --decoder-num-heads. ',
        ),
        (('look', 'HEADS', '--images', 'a.png', '--num-heads', '5'), 'num_heads=5 does not fit an encoder 48 wide'),
        (('convert', 'HEADS', 'out.pth', '--to', 'timm'), 'give --num-heads. '),
        (('convert', 'TWO', 'out.pth', '--to', 'encoder'), 'Choose one: give --prefix first.'),
        (('attention', 'TWO', 'a.png'), 'Choose one: give --prefix first. to mmcae convert, and what it writes to this command'),
        (('judge', 'SIZE', '--data', 'DATA'), 'or mmcae export --img-size HEIGHT WIDTH'),
    ],
)
def test_an_argument_that_is_missing_is_named_as_an_option(capsys, tiny_cae, tmp_path, monkeypatch, image_folder, words, remedy):
    """Of this command, or of one that writes files for it."""
    monkeypatch.chdir(tmp_path)
    state = tiny_cae().state_dict()
    encoder = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    contents = dict(
        HEADS=state,
        TWO={f'{side}.{name}': value for side in ('first', 'second') for name, value in encoder.items()},
        SIZE=encoder | dict(pos_embed=torch.randn(1, 9, 48)),
    )
    for name, content in contents.items():
        torch.save(content, f'{name}.pth')
    paths = dict(DATA=image_folder('data', ('a', 'b'), 4), **{name: f'{name}.pth' for name in contents})
    line = refused(capsys, *(str(paths.get(word, word)) for word in words))
    assert remedy in line, line


def test_commands_with_a_config_have_arguments_in_it():
    for command, name, spelled in [('train', 'prefix', "prefix='teacher.'"), ('evaluate', 'num_heads', '--num-heads teacher.')]:
        with spelled_by(partial(as_option, make_parser(import_module(f'mmcae.commands.{command}')))):
            assert argument(name, 'teacher.') == spelled
