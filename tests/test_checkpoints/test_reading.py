"""Reading files: every layout and wrapper people have, and nothing that could run code."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import ExponentialMovingAverage
from reference.examples import example
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from mmcae.checkpoints import (
    load_state,
    locate,
    read_checkpoint,
    read_weights,
    to_mmpretrain,
    to_official,
    weights_checksum,
    write_state_dict,
)
from mmcae.utils.errors import CheckpointError


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)


def equal(found, wanted):
    return set(found) == set(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)


# ---------------------------------------------------------------- files


def test_no_such_file_names_its_neighbours(tmp_path):
    torch.save({}, tmp_path / 'epoch_300.pth')
    with pytest.raises(CheckpointError, match=r'no checkpoint .*epoch_30\.pth; beside it are .*epoch_300\.pth'):
        read_checkpoint(tmp_path / 'epoch_30.pth')
    with pytest.raises(CheckpointError, match=r'There is no checkpoint .*nowhere'):
        read_checkpoint(tmp_path / 'nowhere' / 'epoch_30.pth')


@pytest.mark.parametrize('name', ['broken.pth', 'broken.safetensors'])
@pytest.mark.parametrize('content', [b'', b'<html>not found</html>', b'PK\x03\x04 cut off'])
def test_damaged_files(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(path)


def test_file_cut_off(tmp_path, tiny_cae):
    torch.save(tiny_cae().state_dict(), tmp_path / 'whole.pth')
    data = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'half.pth').write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match='half.pth is damaged'):
        read_checkpoint(tmp_path / 'half.pth')


def test_file_without_tensors(tmp_path):
    torch.save(dict(epoch=3), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='holds no tensors'):
        load_state(tmp_path / 'x.pth')
    torch.save([1, 2], tmp_path / 'y.pth')
    with pytest.raises(CheckpointError, match='holds a list, not a checkpoint'):
        load_state(tmp_path / 'y.pth')


@pytest.mark.parametrize('new_format', [True, False])
def test_code_is_never_run(tmp_path, new_format):
    """Neither torch's zip files nor its old ones, wherever the object hides; the message has the culprit's name."""
    target = tmp_path / 'ran'
    torch.save(
        dict(state_dict=dict(w=torch.zeros(1)), meta=Malicious(target)), tmp_path / 'x.pth', _use_new_zipfile_serialization=new_format
    )
    with pytest.raises(CheckpointError, match=r'refused \((posix|os|nt)\.system\): only tensors'):
        read_checkpoint(tmp_path / 'x.pth')
    assert not target.exists()


def test_plain_pickles_are_refused(tmp_path):
    target = tmp_path / 'ran'
    (tmp_path / 'x.pth').write_bytes(pickle.dumps(dict(state_dict=Malicious(target))))
    with pytest.raises(CheckpointError, match='x.pth'):
        read_checkpoint(tmp_path / 'x.pth')
    assert not target.exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'refused \(torch\.nn\.modules\.linear\.Linear\): .* Save the state_dict alone'):
        read_checkpoint(tmp_path / 'x.pth')


def test_the_authors_arguments_are_plain_data(tmp_path):
    """Their checkpoints have an argparse.Namespace beside the model; that is no reason to refuse them, nor to trust the rest."""
    args = argparse.Namespace(model='cae_base_patch16_224_8k_vocab', lr=1.5e-3, window_size=(14, 14))
    torch.save(dict(model=dict(w=torch.ones(2)), args=args, epoch=3), tmp_path / 'x.pth')
    content = read_checkpoint(tmp_path / 'x.pth')
    assert content['args'].attributes == vars(args)
    target = tmp_path / 'ran'
    torch.save(dict(model={}, args=argparse.Namespace(model=Malicious(target))), tmp_path / 'y.pth')
    with pytest.raises(CheckpointError, match='system'):
        read_checkpoint(tmp_path / 'y.pth')
    assert not target.exists()


def test_mmengines_logs_are_read(tmp_path):
    """A checkpoint of a training run holds its message hub: histories of losses."""
    torch.save(dict(state_dict=dict(w=torch.ones(2)), message_hub=dict(loss=HistoryBuffer([1.0], [1]))), tmp_path / 'x.pth')
    record = read_checkpoint(tmp_path / 'x.pth')['message_hub']['loss']
    assert record.attributes['_log_history'].tolist() == [1.0] and not isinstance(record, HistoryBuffer)


def test_safetensors(tmp_path):
    save_file(dict(w=torch.ones(2)), tmp_path / 'x.safetensors')
    assert equal(load_state(tmp_path / 'x.safetensors'), dict(w=torch.ones(2)))


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.safetensors'])
def test_writing(tmp_path, tiny_cae, suffix):
    """Shared and sliced tensors too, into folders that are not there yet; nothing but the file is left."""
    state = to_official(tiny_cae().state_dict())
    path = tmp_path / 'new' / f'x{suffix}'
    write_state_dict(path, state)
    assert equal(load_state(path), state)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_unknown_suffix(tmp_path):
    with pytest.raises(CheckpointError, match=r'must end in .pth, .pt or .safetensors'):
        write_state_dict(tmp_path / 'x.ckpt', {})


# ---------------------------------------------------------------- containers and wrappers


@pytest.mark.parametrize('container', ['state_dict', 'model', 'module'])
def test_containers(tiny_cae, container):
    state = dict(tiny_cae().state_dict())
    assert equal(load_state({container: state, 'optimizer': dict(state={}), 'epoch': 3}), state)


def test_names_of_data_parallel(tiny_cae):
    state = tiny_cae().state_dict()
    assert equal(load_state({f'module.{key}': value for key, value in state.items()}), state)
    assert equal(load_state({f'module.module.{key}': value for key, value in state.items()}), state)


def test_names_of_fsdp_compile_and_activation_checkpointing(tiny_cae):
    state = tiny_cae().state_dict()
    for wrapper in ('_fsdp_wrapped_module', '_orig_mod', '_checkpoint_wrapped_module'):
        wrapped = {f'{wrapper}.{key}': value for key, value in state.items()}
        assert equal(load_state(wrapped), state)
        inside = {key.replace('blocks.0.', f'blocks.0.{wrapper}.'): value for key, value in wrapped.items()}
        assert equal(load_state(inside), state)


@pytest.mark.parametrize('average', [ExponentialMovingAverage, AveragedModel])
def test_averaged_models(tiny_cae, average):
    """Mmengine's EMA and torch's: their counters are not part of the model."""
    model = tiny_cae()
    averaged = average(model)
    assert equal(read_weights(averaged.state_dict()).state, model.state_dict())


def test_real_wrappers(tiny_cae):
    model = tiny_cae()
    assert equal(load_state(torch.compile(model).state_dict()), model.state_dict())
    assert equal(load_state(torch.nn.DataParallel(model).state_dict()), model.state_dict())


# ---------------------------------------------------------------- kinds


def test_kinds(tiny_cae):
    state = tiny_cae().state_dict()
    theirs = to_mmpretrain(state)
    assert locate(state).kind == 'mmcae'
    assert locate(to_official(state)).kind == 'official'
    assert locate(theirs).kind == 'mmpretrain'
    assert locate(tiny_cae().backbone.state_dict()).kind == 'encoder'
    alone = {k.removeprefix('backbone.'): v for k, v in theirs.items() if k.startswith('backbone.')}
    assert locate(alone).kind == 'mmpretrain-encoder'


def test_unknown_kind():
    with pytest.raises(CheckpointError, match='keys begin with conv1.weight, fc.bias .* Known are those of mmcae'):
        locate({'conv1.weight': torch.zeros(1), 'fc.bias': torch.zeros(1)})


def test_kind_of_the_authors_layout():
    assert locate(example('cae')['state_dict']).kind == 'official'


def test_nothing_here_switches_the_protection_off(repository):
    """No torch.load in the package or the tools goes without weights_only=True."""
    for folder in ('mmcae', 'tools'):
        for path in (repository / folder).rglob('*.py'):
            text = Path(path).read_text()
            assert 'weights_only=False' not in text, path
            for call in text.split('torch.load(')[1:]:
                assert 'weights_only=True' in call.split('\n\n')[0], path


def test_weights_are_known_by_their_values():
    state = dict(a=torch.arange(6.0).view(2, 3), b=torch.tensor(1))
    assert weights_checksum(state) == weights_checksum(dict(reversed(state.items())))
    others = [dict(state, a=state['a'] + 1), dict(state, a=state['a'].view(3, 2)), dict(state, a=state['a'].int()), dict(b=state['b'])]
    assert len({weights_checksum(other) for other in (state, *others)}) == 5
