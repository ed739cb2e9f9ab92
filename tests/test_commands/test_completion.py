"""Shell completion, as bash does it."""

import shutil
import subprocess

import pytest

from mmcae.commands.main import COMMANDS, main

COMPLETE = '{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; _mmcae; printf "%s\\n" "${{COMPREPLY[@]}}"'


@pytest.fixture
def complete(capsys):
    """What bash offers for the last of the words."""
    main(['completion', 'bash'])
    script = capsys.readouterr().out

    def ask(*words):
        text = COMPLETE.format(script=script, words=' '.join(f'"{word}"' for word in words), last=len(words) - 1)
        done = subprocess.run(['bash', '-c', text], capture_output=True, text=True, check=True)
        return done.stdout.split()

    return ask


def test_commands_options_and_configs(complete):
    assert complete('mmcae', '') == list(COMMANDS)
    assert complete('mmcae', 'tr') == ['train']
    assert complete('mmcae', 'train', '--re') == ['--resume']
    assert complete('mmcae', 'train', 'custom/cae_vit-small_f') == ['custom/cae_vit-small_folder']
    assert complete('mmcae', 'configs', 'sh') == ['show']
    assert complete('mmcae', 'convert', 'custom/') == []


@pytest.mark.parametrize('shell', ['zsh', 'fish'])
def test_other_shells(shell, capsys):
    main(['completion', shell])
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, 'dry-run', 'custom/cae_vit-small_folder'))
    if shutil.which(shell):
        subprocess.run([shell, '-n'], input=script, text=True, check=True)
