"""DALL-E's tokenizer gives the authors' ids, from every kind of file people have of it."""

import re
import sys

import pytest
import torch
import torch.nn.functional as F
from reference import golden
from torch import nn

from mmcae.models import DALLETokenizer
from mmcae.models.targets.dalle import Decoder
from mmcae.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def theirs():
    """mmpretrain's encoder, small, with random weights."""
    from mmpretrain.models.selfsup.cae import DALLEEncoder

    return DALLEEncoder(n_hid=16, n_blk_per_group=2, vocab_size=40)


@pytest.fixture
def checkpoint(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / 'dalle_encoder.pth')
    return tmp_path / 'dalle_encoder.pth'


def logits_of(tokenizer, images):
    """(B, V, h, w), as the encoders of OpenAI and mmpretrain give them."""
    grid = tokenizer.token_grid(images.shape[-2:])
    return tokenizer.logits(tokenizer.embed(images)).transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize('name', ['dalle', *golden.present('dalle_encoder_tiny.pt')])
def test_same_as_the_reference(name, tmp_path):
    tensors = golden.load(name)
    torch.save(tensors['state_dict'], tmp_path / 'encoder.pth')
    tokenizer = DALLETokenizer(tmp_path / 'encoder.pth')
    assert tokenizer.vocab_size == tensors['config']['vocab_size']
    torch.testing.assert_close(logits_of(tokenizer, tensors['input']), tensors['logits'], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.tokenize(tensors['input']), tensors['tokens'])
    view = (tensors['image01'] * 255 - tokenizer.mean) / tokenizer.std
    torch.testing.assert_close(view, tensors['input'])


def test_same_as_mmpretrain(theirs, checkpoint, images):
    tokenizer = DALLETokenizer(checkpoint)
    expected = theirs(images)
    torch.testing.assert_close(logits_of(tokenizer, images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.tokenize(images), expected.argmax(1))


def test_full_size():
    """The sizes of the released weights: 53.8 million of them in the encoder, 14x14 tokens for 112 pixels."""
    tokenizer = DALLETokenizer(checkpoint=None)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 53_786_240
    ids = tokenizer.targets(torch.rand(1, 3, 112, 112), torch.arange(0, 196, 2)[None])
    assert ids.shape == (1, 98) and tokenizer.vocab_size == 8192


def test_compute_dtype(checkpoint, images):
    tokenizer = DALLETokenizer(checkpoint, dtype='bfloat16')
    weights = {name: weight.dtype for name, weight in tokenizer.encoder.named_parameters()}
    assert {dtype for name, dtype in weights.items() if name.startswith('blocks')} == {torch.bfloat16}
    assert weights['output.weight'] == torch.float32
    exact = DALLETokenizer(checkpoint)
    error = (logits_of(tokenizer, images) - logits_of(exact, images)).abs().max()
    assert 0 < error < 0.1 * logits_of(exact, images).abs().max()
    # Its precision is its own business, not that of the model it is in.
    assert all(weight.dtype == torch.float32 for weight in exact.double().parameters())
    assert exact.tokenize(images).shape == (4, 4, 6)
    with pytest.raises(ConfigError, match='float8'):
        DALLETokenizer(checkpoint, dtype='float8')


def test_inside_a_checkpoint_of_mmpretrain(theirs, tmp_path, images):
    state = {f'target_generator.{key}': value for key, value in theirs.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **{'backbone.cls_token': torch.zeros(1, 1, 8)})), tmp_path / 'cae.pth')
    assert torch.equal(DALLETokenizer(tmp_path / 'cae.pth').tokenize(images), theirs(images).argmax(1))


def test_openai_pickle(theirs, tmp_path, images, monkeypatch):
    """The whole module, of classes that cannot be imported any more."""
    package = type(sys)('dall_e')
    renamed = {}
    for name in ('Conv2d', 'EncoderBlock', 'DALLEEncoder'):
        ours = type(name, (nn.Module,), {'__module__': 'dall_e'})
        renamed[name] = ours
        setattr(package, name, ours)
    monkeypatch.setitem(sys.modules, 'dall_e', package)
    expected = theirs(images).argmax(1)
    for module in theirs.modules():
        module.__dict__.pop('_params_init_info', None)
        module.__class__ = renamed.get(type(module).__name__, module.__class__)
    torch.save(theirs, tmp_path / 'encoder.pkl')
    monkeypatch.delitem(sys.modules, 'dall_e')
    assert torch.equal(DALLETokenizer(tmp_path / 'encoder.pkl').tokenize(images), expected)


def test_missing_file_names_path_and_command(tmp_path):
    path = tmp_path / 'tokenizers' / 'dalle_encoder.pth'
    command = re.escape('mmcae convert encoder.pkl data/tokenizers/dalle_encoder.pth')
    with pytest.raises(CheckpointError, match=f'{re.escape(str(path))}.*{command}'):
        DALLETokenizer(path)


def test_other_weights_are_refused(theirs, checkpoint, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match="no weights of DALL-E's encoder: its keys begin with weight, bias"):
        DALLETokenizer(tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match='the other half'):
        DALLETokenizer(checkpoint, decoder_checkpoint=checkpoint)
    state = theirs.state_dict()
    state.pop('blocks.group_3.block_2.res_path.conv_2.b')
    torch.save(state, checkpoint)
    with pytest.raises(CheckpointError, match=r'1 missing: blocks.group_3.block_2.res_path.conv_2'):
        DALLETokenizer(checkpoint)


def test_decoder(checkpoint, tmp_path):
    """Against the architecture written out step by step, over one-hot vectors."""
    decoder = Decoder(initial=8, hidden=16, blocks_per_group=2, vocab_size=40)
    names = {'input.': 'blocks.input.', 'output.': 'blocks.output.conv.'}
    state = {re.sub('^(input|output)[.]', lambda m: names[m[0]], key): value for key, value in decoder.state_dict().items()}
    state = {re.sub('weight$', 'w', re.sub('bias$', 'b', key)): value for key, value in state.items()}
    torch.save(state, tmp_path / 'decoder.pth')

    def convolve(x, name):
        weight = state[f'{name}.w']
        return F.conv2d(x, weight, state[f'{name}.b'], padding=weight.shape[-1] // 2)

    ids = torch.randint(40, (2, 3, 5))
    x = convolve(F.one_hot(ids, 40).permute(0, 3, 1, 2).float(), 'blocks.input')
    for group in range(1, 5):
        for block in range(1, 3):
            name = f'blocks.group_{group}.block_{block}'
            y = x
            for i in range(1, 5):
                y = convolve(y.relu(), f'{name}.res_path.conv_{i}')
            x = (convolve(x, f'{name}.id_path') if f'{name}.id_path.w' in state else x) + y / 8**2
        if group < 4:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = convolve(x.relu(), 'blocks.output.conv')[:, :3].sigmoid()

    tokenizer = DALLETokenizer(checkpoint, decoder_checkpoint=tmp_path / 'decoder.pth')
    drawn = tokenizer.decode(ids)
    assert drawn.shape == (2, 3, 24, 40) and not drawn.requires_grad
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-5)
    assert [state[f'blocks.group_1.block_1.res_path.conv_{i}.w'].shape[-1] for i in range(1, 5)] == [1, 3, 3, 3]
    with pytest.raises(ConfigError, match='decoder_checkpoint'):
        DALLETokenizer(checkpoint).decode(ids)
