"""Every command in README.md and docs/ is one that works: files, options, make targets and config changes in it exist.

Commands stand in blocks fenced as bash. Nothing long is run: options are looked up in the tool's --help, configs are loaded with the
changes the command makes. Words in capitals (CONFIG, CHECKPOINT, IMAGE) stand for what the reader puts there.
"""

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mmcae.commands.main import COMMANDS, make_parser
from mmcae.utils.configs.loading import last_checkpoint, load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('**/*.md'))]
# What a command may begin with besides our own tools; how to install system packages, fetch the repository, look at things.
OTHER_PROGRAMS = {'cd', 'git', 'source', 'apt-get', 'ls', 'cat', 'tensorboard', 'export', 'eval', 'docker', 'chromium', 'mim', 'python3'}
PLACEHOLDER = re.compile(r'[A-Z][A-Z_0-9]*')


def commands_of(text):
    """The commands in a document's bash blocks, continued lines joined, comments left out."""
    for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r'[A-Z_0-9]+=.*', words[0]):
                words.pop(0)  # environment variables
            if words:
                yield words


def links_of(text):
    """Targets of links and pictures in a document that are no addresses."""
    without_code = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    targets = re.findall(r'\]\(([^)\s]+)\)', without_code) + re.findall(r'(?:src|href)="([^"]+)"', without_code)
    return [target for target in targets if not re.match(r'[a-z]+:', target)]


def anchors_of(text):
    """What a link into a document may end in: its headings, as sites and code hosts write them."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


CASES = [(document, words) for document in DOCUMENTS if document.exists() for words in commands_of(document.read_text())]


@pytest.mark.parametrize('document, words', CASES, ids=[f'{document.name}: {shlex.join(words)[:80]}' for document, words in CASES])
def test_command(document, words):
    check(words)


@pytest.mark.parametrize('document', [path for path in DOCUMENTS if path.exists()], ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    dead = []
    for link in links_of(document.read_text()):
        path, _, anchor = link.partition('#')
        target = document.parent / path if path else document
        if not target.exists() or (anchor and target.suffix == '.md' and anchor not in anchors_of(target.read_text())):
            dead.append(link)
    assert not dead


def check(words):
    """Raise an AssertionError where a command names something that is not there."""
    program, *arguments = words
    if program == 'make':
        targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
        assert {word for word in arguments if '=' not in word} <= targets, f'the Makefile has {sorted(targets)}'
    elif program in ('python', '.venv/bin/python') and arguments[0] == '-m':
        check_module(arguments[1])
    elif program in ('python', '.venv/bin/python', 'bash') and arguments[0].startswith('tools/'):
        check_tool(*arguments)
    elif program == 'mmcae':
        check_command(*arguments)
    elif program == 'torchrun':
        check(['mmcae', *arguments[arguments.index('mmcae') + 1 :]])
    elif program == 'pip':
        check_extras(arguments)
    else:
        assert program in OTHER_PROGRAMS, f'{program}: teach tests/test_docs.py about this program'


def check_module(name):
    assert importlib.util.find_spec(name) is not None


def check_command(name, *arguments):
    """A command of mmcae with its arguments: they are parsed, and changes of configs are made."""
    if name == '--help':
        return
    assert name in COMMANDS, f'mmcae has no command {name}'
    module = import_module(f'mmcae.commands.{name}')
    if hasattr(module, 'main') or '--help' in arguments:
        return
    try:
        args = make_parser(module).parse_intermixed_args(arguments)
    except SystemExit as error:
        raise AssertionError(f'mmcae {name} {shlex.join(arguments)} is refused') from error
    if hasattr(args, 'changes') and not PLACEHOLDER.fullmatch(args.config):
        load_config(args.config, [*args.changes, *args.cfg_options])


def check_tool(tool, *arguments):
    assert (ROOT / tool).is_file(), tool
    if tool.endswith('.sh'):
        return
    text = help_of(tool)
    for word in arguments:
        if word.startswith('-') and not re.fullmatch(r'-\d+', word):
            assert re.search(rf'(?<![\w-]){re.escape(word.split("=")[0])}(?![\w-])', text), f'{tool} has no option {word}'
        elif word.startswith(('configs/', 'tools/', 'docs/')):
            assert (ROOT / word).exists(), word
    config = arguments[0] if arguments else ''
    if tool in ('tools/train.py', 'tools/test.py') and config.endswith('.py') and not PLACEHOLDER.match(Path(config).name):
        after = list(arguments[arguments.index('--cfg-options') + 1 :]) if '--cfg-options' in arguments else []
        options = after[: next((i for i, word in enumerate(after) if word.startswith('-')), len(after))]
        load_config(ROOT / config, options)


@functools.cache
def help_of(tool):
    result = subprocess.run([sys.executable, ROOT / tool, '--help'], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_extras(arguments):
    extras = re.findall(r'^(\w+) = \{ file', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)
    for name in re.findall(r'(?:\.|mmcae)\[([\w,]+)\]', ' '.join(arguments)):
        for extra in name.split(','):
            assert extra in extras, f'there is no extra {extra}'


def test_the_readme_shows_the_two_commands():
    commands = [shlex.join(words) for words in commands_of((ROOT / 'README.md').read_text())]
    assert {'make demo', 'make test'} <= set(commands)


def test_a_tokenizer_of_ones_own_fits_its_target_file():
    """Where configs/tokenizer/dvae_folder.py leaves its checkpoint, and what it looks at, is what configs/_base_/targets/dvae.py says."""
    from mmengine.config import Config

    from mmcae.models.targets import DiscreteVAE

    target, tokenizer = Config.fromfile(ROOT / 'configs/_base_/targets/dvae.py'), load_config(ROOT / 'configs/tokenizer/dvae_folder.py')
    assert target.target_generator == dict(type='mmcae.DiscreteVAE', checkpoint=f'work_dirs/dvae_folder/{last_checkpoint(tokenizer)}')
    assert target.second_std == [DiscreteVAE.std] and target.second_mean == [DiscreteVAE.mean]
    assert target.token_size == 2 ** len(tokenizer.model.channels)


def test_script_of_the_histology_page(tmp_path):
    """As it stands there, on few tiles and with an encoder that was not trained."""
    import torch

    from mmcae.checkpoints import to_timm, write_state_dict
    from mmcae.models import CAEViT

    tiles = [ROOT / 'tools/dataset_converters/make_tissue_tiles.py', '--out', 'data/tissue', '--tiles', '150', '--workers', '1']
    subprocess.run([sys.executable, *tiles], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    torch.manual_seed(0)
    encoder = CAEViT('tiny', img_size=64).state_dict()
    write_state_dict(tmp_path / 'encoder.safetensors', to_timm({f'backbone.{key}': value for key, value in encoder.items()}, 'avg'))
    (script,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/histology.md').read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    if 'operator torchvision::nms does not exist' in done.stderr:
        pytest.skip('torchvision does not fit torch in this environment: python tools/fit_torchvision.py')
    assert done.returncode == 0, done.stderr
    assert 0.2 < float(done.stdout) <= 1


@pytest.mark.parametrize(
    'command, problem',
    [
        ('make demoo', 'demo-full'),
        ('python tools/nothing.py', 'nothing.py'),
        ('python tools/demo.py --seed 3', 'no option --seed'),
        ('python tools/train.py configs/digits/nothing.py', 'nothing.py'),
        ('pip install -e .[everything]', 'no extra everything'),
        ('mmcae tarin CONFIG', 'no command tarin'),
        ('mmcae train CONFIG --resumee', 'resumee'),
        ('rm -rf x', 'teach'),
    ],
)
def test_the_check_itself_finds_mistakes(command, problem):
    with pytest.raises(AssertionError, match=problem):
        check(shlex.split(command))


def test_changes_of_a_config_are_tried():
    from mmcae.utils.errors import ConfigError

    check(
        shlex.split('python tools/train.py configs/digits/upernet_vit-digits.py --cfg-options train_cfg.max_iters=3 --work-dir work_dirs/x')
    )
    with pytest.raises(ConfigError, match='trian_cfg'):
        check(shlex.split('python tools/train.py configs/digits/upernet_vit-digits.py --cfg-options trian_cfg.max_iters=3'))


def test_commands_are_read_as_people_write_them():
    text = 'a\n```bash\n# comment\nOMP_NUM_THREADS=1 python tools/x.py "a b" \\\n    --y 1  # why\n\nmake z\n```\n```python\nmake no\n```\n'
    assert list(commands_of(text)) == [['python', 'tools/x.py', 'a b', '--y', '1'], ['make', 'z']]
    assert links_of('[a](b.md#c) ![d](e.png) [f](https://x.y) <img src="g.png">\n```bash\n[h](i)\n```') == ['b.md#c', 'e.png', 'g.png']
    assert anchors_of('# A b, `c`\n```bash\n# d\n```\n## E-f') == {'a-b-c', 'e-f'}
