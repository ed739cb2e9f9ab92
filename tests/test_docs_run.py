"""The commands of README and of the pages that a newcomer reads are run as they stand there, in an empty folder with few small images.

Words in capitals and names of the reader's own files are real files here. `SHORTER` adds to long commands what makes them short, and
`ELSEWHERE` says why a command is not run. What stands in neither is run as it is; all other pages are checked by tests/test_docs.py.
"""

import re
import shlex
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT, commands_of

PAGES = ['README.md', *(f'docs/{name}.md' for name in ('tutorial', 'commands', 'features', 'judging', 'look', 'report'))]
PLACEHOLDERS = dict(
    FOLDER='images',
    IMAGE='image.jpg',
    CHECKPOINT='cae.pth',
    CONFIG='config.py',
    OUT='exported',
    WORK_DIR='work_dirs/a',
    IMAGES='data/digits/scenes64/test',
    LABEL_MAPS='data/digits/scenes64_labels/test',
)
LITTLE = 'train_dataloader.batch_size=4 train_dataloader.num_workers=0 train_dataloader.persistent_workers=False'
# Found in a command -> what is added to it; the first that is found counts.
SHORTER = {
    # All 20 epochs, because the next commands read their checkpoint.
    r'^mmcae train cae/cae_vit-small_folder .*--work-dir': f'{LITTLE} image_size=32 train_dataloader.batch_size=24',
    r'^mmcae train cae/cae_vit-small_folder .*--dry-run': 'batch_size=4 num_workers=0 arch=tiny embed_dims=192 image_size=32',
    r'^mmcae train cae/cae_vit-small_folder': f'{LITTLE} arch=tiny embed_dims=192 image_size=32 max_epochs=1',
    r'^mmcae train digits/': f'{LITTLE} train_cfg.max_iters=1 train_cfg.val_interval=2',
    r'make_digit_scenes': '--scale 0.02 --workers 1',
    r'^mmcae judge .*--label-maps': '--patches 500 --blocks 1',
    r'^mmcae judge': '--probes knn few_shot --draws 2',
    r'^mmcae look .*--size': '--size 64',
}
# Found in a command -> why it is not run.
ELSEWHERE = {
    r'^make ': 'builds an environment; tests/test_tools runs what the targets run',
    r'^pip ': 'installs; tests/test_package tries it',
    r'^bash tools/dist_train.sh |--gpus': 'needs eight GPUs; tests/test_tools/test_launch_scripts.py and tests/test_apis run two processes',
    r'--config-family imagenet': 'needs ImageNet; tests/test_tools/test_evaluate_encoder.py runs it on digits',
    r'^eval ': 'is for an interactive shell; tests/test_commands/test_completion.py runs one',
}
if find_spec('pyarrow') is None:
    ELSEWHERE[r'\.parquet'] = 'needs pyarrow, which requirements/tests.txt installs'


def first(table, command):
    """What a table says of a command, or None."""
    return next((value for pattern, value in table.items() if re.search(pattern, command)), None)


def commands(page):
    return [shlex.join(words) for words in commands_of((ROOT / page).read_text())]


@pytest.fixture(scope='module')
def start(tmp_path_factory, digit_scenes, fork_tool):
    """What the reader begins with: images, a checkpoint of pretraining and its config, two work dirs with logs."""
    place = tmp_path_factory.mktemp('reader')
    shutil.copytree(digit_scenes.parent, place / 'data')
    random = np.random.default_rng(0)
    for label in ('cat', 'dog'):
        (place / 'images' / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / 'images' / label / f'{number:02d}.jpg')
    shutil.copy(place / 'images/cat/00.jpg', place / 'image.jpg')
    rows = ['path,label']
    for number in range(36):  # twelve patients, each with images of both classes
        path = place / f'slides/patient{number // 3:02d}/{number:02d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / f'images/{("cat", "dog")[number % 2]}/{number % 12:02d}.jpg', path)
        rows.append(f'{path.relative_to(place)},{("cat", "dog")[number % 2]}')
    (place / 'labels.csv').write_text('\n'.join(rows))
    for run in 'ab':
        settings = [*LITTLE.split(), 'train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1']
        command = ['train', 'digits/cae_pixels_vit-digits', *settings, '--work-dir', f'work_dirs/{run}']
        code, output = fork_tool('mmcae/__main__.py', *command, cwd=place)
        assert code == 0, output
    shutil.copy(place / 'work_dirs/a/iter_2.pth', place / 'cae.pth')
    shutil.copy(place / 'work_dirs/a/cae_pixels_vit-digits.py', place / 'config.py')
    return place


@pytest.fixture
def place(start, tmp_path):
    """The reader's folder, as it is before a page is followed."""
    return shutil.copytree(start, tmp_path / 'reader')


@pytest.mark.parametrize('page', PAGES)
def test_commands_run_as_written(page, place, fork_tool):
    failed = []
    for command in commands(page):
        if first(ELSEWHERE, command):
            continue
        written = re.sub(r'\b[A-Z][A-Z_]+\b', lambda found: PLACEHOLDERS.get(found[0], found[0]), command)
        program, *arguments = shlex.split(f'{written} {first(SHORTER, command) or ""}')
        tool = 'mmcae/__main__.py' if program == 'mmcae' else arguments.pop(0)
        assert program in ('mmcae', 'python'), f'{command}: neither run nor in ELSEWHERE'
        code, output = fork_tool(tool, *arguments, cwd=place)
        if code:
            failed.append(f'{command}\n{output[-2000:]}')
    assert not failed, '\n\n'.join(failed)


@pytest.mark.parametrize('page', ['README.md', 'docs/tutorial.md'])
def test_python_runs_as_written(page, place, monkeypatch):
    monkeypatch.chdir(place)
    (block,) = re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    names = {}
    exec(re.sub(r"'[^']*(CHECKPOINT|\.pth)'", "'cae.pth'", block), names)
    assert names['features'].ndim >= 2


@pytest.mark.parametrize('table', [SHORTER, ELSEWHERE])
def test_tables_name_commands_that_are_there(table):
    written = [command for page in PAGES for command in commands(page)]
    assert all(any(re.search(pattern, command) for command in written) for pattern in table)
