"""The report: all that lies in work dirs is on one page, and what is no work dir is refused."""

import json
import re
from html import unescape

import pytest
from mmengine.config import Config
from PIL import Image

from mmcae.utils.errors import DataError
from mmcae.visualization.report import differences, figures_table, flattened, write_report

LOG = """2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    PyTorch compiling details: PyTorch built with:
  - GCC 13

Runtime environment:
    seed: 7
------------------------------------------------------------

"""


@pytest.fixture
def work_dir(tmp_path):
    def make(name, lr=0.1, starts=((10, 20), (20, 30))):
        folder = tmp_path / name
        for number, steps in enumerate(starts):
            place = folder / f'2026010{number}_000000' / 'vis_data'
            place.mkdir(parents=True)
            (place / 'scalars.json').write_text(''.join(json.dumps(dict(loss=lr + step, lr=lr, step=step)) + '\n' for step in steps))
            (place.parent / 'run.log').write_text(LOG)
        Config(dict(base_lr=lr, model=dict(type='CAE', heads=[dict(size=1), dict(size=2)]))).dump(folder / 'mine.py')
        (folder / 'reconstructions').mkdir()
        Image.new('RGB', (4, 4)).save(folder / 'reconstructions' / 'iter_30.png')
        return folder

    return make


def words_of(path):
    return unescape(re.sub(r'<style>.*?</style>|<[^>]*>', ' ', path.read_text()))


def test_everything_is_on_the_page(work_dir, tmp_path):
    first, second = work_dir('first'), work_dir('second', 0.2)
    table = [['encoder', 'knn, top-1'], ['cae', '71.2 [69.0, 73.1]']]
    (first / 'judged.json').write_text(json.dumps(dict(kind='mmcae.judge', data='birds', table=table)))
    (second / 'results.json').write_text(json.dumps(dict(checkpoint='a.pth', protocols=dict(knn=dict(top1=0.51)))))
    page = write_report(dict(first=first, second=second), tmp_path / 'out/report.html')
    words = words_of(page)
    for text in (
        'birds',
        '71.2 [69.0, 73.1]',
        '51.0',
        'iter 30',
        'sys.platform: linux',
        'seed: 7',
        'base_lr',
        "type='CAE'",
        '30.1',
        '30.2',
    ):
        assert text in words, text
    assert 'GCC 13' not in words and 'compiling' not in words
    assert page.read_text().count('<figure>') == 4  # loss, lr, and a picture of each
    assert not re.search(r'(src|href)="(?!data:)', page.read_text())


def test_runs_are_named_where_there_are_several():
    runs = dict(a={'loss': [(1, 2.0), (2, 1.0)]}, b={'loss': [(1, 3.0)]})
    assert figures_table(runs)[1:] == [['loss', 'a', '1', '2', '1', '2'], ['loss', 'b', '3', '1', '3', '3']]
    assert figures_table(dict(b=runs['b'])) == [['quantity', 'last', 'step', 'lowest', 'highest'], ['loss', '3', '1', '3', '3']]


def test_differences():
    flat = [flattened(Config(dict(lr=lr, work_dir=f'{lr}', parts=[dict(a=1), dict(b=[lr])]))) for lr in (1, 2)]
    assert flat[0] == {'lr': '1', 'work_dir': '"1"', 'parts.0.a': '1', 'parts.1.b': '[1]'}
    assert differences(dict(x=flat[0], y=flat[1])) == [['setting', 'x', 'y'], ['lr', '1', '2'], ['parts.1.b', '[1]', '[2]']]


def test_differences_to_the_config_that_comes_with_mmcae(work_dir, tmp_path, repository):
    from mmcae.utils.configs.loading import load_config

    folder = work_dir('run')
    (folder / 'mine.py').unlink()
    cfg = load_config(repository / 'configs/digits/cae_pixels_vit-digits.py', ['base_lr=0.5'])
    cfg.dump(folder / 'cae_pixels_vit-digits.py')
    words = words_of(write_report(dict(run=folder), tmp_path / 'report.html'))
    assert 'run: differences to cae_pixels_vit-digits' in words
    changed = re.search(r'setting\s+base\s+run(.*?)All of run', words, re.DOTALL).group(1).split()
    assert {'base_lr', 'optim_wrapper.optimizer.lr', '0.5'} <= set(changed)


def test_damaged_or_empty_folders(tmp_path, work_dir, fork_tool):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='is it the work dir of a training run'):
        write_report(dict(empty=tmp_path / 'empty'), tmp_path / 'report.html')
    folder = work_dir('run')
    code, output = fork_tool('mmcae/__main__.py', 'report', folder, '--out', tmp_path / 'page.html')
    assert code == 0 and (tmp_path / 'page.html').exists(), output
    code, output = fork_tool('mmcae/__main__.py', 'report', folder, '--out', tmp_path / 'page.txt')
    assert code == 2 and '.html' in output.splitlines()[-1]
    code, output = fork_tool('mmcae/__main__.py', 'report', folder, '--images', folder / 'reconstructions/iter_30.png')
    assert code == 2 and 'has no checkpoint whose encoder could be shown' in output.splitlines()[-1]
    (folder / 'judged.json').write_text('{}')
    code, output = fork_tool('mmcae/__main__.py', 'report', folder, '--out', tmp_path / 'page.html')
    assert code == 2 and 'judged.json was not written by mmcae judge' in output.splitlines()[-1]
