"""Checkpoints in pieces: they appear whole, what is missing is noticed, and tensors are put together again."""

import json
import os

import pytest
import torch
from mmengine.fileio import get_file_backend

from mmcae.checkpoints import read_checkpoint
from mmcae.checkpoints.pieces import first_piece, pieces_of, publish, read_pieces, remove_unfinished_pieces, write_piece
from mmcae.checkpoints.saving import ATOMIC
from mmcae.utils.errors import CheckpointError

WEIGHT = torch.arange(21.0).reshape(3, 7)


def write(folder, ranks=3, **content):
    """A matrix of 21 numbers in pieces of 7, 7, 7; a vector that rank 0 has alone; a buffer that all have."""
    folder.mkdir()
    for rank, part in enumerate(WEIGHT.flatten().chunk(ranks)):
        state = dict(weight=part.clone(), bias=torch.ones(4 if rank == 0 else 0), table=torch.full((2, 2), 5.0))
        shapes = dict(weight=(3, 7), bias=(4,), table=(2, 2))
        write_piece(dict(state_dict=state, shapes=shapes, optimizer={}, meta=dict(iter=3), **content), folder / f'rank{rank}.pth')


@pytest.fixture
def checkpoint(tmp_path):
    write(tmp_path / 'unfinished.partial')
    publish(tmp_path / 'unfinished.partial', tmp_path / 'epoch_1.pth')
    return tmp_path / 'epoch_1.pth'


def test_a_folder_gets_its_name_with_a_list_of_its_pieces(checkpoint, tmp_path):
    assert os.listdir(tmp_path) == ['epoch_1.pth'] and first_piece(checkpoint) == checkpoint / 'rank0.pth'
    assert [piece.name for piece in pieces_of(checkpoint)] == ['rank0.pth', 'rank1.pth', 'rank2.pth']
    write(tmp_path / 'unfinished.partial', ranks=1)
    publish(tmp_path / 'unfinished.partial', checkpoint)  # in the place of the one before
    assert sorted(os.listdir(checkpoint)) == ['pieces.json', 'rank0.pth'] and os.listdir(tmp_path) == ['epoch_1.pth']
    file = tmp_path / 'unfinished.partial'
    file.write_bytes(b'one file')
    publish(file, checkpoint)
    assert checkpoint.read_bytes() == b'one file' and first_piece(checkpoint) is None
    write(tmp_path / 'unfinished.partial')
    publish(tmp_path / 'unfinished.partial', checkpoint)
    assert len(pieces_of(checkpoint)) == 3
    get_file_backend(backend_args=dict(backend=ATOMIC)).put(b'of the plain Runner', checkpoint)
    assert checkpoint.read_bytes() == b'of the plain Runner' and os.listdir(tmp_path) == ['epoch_1.pth']


def test_the_one_before_is_there_as_long_as_can_be(checkpoint, tmp_path, monkeypatch):
    """Deleting a folder takes time, in which a process may be killed."""
    write(tmp_path / 'unfinished.partial', ranks=2)
    seen = []
    monkeypatch.setattr('shutil.rmtree', lambda path: seen.append([len(pieces_of(checkpoint)), len(pieces_of(path))]))
    publish(tmp_path / 'unfinished.partial', checkpoint)
    assert seen == [[2, 3]]


def test_what_is_missing_is_named(checkpoint):
    os.truncate(checkpoint / 'rank1.pth', 100)
    with pytest.raises(CheckpointError, match=r'epoch_1.pth is no complete checkpoint: 1 of its 3 pieces are missing or cut off.*rank1'):
        pieces_of(checkpoint)
    (checkpoint / 'rank2.pth').unlink()
    with pytest.raises(CheckpointError, match='2 of its 3 pieces'):
        pieces_of(checkpoint)
    for content in ('', '[]', '{"rank0.pth": null}'):
        (checkpoint / 'pieces.json').write_text(content)
        with pytest.raises(CheckpointError, match='pieces.json is damaged'):
            pieces_of(checkpoint)
    (checkpoint / 'pieces.json').unlink()  # as mmengine and DeepSpeed write it: nobody knows how many there were
    assert [piece.name for piece in pieces_of(checkpoint)] == ['rank0.pth', 'rank1.pth']
    (checkpoint / 'rank0.pth').unlink()
    with pytest.raises(CheckpointError, match='it has no rank0.pth and no mp_rank_00'):
        pieces_of(checkpoint)


def test_tensors_are_put_together(checkpoint):
    content = read_pieces(checkpoint, read_checkpoint)
    assert set(content) == {'state_dict', 'meta'}
    assert torch.equal(content['state_dict']['weight'], WEIGHT)
    assert torch.equal(content['state_dict']['bias'], torch.ones(4))
    assert torch.equal(content['state_dict']['table'], torch.full((2, 2), 5.0))


@pytest.mark.parametrize('first', ['mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_model_states.pt'])
def test_pieces_of_deepspeed(tmp_path, first):
    write_piece(dict(module=dict(weight=WEIGHT), optimizer=None), tmp_path / first)
    if first.startswith('zero'):
        with pytest.raises(CheckpointError, match='ZeRO stage 3.*zero_to_fp32'):
            read_pieces(tmp_path, read_checkpoint)
    else:
        assert torch.equal(read_pieces(tmp_path, read_checkpoint)['module']['weight'], WEIGHT)


def test_nothing_is_left_under_the_name_of_what_is_being_deleted(checkpoint, monkeypatch):
    monkeypatch.setattr('shutil.rmtree', lambda *_, **__: None)  # as if the process was killed
    get_file_backend(backend_args=dict(backend=ATOMIC)).rmtree(str(checkpoint))  # as mmengine's hook does it
    assert not checkpoint.exists() and checkpoint.with_name('deleted.partial').is_dir()
    monkeypatch.undo()
    write(checkpoint.with_name('unfinished.partial'))
    remove_unfinished_pieces(checkpoint.parent)
    assert not list(checkpoint.parent.iterdir())


def test_the_list_is_json(checkpoint):
    sizes = json.loads((checkpoint / 'pieces.json').read_text())
    assert sizes == {path.name: path.stat().st_size for path in checkpoint.glob('*.pth')}
