"""tools/model_converters/convert.py: files in, files out, loaded by the libraries they are for."""

import argparse
import os
import runpy
import sys

import mmpretrain.models  # noqa: F401
import pytest
import timm
import torch
from mmpretrain.models import BEiTViT
from reference.examples import example

from mmcae.apis import load_cae, load_encoder
from mmcae.checkpoints import encoder_of, load_state, metadata_of, to_mmpretrain, to_official
from mmcae.models import CAEViT
from mmcae.registry import MODELS
from mmcae.utils.errors import CheckpointError

TOOL = 'tools/model_converters/convert.py'
IMAGES = torch.linspace(-2, 2, 2 * 3 * 64 * 64).sin().reshape(2, 3, 64, 64)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)


@pytest.fixture
def convert(repository, monkeypatch, capsys):
    """Run the tool within this process; returns its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, arguments)])
        try:
            runpy.run_path(str(repository / TOOL), run_name='__main__')
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def source(tiny_cae, tmp_path):
    """Our own pretraining checkpoint, with the description that a run leaves in it."""
    model = tiny_cae().eval()
    views = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], second_mean=[0.0], second_std=[255.0])
    model.data_preprocessor = MODELS.build(dict(type='mmcae.ViewPreprocessor', **views))
    path = tmp_path / 'source.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=metadata_of(model), optimizer=dict(state={})), path)
    return model, path


def equal(found, wanted):
    return set(found) == set(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)


def timm_model(output):
    """Run the call that the tool printed, as a reader would."""
    line = next(line for line in output.splitlines() if line.startswith('timm.create_model('))
    return eval(line, dict(timm=timm)).eval()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_to_mmcae_and_official_and_back(convert, source, tmp_path, suffix):
    model, path = source
    there, back = tmp_path / f'official{suffix}', tmp_path / f'back{suffix}'
    code, output = convert(path, there, '--to', 'official')
    assert code == 0 and 'source.pth: 131 tensors, mmcae' in output and '182 tensors, official' in output and 'Left out' not in output
    assert equal(load_state(there), to_official(model.state_dict()))
    code, output = convert(there, back, '--to', 'mmcae')
    assert code == 0 and '182 tensors, official' in output and 'Left out: alignment_encoder (51)' in output
    assert equal(load_state(back), model.state_dict())


def test_official_checkpoint_with_everything_in_it(convert, tmp_path):
    """As the authors' code writes it: arguments, optimizer, the names of data parallelism, the older name of the alignment encoder."""
    reference = example('cae')
    state = {f'module.{key.replace("alignment_encoder.", "teacher.")}': value for key, value in reference['state_dict'].items()}
    args = argparse.Namespace(model='cae_base_patch16_224_8k_vocab', decoder_num_heads=12)
    torch.save(dict(model=state, optimizer=dict(state={}, param_groups=[]), epoch=299, scaler={}, args=args), tmp_path / 'cae.pth')
    code, output = convert(tmp_path / 'cae.pth', tmp_path / 'ours.pth', '--to', 'mmcae')
    assert code == 0 and 'Left out: teacher' in output
    config = reference['config']
    model = load_cae(tmp_path / 'ours.pth', config['num_heads'], config['decoder_num_heads'])
    out = model.double().predict(reference['image'].double(), reference['mask'])
    torch.testing.assert_close(out['logits'].flatten(0, 1), reference['logits'], rtol=0, atol=1e-9)


def test_encoder_alone(convert, source, tmp_path):
    model, path = source
    code, output = convert(path, tmp_path / 'encoder.pth', '--to', 'encoder')
    assert code == 0 and 'Left out: pos_embed (1), regressor (' in output and 'decoder (' in output
    assert equal(load_state(tmp_path / 'encoder.pth'), model.backbone.state_dict())
    # An encoder alone can be converted further, whatever it is for.
    for target in ('mmcae', 'official', 'mmpretrain'):
        code, output = convert(tmp_path / 'encoder.pth', tmp_path / f'{target}.pth', '--to', target)
        assert code == 0 and 'Left out' not in output
    assert equal(encoder_of(load_state(tmp_path / 'mmcae.pth')), model.backbone.state_dict())


@pytest.mark.parametrize(('pool', 'out_type'), [('token', 'cls_token'), ('avg', 'avg_featmap')])
@torch.no_grad()
def test_timm_computes_the_same(convert, source, tmp_path, pool, out_type):
    _, path = source
    code, output = convert(path, tmp_path / 'timm.pth', '--to', 'timm', '--pool', pool)
    assert code == 0, output
    theirs = timm_model(output)
    ours = load_encoder(path, out_type=out_type)
    torch.testing.assert_close(theirs(IMAGES), ours(IMAGES)[0], rtol=1e-5, atol=1e-5)
    # And back again.
    code, output = convert(tmp_path / 'timm.pth', tmp_path / 'back.pth', '--to', 'encoder')
    assert code == 0 and equal(load_state(tmp_path / 'back.pth'), ours.state_dict())


@torch.no_grad()
def test_timm_with_bias_tables_and_other_sizes(convert, tmp_path):
    arch = dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=96)
    settings = dict(use_rel_pos_bias=True, in_channels=4, patch_size=8, img_size=32, layer_scale_init_value=0)
    model = CAEViT(arch, **settings).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(model.state_dict(), tmp_path / 'encoder.pth')
    code, output = convert(tmp_path / 'encoder.pth', tmp_path / 'x.safetensors', '--to', 'timm', '--num-heads', 4)
    assert code == 0, output
    images = torch.randn(2, 4, 32, 32)
    torch.testing.assert_close(timm_model(output)(images), model(images)[0], rtol=1e-5, atol=1e-5)


def test_timm_needs_the_heads(convert, source, tmp_path):
    model, _ = source
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    code, output = convert(tmp_path / 'bare.pth', tmp_path / 'x.pth', '--to', 'timm')
    assert code == 2 and 'give --num-heads' in output
    assert not (tmp_path / 'x.pth').exists()


@pytest.mark.parametrize(('pool', 'out_type'), [('token', 'cls_token'), ('avg', 'avg_featmap')])
@torch.no_grad()
def test_mmpretrain_computes_the_same(convert, source, tmp_path, pool, out_type):
    _, path = source
    code, output = convert(path, tmp_path / 'mmpretrain.pth', '--to', 'mmpretrain', '--pool', pool)
    assert code == 0, output
    theirs = BEiTViT(
        arch=dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=192),
        img_size=64,
        out_type=out_type,
        final_norm=pool == 'token',
        use_abs_pos_emb=True,
        use_rel_pos_bias=False,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'mmpretrain.pth'), prefix='backbone.'),
    )
    theirs.init_weights()
    theirs.train(False)
    ours = load_encoder(path, out_type=out_type)
    torch.testing.assert_close(theirs(IMAGES)[0], ours(IMAGES)[0], rtol=1e-5, atol=1e-5)


def test_from_mmpretrain(convert, source, tmp_path):
    model, _ = source
    theirs = to_mmpretrain(model.state_dict()) | {'target_generator.blocks.input.w': torch.ones(2)}
    torch.save(dict(state_dict=theirs), tmp_path / 'mmpretrain.pth')
    code, output = convert(tmp_path / 'mmpretrain.pth', tmp_path / 'ours.pth', '--to', 'mmcae', '--from', 'mmpretrain')
    assert code == 0 and 'Left out: teacher (51), target_generator (1)' in output
    assert equal(load_state(tmp_path / 'ours.pth'), model.state_dict())
    # The tokenizer inside is worth having: mmpretrain's own file of it is gone from the net.
    code, output = convert(tmp_path / 'mmpretrain.pth', tmp_path / 'dalle.pth', '--to', 'tokenizer')
    assert code == 0 and equal(load_state(tmp_path / 'dalle.pth'), {'blocks.input.w': torch.ones(2)})
    code, output = convert(tmp_path / 'ours.pth', tmp_path / 'none.pth', '--to', 'tokenizer')
    assert code == 2 and 'ours.pth holds no tokenizer' in output


def test_wrong_from(convert, source, tmp_path):
    code, output = convert(source[1], tmp_path / 'x.pth', '--to', 'mmcae', '--from', 'official')
    assert code == 2 and "'pos_embed' belongs to no known part of CAE" in output


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'required: --to'),
        (('--to', 'jax'), "invalid choice: 'jax'"),
        (('--to', 'mmcae', '--pool', 'avg'), '--pool has no meaning with --to mmcae'),
        (('--to', 'tokenizer', '--num-heads', '4'), '--num-heads, --prefix, --norm and --from have no meaning with --to tokenizer'),
    ],
)
def test_arguments_that_make_no_sense(convert, source, tmp_path, arguments, message):
    code, output = convert(source[1], tmp_path / 'x.pth', *arguments)
    assert code == 2 and message in output


def test_unknown_format_of_the_destination(convert, source, tmp_path):
    code, output = convert(source[1], tmp_path / 'x.onnx', '--to', 'mmcae')
    assert code == 2 and 'must end in .pth, .pt or .safetensors' in output


def test_malicious_files_are_refused(convert, tmp_path):
    target = tmp_path / 'ran'
    for name, arguments in (('evil.pth', ('--to', 'mmcae')), ('evil.pkl', ())):
        torch.save(dict(state_dict=Malicious(target)), tmp_path / name)
        code, output = convert(tmp_path / name, tmp_path / 'x.pth', *arguments)
        assert code == 2 and f'{os.system.__module__}.system' in output.replace('posix', os.system.__module__), output
    assert not target.exists() and not (tmp_path / 'x.pth').exists()


def test_as_a_process(run_tool, source, tmp_path):
    """Start to end, in a process of its own; a file that is there already stays unless told otherwise."""
    model, path = source
    code, output = run_tool(TOOL, path, tmp_path / 'x.pth', '--to', 'encoder', timeout=300)
    assert code == 0 and 'x.pth: 51 tensors, encoder' in output, output
    (tmp_path / 'x.pth').write_text('mine')
    code, output = run_tool(TOOL, path, tmp_path / 'x.pth', '--to', 'encoder', timeout=300)
    assert code == 2 and 'x.pth exists' in output and '--overwrite' in output
    assert (tmp_path / 'x.pth').read_text() == 'mine' and 'Traceback' not in output


def test_force(convert, source, tmp_path):
    (tmp_path / 'x.pth').write_text('mine')
    code, _ = convert(source[1], tmp_path / 'x.pth', '--to', 'encoder', '--force')
    assert code == 0 and equal(load_state(tmp_path / 'x.pth'), source[0].backbone.state_dict())


def test_openai_pickle(convert, tmp_path, monkeypatch):
    """A pickled module of the package `dall_e`, which is not installed, becomes plain tensors; --to is not needed."""
    import types

    package = types.ModuleType('dall_e.encoder')
    encoder = type('Encoder', (torch.nn.Linear,), dict(__module__='dall_e.encoder'))
    package.Encoder = encoder
    monkeypatch.setitem(sys.modules, 'dall_e', types.ModuleType('dall_e'))
    monkeypatch.setitem(sys.modules, 'dall_e.encoder', package)
    module = encoder(2, 3)
    torch.save(module, tmp_path / 'encoder.pkl')
    monkeypatch.delitem(sys.modules, 'dall_e.encoder')
    code, output = convert(tmp_path / 'encoder.pkl', tmp_path / 'dalle.pth')
    assert code == 0 and "encoder.pkl: 2 tensors, OpenAI's" in output, output
    assert equal(load_state(tmp_path / 'dalle.pth'), module.state_dict())


# ---------------------------------------------------------------- what tensors do not tell


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_description_stays_with_the_tensors(convert, source, tmp_path, suffix):
    """Heads, grid, view and origin survive every way there and back."""
    model, path = source
    spec = load_encoder(path).spec
    assert spec.num_heads == 4 and spec.origin.method == 'CAE' and spec.view.mean == (123.675, 116.28, 103.53)
    previous = path
    for target in ('mmcae', 'official', 'mmpretrain', 'encoder', 'timm', 'encoder'):
        following = tmp_path / f'{target}_of_{previous.stem}{suffix}'
        code, output = convert(previous, following, '--to', target)
        assert code == 0, output
        assert load_encoder(following).spec == spec
        previous = following
    assert load_cae(tmp_path / f'official_of_mmcae_of_source{suffix}').description == model.description | dict(target=None)


def test_unknown_heads_are_said_and_asked_for(convert, tiny_cae, tmp_path):
    torch.save(tiny_cae().backbone.state_dict(), tmp_path / 'bare.pth')
    code, output = convert(tmp_path / 'bare.pth', tmp_path / 'x.safetensors', '--to', 'encoder')
    assert code == 0 and 'The number of heads is not known' in output and '--num-heads' in output
    with pytest.raises(CheckpointError, match='does not tell the number of heads of its encoder .* give num_heads='):
        load_encoder(tmp_path / 'x.safetensors')
    code, output = convert(tmp_path / 'bare.pth', tmp_path / 'y.safetensors', '--to', 'encoder', '--num-heads', 4)
    assert code == 0 and load_encoder(tmp_path / 'y.safetensors').spec.num_heads == 4


def test_one_of_several_models(convert, source, tmp_path):
    model, _ = source
    state = {f'module.backbone.{key}': value for key, value in model.backbone.state_dict().items()}
    torch.save(dict(student=state, teacher=state, epoch=3), tmp_path / 'dino.pth')
    code, output = convert(tmp_path / 'dino.pth', tmp_path / 'x.pth', '--to', 'encoder')
    assert code == 2 and "has 2 encoders: 'student.', 'teacher.'" in output and 'prefix' in output
    code, output = convert(tmp_path / 'dino.pth', tmp_path / 'x.pth', '--to', 'encoder', '--prefix', 'teacher.')
    assert code == 0 and equal(load_state(tmp_path / 'x.pth'), model.backbone.state_dict())
