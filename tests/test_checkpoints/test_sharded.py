"""Folders of torch.distributed.checkpoint: read as torch reads them, without unpickling, and refused where something is wrong with them."""

import io
import os
import pickle
import warnings

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from mmcae.apis import load_encoder
from mmcae.checkpoints import metadata_of, read_checkpoint
from mmcae.checkpoints.pieces import publish, write_piece
from mmcae.checkpoints.reading import read_sharded
from mmcae.utils.errors import CheckpointError

TENSORS = {
    'state_dict.weight': torch.arange(12.0).reshape(4, 3),
    'state_dict.count': torch.tensor(7),
    'state_dict.half': torch.ones(5, dtype=torch.bfloat16),
    'optimizer.weight.exp_avg': torch.full((4, 3), 2.0),
}


def save(folder, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that there are no other processes
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / 'sharded', TENSORS)
    return tmp_path / 'sharded'


def change_metadata(folder, change):
    """Write `.metadata` anew after a change of torch's object."""
    metadata = pickle.loads((folder / '.metadata').read_bytes())
    change(metadata)
    (folder / '.metadata').write_bytes(pickle.dumps(metadata))


def test_the_model_is_read_like_a_file(folder):
    write_piece(dict(meta=dict(iter=3), optimizer=dict(state={})), folder / 'training.pth')
    content = read_checkpoint(folder)
    assert content['meta'] == dict(iter=3) and 'optimizer' not in content
    state = {f'state_dict.{name}': value for name, value in content['state_dict'].items()}
    assert state.keys() == {name for name in TENSORS if name.startswith('state_dict.')}
    assert all(torch.equal(value, TENSORS[name]) and value.dtype == TENSORS[name].dtype for name, value in state.items())
    assert torch.equal(read_sharded(folder).whole('optimizer.weight.exp_avg'), TENSORS['optimizer.weight.exp_avg'])


def test_parts_are_put_together(folder):
    """As of two processes: the second half of the rows is in another file."""
    save(folder.with_name('other'), {'rest': TENSORS['state_dict.weight'][2:].clone()})
    os.rename(folder.with_name('other') / '__0_0.distcp', folder / '__1_0.distcp')
    save(folder.with_name('first'), {**TENSORS, 'state_dict.weight': TENSORS['state_dict.weight'][:2].clone()})
    os.replace(folder.with_name('first') / '__0_0.distcp', folder / '__0_0.distcp')
    os.replace(folder.with_name('first') / '.metadata', folder / '.metadata')
    other = pickle.loads((folder.with_name('other') / '.metadata').read_bytes())

    def join(metadata):
        entry = metadata.state_dict_metadata['state_dict.weight']
        entry.size = torch.Size((4, 3))
        entry.chunks.append(ChunkStorageMetadata(torch.Size((2, 0)), torch.Size((2, 3))))
        (place,) = other.storage_data.values()
        place.relative_path = '__1_0.distcp'
        metadata.storage_data[MetadataIndex('state_dict.weight', (2, 0))] = place

    change_metadata(folder, join)
    assert torch.equal(read_sharded(folder).whole('state_dict.weight'), TENSORS['state_dict.weight'])


def test_a_folder_of_another_program_is_an_encoder(tiny_cae, tmp_path):
    model = tiny_cae()
    save(tmp_path / 'foreign', {f'net.{name}': value for name, value in model.state_dict().items()})
    assert read_checkpoint(tmp_path / 'foreign')['state_dict'].keys() == {f'net.{name}' for name in model.state_dict()}
    save(tmp_path / 'partial', {f'state_dict.{name}': value for name, value in model.state_dict().items()})
    write_piece(dict(meta=metadata_of(model)), tmp_path / 'partial' / 'training.pth')
    publish(tmp_path / 'partial', tmp_path / 'epoch_1.pth')
    encoder = load_encoder(tmp_path / 'epoch_1.pth')
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, model.backbone.blocks[0].attn.qkv.weight)


class Attack:
    def __reduce__(self):
        return os.mkdir, (Attack.path,)


@pytest.mark.parametrize('place', ['metadata', 'planner', 'tensor'])
def test_no_code_is_run(folder, tmp_path, place):
    Attack.path = str(tmp_path / 'attacked')
    if place == 'metadata':
        (folder / '.metadata').write_bytes(pickle.dumps(Attack()))
    elif place == 'planner':
        change_metadata(folder, lambda metadata: setattr(metadata, 'planner_data', {'x': Attack()}))
    else:
        buffer = io.BytesIO()
        torch.save(Attack(), buffer)
        (folder / '__0_0.distcp').write_bytes(buffer.getvalue())

        def point(metadata):
            for stored in metadata.storage_data.values():
                stored.offset, stored.length = 0, len(buffer.getvalue())

        change_metadata(folder, point)
    with pytest.raises(CheckpointError, match='mkdir'):
        read_checkpoint(folder)
    assert not (tmp_path / 'attacked').exists()


def set_place(**values):
    return lambda metadata: [setattr(place, name, value) for place in metadata.storage_data.values() for name, value in values.items()]


def set_entry(**values):
    return lambda metadata: [setattr(metadata.state_dict_metadata['state_dict.weight'], name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    'change',
    [
        set_place(relative_path='../secret'),
        set_place(relative_path='/etc/passwd'),
        set_place(offset=10**12),
        set_place(length=-1),
        set_place(length='many'),
        set_entry(size=torch.Size((2**40, 3))),
        set_entry(chunks=[]),
        set_entry(chunks=None),
        set_entry(chunks=[ChunkStorageMetadata(torch.Size((1, 0)), torch.Size((4, 3)))]),
        lambda metadata: metadata.storage_data.clear(),
        lambda metadata: setattr(metadata, 'state_dict_metadata', 3),
    ],
)
def test_metadata_that_cannot_be_are_refused(folder, change):
    change_metadata(folder, change)
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged'):
        read_checkpoint(folder)


def test_damaged_files_are_named(folder):
    path = folder / '__0_0.distcp'
    content = bytearray(path.read_bytes())
    place = content.index(TENSORS['state_dict.weight'].numpy().tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='__0_0.distcp is damaged'):
        read_sharded(folder).check()
    os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged .*lies outside'):
        read_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match='__0_0.distcp'):
        read_checkpoint(folder)


def test_every_cut_and_flipped_byte_of_the_metadata_is_an_error_or_harmless(folder):
    content = (folder / '.metadata').read_bytes()
    for place in range(0, len(content), 31):
        for changed in (content[:place], content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]):
            (folder / '.metadata').write_bytes(changed)
            try:
                read_checkpoint(folder)
            except CheckpointError:
                pass
