"""Packaged configs: found by name, listed, shown, copied to where they still work."""

import pytest

from mmcae.commands.main import main
from mmcae.utils.configs.loading import load_config, read_config
from mmcae.utils.errors import ConfigError
from mmcae.utils.packaged import CONFIGS, find_config, packaged_configs

NAME = 'custom/cae_vit-small_folder'


def test_names_of_packaged_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = CONFIGS / f'{NAME}.py'
    for name in (NAME, f'{NAME}.py', f'configs/{NAME}.py', 'cae_vit-small_folder', 'cae/cae_vit-small_folder', path):
        assert find_config(name) == path
    assert set(packaged_configs().values()) == {path for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_'}


def test_a_file_comes_before_a_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'custom').mkdir()
    (tmp_path / f'{NAME}.py').write_text('model = dict(type="mine")')
    assert read_config(NAME).model.type == 'mine'


@pytest.mark.parametrize('name', ['nowhere/cae_vit-small_folder', 'cae_vit-small_foldr', 'custom', ''])
def test_other_names_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='There is no config'):
        find_config(name)


def test_list(capsys):
    main(['configs', 'list'])
    assert capsys.readouterr().out.splitlines() == list(packaged_configs())
    main(['configs', 'list', 'upernet'])
    names = capsys.readouterr().out.splitlines()
    assert names and all('upernet' in name for name in names)


def test_show(capsys):
    main(['configs', 'show', NAME, 'max_epochs=7'])
    assert 'max_epochs = 7' in capsys.readouterr().out


# One of each folder.
@pytest.mark.parametrize('name', {name.split('/')[0]: name for name in packaged_configs()}.values())
def test_copies_are_the_same_configs(name, tmp_path, capsys):
    main(['configs', 'copy', name, str(tmp_path)])
    copy = tmp_path / f'{name.split("/")[1]}.py'
    assert load_config(copy).to_dict() == load_config(name).to_dict()


def test_a_copy_overwrites_only_when_asked_to(tmp_path, capsys):
    target = tmp_path / 'mine.py'
    target.write_text('mine = 1')
    with pytest.raises(SystemExit):
        main(['configs', 'copy', NAME, str(target)])
    assert target.read_text() == 'mine = 1' and '--overwrite' in capsys.readouterr().err
    main(['configs', 'copy', NAME, str(target), '--overwrite'])
    assert load_config(target).to_dict() == load_config(NAME).to_dict()


@pytest.mark.parametrize('arguments', [['show'], ['copy'], ['copy', NAME, 'a.py', 'b.py'], ['list', 'a', 'b'], ['list', 'nothing-like-it']])
def test_arguments_that_cannot_be(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['configs', *arguments])
    assert stop.value.code == 2
