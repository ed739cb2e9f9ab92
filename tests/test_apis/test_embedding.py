"""`mmcae embed`: features of a folder in a file, against one image at a time; interrupted, with bad files, in several processes."""

import json

import numpy as np
import pytest
import torch

import mmcae
from mmcae.apis import describe_features, embed, extract_features, read_features
from mmcae.apis import embedding as core
from mmcae.checkpoints import metadata, write_state_dict
from mmcae.commands import embed as command
from mmcae.commands.main import make_parser
from mmcae.models import CAEViT, TimmEncoder
from mmcae.utils.errors import ConfigError, DataError, DependencyError

MMCAE = 'mmcae/__main__.py'
OUT_TYPES = dict(cls='cls_token', mean='avg_featmap', patch='raw')


@pytest.fixture
def encoder(tmp_path):
    """The file of a tiny encoder of 32 px and 2x2 patches whose tensors are all random."""
    model = CAEViT(dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), img_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    write_state_dict(tmp_path / 'encoder.pth', model.state_dict(), metadata(model.spec, None))
    return tmp_path / 'encoder.pth'


@pytest.fixture
def folder(image_folder):
    """Eight images in two folders, and one that is none."""
    root = image_folder(size=(40, 36))
    (root / 'cat' / '002a.png').write_bytes(b'nothing')
    return root


def good_paths(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*.*') if path.name != '002a.png')


@pytest.mark.parametrize('suffix', ['.npz', '.parquet', '.zarr'])
def test_rows_are_those_of_single_images(suffix, encoder, folder, tmp_path):
    for library in {'.parquet': ['pyarrow'], '.zarr': ['zarr']}.get(suffix, []):
        pytest.importorskip(library)
    out = tmp_path / 'new' / f'features{suffix}'
    assert embed(encoder, folder, out, list(OUT_TYPES), batch_size=3, workers=0) == out
    paths = good_paths(folder)
    batches = list(read_features(out, batch_size=3))
    assert [len(batch['ids']) for batch in batches] == [3, 3, 2]
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert found['paths'].tolist() == paths and found['ids'].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]  # 3 cannot be read
    for name, out_type in OUT_TYPES.items():
        expected = extract_features(encoder, [folder / path for path in paths], out_type=out_type)
        expected = expected[:, 1:] if name == 'patch' else expected
        assert found[name].dtype == np.float32 and np.allclose(found[name], expected, atol=1e-5), name
    about = describe_features(out)
    assert about['images'] == 8 and about['bad_files'] == 1 and about['grid'] == [2, 2] and about['encoder']['embed_dims'] == 16
    (line,) = (tmp_path / 'new' / f'features{suffix}.bad_files.tsv').read_text().splitlines()
    assert line.startswith(f'{folder}/cat/002a.png\t')
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f'{out.name}.bad_files.tsv']
    only = next(read_features(out, ['cls'], batch_size=100))
    assert list(only) == ['cls'] and np.array_equal(only['cls'], found['cls'])


def test_numpy_reads_npz_itself_and_nothing_is_written_without_a_name(encoder, folder, tmp_path):
    columns = mmcae.embed(encoder, folder, features='mean', workers=0)
    embed(encoder, folder, tmp_path / 'a.npz', 'mean', workers=2)
    with np.load(tmp_path / 'a.npz') as file:
        assert all(np.array_equal(file[name], columns[name]) for name in ('ids', 'paths', 'mean'))


def test_other_encoders(folder, tmp_path):
    """With registers, and without a cls token."""
    for number, name in enumerate(['vit_small_patch14_reg4_dinov2', 'vit_base_patch16_siglip_224']):
        model = TimmEncoder(name, img_size=112, depth=1, embed_dim=16, num_heads=2)
        write_state_dict(tmp_path / f'{number}.pth', model.state_dict(), metadata(model.spec))
        columns = embed(tmp_path / f'{number}.pth', folder, features=['mean', 'patch'], workers=0)
        paths = [folder / path for path in columns['paths']]
        assert np.allclose(columns['mean'], extract_features(tmp_path / f'{number}.pth', paths, out_type='avg_featmap'), atol=1e-5)
        raw = extract_features(tmp_path / f'{number}.pth', paths, out_type='raw')
        assert columns['patch'].shape[1] == np.prod(model.grid)
        assert np.allclose(columns['patch'], raw[:, model.num_prefix_tokens :], atol=1e-5)
    with pytest.raises(ConfigError, match='no cls token'):
        embed(tmp_path / '1.pth', folder)


def test_half_precision(encoder, folder, tmp_path):
    whole = embed(encoder, folder, workers=0)['cls']
    half = embed(encoder, folder, workers=0, amp=True, dtype='float16')['cls']
    assert half.dtype == np.float16 and np.allclose(whole, half, atol=0.1) and not np.array_equal(whole, half.astype(np.float32))


def test_an_interrupted_run_goes_on(encoder, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(core, 'PIECE_ROWS', 2)
    out, calls = tmp_path / 'a.npz', []
    real = core.Work.forward

    def forward(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(core.Work, 'forward', forward)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, folder, out, batch_size=2, workers=0)
    assert not out.exists()
    with pytest.raises(ConfigError, match='begun with other features, dtype'):
        embed(encoder, folder, out, 'mean', batch_size=2, workers=0, dtype='float16')
    assert embed(encoder, folder, out, batch_size=2, workers=0) == out
    assert calls == [2, 1, 2, 2, 2, 1]  # five pieces of two rows, the second with a bad file; the third was begun twice
    monkeypatch.setattr(core, 'PIECE_ROWS', 4096)
    whole = embed(encoder, folder, workers=0)
    with np.load(out) as file:
        assert np.allclose(file['cls'], whole['cls'], atol=1e-6) and file['paths'].tolist() == whole['paths'].tolist()


def test_overwrite(encoder, folder, tmp_path):
    out = tmp_path / 'a.npz'
    embed(encoder, folder, out, workers=0)
    with pytest.raises(ConfigError, match='a.npz exists'):
        embed(encoder, folder, out, 'mean', workers=0)
    embed(encoder, folder, out, 'mean', workers=0, overwrite=True)
    assert 'mean' in np.load(out) and 'cls' not in np.load(out)


def test_a_packed_folder_and_a_list(encoder, folder, tmp_path):
    from mmcae.commands.main import run_command

    run_command('pack', [str(folder), str(tmp_path / 'packed'), '--max-bad-files', '0.5', '--workers', '0'])
    loose, packed = embed(encoder, folder, workers=0), embed(encoder, tmp_path / 'packed', workers=0)
    assert packed['paths'].tolist() == loose['paths'].tolist() and np.array_equal(packed['cls'], loose['cls'])
    (tmp_path / 'list.txt').write_text('dog/001.png\ncat/000.jpg\n')
    listed = embed(encoder, folder, workers=0, list_file=tmp_path / 'list.txt')
    assert listed['paths'].tolist() == ['dog/001.png', 'cat/000.jpg'] and np.allclose(listed['cls'], loose['cls'][[5, 0]], atol=1e-6)


def test_several_processes_share_the_work(encoder, folder, tmp_path, fork_tool):
    arguments = ('embed', encoder, folder, '--features', 'cls', 'patch', '--batch-size', 2, '--workers', 0, '--device', 'cpu')
    code, output = fork_tool(MMCAE, *arguments, '--out', tmp_path / 'two.npz', processes=2)
    assert code == 0, output
    assert output.count('of 8 images; 1 files could not be read') == 1
    columns = embed(encoder, folder, features=['cls', 'patch'], workers=0)
    with np.load(tmp_path / 'two.npz') as file:
        assert all(np.allclose(file[name], columns[name], atol=1e-6) for name in ('ids', 'cls', 'patch'))


def test_processes_get_the_arguments_of_the_command():
    parser = make_parser(command)
    for text in (
        'a.pth images --out f.npz',
        'a.pth images --out f.zarr --features cls patch --img-size 64 96 --batch-size 3 --workers 0 --device cpu --amp --dtype float16 '
        '--list l.txt --num-heads 3 --overwrite --gpus 2',
    ):
        args = parser.parse_args(text.split())
        again = parser.parse_args(command.words(args))
        assert vars(again) | dict(gpus=0) == vars(args) | dict(gpus=0)


@pytest.mark.parametrize(
    'arguments, problem',
    [
        (dict(out='a.csv'), '.npz, .parquet, .zarr'),
        (dict(features=['cls', 'tokens']), 'cls, mean, patch'),
        (dict(features=[]), 'cls, mean, patch'),
        (dict(batch_size=0), 'batch_size=0'),
        (dict(dtype='float64'), 'float32, float16'),
        (dict(device='gpu'), "device='gpu'"),
    ],
)
def test_arguments_that_cannot_be(arguments, problem, encoder, folder, tmp_path):
    out = tmp_path / arguments.pop('out', 'a.npz')
    with pytest.raises(ConfigError, match=problem):
        embed(encoder, folder, out, **arguments)
    assert not out.exists()


def test_folders_without_images(encoder, tmp_path):
    (tmp_path / 'images').mkdir()
    with pytest.raises(DataError, match='There is no image'):
        embed(encoder, tmp_path / 'images', tmp_path / 'a.npz')
    (tmp_path / 'images' / 'a.jpg').write_bytes(b'')
    with pytest.raises(DataError, match='None of the 1 images'):
        embed(encoder, tmp_path / 'images', tmp_path / 'a.npz', workers=0)
    assert not (tmp_path / 'a.npz').exists() and 'a.jpg' in (tmp_path / 'a.npz.bad_files.tsv').read_text()


def test_a_library_that_is_missing(encoder, folder, tmp_path, monkeypatch):
    monkeypatch.setattr('mmcae.apis.feature_files.find_spec', lambda name: None)
    for suffix, library in (('.parquet', 'pyarrow'), ('.zarr', 'zarr')):
        with pytest.raises(DependencyError, match=f'pip install {library}'):
            embed(encoder, folder, tmp_path / f'a{suffix}')


def test_files_that_are_no_features(tmp_path):
    (tmp_path / 'a.npz').write_bytes(b'nothing')
    np.savez(tmp_path / 'b.npz', x=np.zeros(3))
    for name, problem in (('a.npz', 'is no file of features'), ('c.npz', 'There is no file'), ('b.npz', 'has no .cls')):
        with pytest.raises(DataError, match=problem):
            next(read_features(tmp_path / name, ['cls']))
    with pytest.raises(DataError, match='is no file of features'):
        describe_features(tmp_path / 'b.npz')


def test_pieces_are_bounded_by_their_size(encoder, folder, monkeypatch):
    """Of patch features a piece has fewer rows."""
    monkeypatch.setattr(core, 'PIECE_BYTES', 4 * 16 * 5 * 3)  # three rows of one cls and four patch tokens of 16 numbers
    begun = []
    real = core.Work.save
    monkeypatch.setattr(core.Work, 'save', lambda self, path, *rest: (begun.append(path.name), real(self, path, *rest)))
    embed(encoder, folder, features=['cls', 'patch'], workers=0)
    assert begun == ['0.npz', '2.npz', '4.npz', '6.npz', '8.npz']
    begun.clear()
    embed(encoder, folder, features='cls', workers=0)
    assert begun == ['0.npz']


def test_the_description_is_plain(encoder, folder, tmp_path):
    embed(encoder, folder, tmp_path / 'a.npz', workers=0)
    assert json.loads(json.dumps(describe_features(tmp_path / 'a.npz')))['folder'] == str(folder)
