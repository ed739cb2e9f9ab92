"""The commands of README and docs are run as they stand there, page by page, in an empty folder with few small images.

Words in capitals and names of the reader's own files are real files here. `SHORTER` adds to long commands what makes them short, and
`ELSEWHERE` says why a command is not run, and which test runs it. What stands in neither is run as it is.
"""

import ast
import re
import shlex
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from test_docs import DOCUMENTS, ROOT, commands_of

from mmcae.checkpoints import metadata, write_state_dict
from mmcae.models import CAEViT

PLACEHOLDERS = dict(
    FOLDER='images',
    IMAGE='image.jpg',
    CHECKPOINT='cae.pth',
    CONFIG='config.py',
    OUT='exported',
    WORK_DIR='work_dirs/a',
    NAME='a',
    IMAGES='data/digits/scenes64/test',
    LABEL_MAPS='data/digits/scenes64_labels/test',
    SOURCE='images',
    DESTINATION='packed',
    TILES='slides',
    PACKED_TILES='packed_slides',
    SRC='cae.pth',
    DST='converted.pth',
)
# Found in a command -> the checkpoint that it is about, where that is not one of pretraining.
CHECKPOINTS = {
    r'^mmcae test digits/mask_rcnn': 'work_dirs/mask_rcnn_vit-digits/iter_1.pth',
    r'^mmcae test digits/upernet': 'work_dirs/upernet_vit-digits/iter_1.pth',
    r'^mmcae (export|configs for) ': 'vit.pth',
}
LITTLE = 'train_dataloader.batch_size=4 train_dataloader.num_workers=0 train_dataloader.persistent_workers=False'
TINY = 'arch=tiny embed_dims=192 image_size=32'
# Found in a command -> what is added to it; the first that is found counts.
SHORTER = {
    # All 20 epochs, because the next commands read their checkpoint.
    r'^mmcae train .*--work-dir work_dirs/first': f'{LITTLE} image_size=32 train_dataloader.batch_size=24',
    r'^mmcae train .*--work-dir work_dirs/tissue': f'{LITTLE} image_size=32 train_dataloader.batch_size=24',
    r'^mmcae train .*small_folder .*--dry-run': f'batch_size=4 num_workers=0 {TINY}',
    r'^mmcae train (c|.*small_(folder|histology))': f'{LITTLE} {TINY} max_epochs=1',
    r'^mmcae train tokenizer/': f'{LITTLE} max_epochs=2',
    r'^mmcae train digits/linear': f'{LITTLE} max_iters=1 train_cfg.val_interval=2 train_dataloader.dataset.labels=20',
    r'^mmcae train digits/cae_scenes': f'{LITTLE} train_cfg.max_iters=1 checkpoint=work_dirs/cae_vit-digits/iter_1.pth',
    r'^mmcae train digits/': f'{LITTLE} train_cfg.max_iters=1 train_cfg.val_interval=2',
    r'^mmcae evaluate': '--protocols knn --cfg-options test_cfg.bank_dataloader.dataset.labels=20',
    r'^mmcae test digits/knn': 'test_cfg.bank_dataloader.dataset.labels=20',
    r'make_digit_scenes': '--scale 0.02 --workers 1',
    r'make_tissue_tiles': '--tiles 60 --workers 1',
    r'^mmcae judge .*--label-maps': '--patches 500 --blocks 1',
    r'^mmcae judge': '--probes knn few_shot --draws 2',
    r'^mmcae look .*--size': '--size 64',
}
# Found in a command -> why it is not run.
ELSEWHERE = {
    r'^(make|pip|docker|apt-get|mim|export|source|python3 -m venv|tensorboard) |-m pytest|build_mmcv': 'changes the system, or builds an '
    'environment; tests/test_package and tests/test_tools try it',
    r'^eval ': 'is for an interactive shell; tests/test_commands/test_completion.py runs one',
    r'^mmcae train .*_(coco|in1k|ade20k)': 'needs a large data set; tests/test_configs builds the recipes, and trains small ones',
    r'^mmcae test .*_(coco|ade20k)': 'needs a large data set; tests/test_detection and tests/test_segmentation test digits',
    r'^mmcae tokens .*in1k|stored-tokens': 'needs ImageNet; tests/test_tools/test_store_tokens.py stores tokens of few images',
    r'--config-family imagenet': 'needs ImageNet; tests/test_tools/test_evaluate_encoder.py runs it on digits',
    r'--protocols': 'trains for minutes; tests/test_tools/test_evaluate_encoder.py runs every protocol',
    r'^bash tools/|^torchrun|--gpus 8': 'needs several GPUs; tests/test_tools/test_launch_scripts.py and tests/test_apis run two processes',
    r'tools/benchmarks/compare_methods': 'trains for hours; tests/test_tools/test_compare_methods.py compares tiny ones',
    r'tools/benchmarks/': 'measures for minutes; tests/test_tools/test_benchmarks.py runs it small',
    r'results_table': 'reads results of three seeds; tests/test_tools/test_results.py makes some',
    r'judged_table|/seed0/pretrain': 'judges encoders of three seeds; tests/test_tools/test_judged_table.py and '
    'tests/test_apis/test_judging.py judge tiny ones',
    r'fashion': 'needs Fashion-MNIST; tests/test_configs/test_fashion_configs.py trains the recipes on drawn data',
    r'^mmcae train adapt/': 'needs a released encoder; tests/test_configs/test_adapt_configs.py builds and trains from one',
    r'cae_v2_vit-small_folder|_continued|_channels': 'needs files of others; tests/test_configs/test_custom_configs.py makes them',
    r'white=4095': 'needs images of 12 bits; tests/test_tools/test_own_images.py makes them',
    r's3://': 'needs a store; tests/test_datasets/test_sources/test_remote.py has one in memory',
    r'encoder\.pkl|mmpretrain_cae': 'needs files of others; tests/test_checkpoints/test_convert_tool.py makes them',
    r'^chromium |work_dirs/cae_vit-digits': 'needs an encoder that was trained; the pages on report, look and judge have the like',
    r'--to meta|--push': 'needs a file of Meta, or an account; tests/test_commands/test_export.py has stand-ins',
    r'^mmcae train CONFIG data_root': 'trains the example of the page, as tests/test_site.py does',
}
if find_spec('pyarrow') is None:
    ELSEWHERE[r'\.parquet'] = 'needs pyarrow, which requirements/tests.txt installs'
if find_spec('tensorboard') is None:
    ELSEWHERE['TensorboardVisBackend'] = 'needs tensorboard, which requirements/logging.txt installs'
# Pages whose Python is run after their commands.
EXECUTED = ['README.md', 'docs/tutorial.md', 'docs/features.md']


def first(table, command):
    """What a table says of a command, or None."""
    return next((value for pattern, value in table.items() if re.search(pattern, command)), None)


def with_names(command):
    """A command with files of the reader's folder in place of the words in capitals."""
    names = PLACEHOLDERS | dict(CHECKPOINT=first(CHECKPOINTS, command) or PLACEHOLDERS['CHECKPOINT'])
    return re.sub(r'\b[A-Z][A-Z_]+\b', lambda found: names.get(found[0], found[0]), command)


def commands(page):
    return [shlex.join(words) for words in commands_of((ROOT / page).read_text())]


def python_of(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


PAGES = [str(page.relative_to(ROOT)) for page in DOCUMENTS if any(True for _ in commands_of(page.read_text()))]


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
    (place / 'work_dirs/cae_vit-digits').mkdir()
    for name in ('a/epoch_1600.pth', 'cae_vit-digits/iter_1600.pth'):
        shutil.copy(place / 'cae.pth', place / 'work_dirs' / name)
    encoder = CAEViT('tiny', img_size=32)
    write_state_dict(place / 'vit.pth', {f'backbone.{name}': value for name, value in encoder.state_dict().items()}, metadata(encoder.spec))
    (place / 'images/list.txt').write_text('\n'.join(f'cat/{number:02d}.jpg' for number in range(8)))
    slides = [f'patient{number:02d},patient{number:02d},0.5' for number in range(12)]
    (place / 'slides/slides.csv').write_text('\n'.join(['path,patient,mpp', *slides]))
    shutil.copy(place / 'work_dirs/a/cae_pixels_vit-digits.py', place / 'config.py')
    return place


@pytest.fixture
def place(start, tmp_path):
    """The reader's folder, as it is before a page is followed."""
    return shutil.copytree(start, tmp_path / 'reader')


@pytest.mark.parametrize('page', PAGES)
def test_commands_run_as_written(page, place, fork_tool, monkeypatch):
    failed = []
    for command in commands(page):
        if first(ELSEWHERE, command):
            continue
        program, *arguments = shlex.split(f'{with_names(command)} {first(SHORTER, command) or ""}')
        tool = 'mmcae/__main__.py' if program == 'mmcae' else arguments.pop(0)
        assert program in ('mmcae', 'python'), f'{command}: neither run nor in ELSEWHERE'
        code, output = fork_tool(tool, *arguments, cwd=place)
        if code:
            failed.append(f'{command}\n{output[-2000:]}')
    assert not failed, '\n\n'.join(failed)
    if page in EXECUTED:
        monkeypatch.chdir(place)
        for block in python_of(page):
            exec(re.sub(r"'[^']*(CHECKPOINT|\.pth)'", "'cae.pth'", block), {})


@pytest.mark.parametrize('page', [str(page.relative_to(ROOT)) for page in DOCUMENTS if python_of(page)])
def test_python_names_what_is_there(page):
    """Every block is Python, and what it imports, and the attributes of that, exist."""
    for block in python_of(page):
        tree, names = ast.parse(block), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert hasattr(names[node.value.id], node.attr), f'{page}: {ast.unparse(node)}'


def test_reasons_name_tests_that_are_there():
    for reason in ELSEWHERE.values():
        assert all((ROOT / name.rstrip('.')).exists() for name in re.findall(r'(?:tests|requirements)/[\w/.]+', reason)), reason


@pytest.mark.parametrize('table', [SHORTER, ELSEWHERE, CHECKPOINTS])
def test_tables_name_commands_that_are_there(table):
    written = [command for page in PAGES for command in commands(page)]
    assert all(any(re.search(pattern, command) for command in written) for pattern in table)
