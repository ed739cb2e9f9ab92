"""tools/dataset_converters/store_tokens.py as a process, and a pretraining on what it stores."""

import pytest
import torch

from mmcae.models import PatchCodebook

TOOL = 'tools/dataset_converters/store_tokens.py'
RECIPE = 'configs/digits/cae_vit-digits.py'
STORED = """
_base_ = ['{recipe}']
tokens = '{tokens}'
model = dict(target_generator=dict(_delete_=True, type='mmcae.StoredTokens', folder=tokens), decoder=dict(num_outputs=None))
data_preprocessor = dict(second_mean=[0.0], second_std=[1.0])
pipeline = [
    _base_.train_pipeline[0], dict(type='mmcae.StoredViews', folder=tokens, size=32, interpolation='bilinear'), *_base_.train_pipeline[-2:]
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


@pytest.fixture
def options(image_folder, tmp_path):
    """The digits' recipe on eight images, with a tokenizer of random codes."""
    codebook = PatchCodebook(vocab_size=64, patch_size=8)
    codebook.quantizer.codes.data.normal_()
    codebook.quantizer.usage.fill_(1)
    torch.save(codebook.state_dict(), tmp_path / 'tokenizer.pth')
    return [
        f'data_root={image_folder()}',
        'train_dataloader.dataset.data_prefix=',
        f'model.target_generator.checkpoint={tmp_path}/tokenizer.pth',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    ]


def test_store_then_pretrain(fork_tool, options, tmp_path, repository):
    arguments = (RECIPE, tmp_path / 'tokens', '--views', '2', '--workers', '1', '--cfg-options', *options)
    code, output = fork_tool(TOOL, *arguments)
    assert code == 0 and output.endswith(f'{tmp_path}/tokens: 2 views of 8 images, 4x4 of 64 tokens each\n'), output
    (tmp_path / 'stored.py').write_text(STORED.format(recipe=repository / RECIPE, tokens=tmp_path / 'tokens'))
    changes = [option for option in options if 'target_generator' not in option]
    steps = [
        'max_iters=3',
        'default_hooks.logger.interval=1',
        'train_cfg.max_iters=3',
        'train_cfg.val_interval=3',
        'param_scheduler.0.warmup=1',
    ]
    steps += ['param_scheduler.0.end=3', 'default_hooks.checkpoint.interval=3']
    command = (
        'tools/train.py',
        tmp_path / 'stored.py',
        '--work-dir',
        tmp_path / 'work',
        '--no-validate',
        '--cfg-options',
        *changes,
        *steps,
    )
    code, output = fork_tool(*command)
    assert code == 0 and 'mlm_acc' in output and (tmp_path / 'work/iter_3.pth').exists(), output

    # Other names are no matter, other images are.
    for path in (tmp_path / 'images').rglob('*.*g'):
        path.rename(path.with_name(f'new_{path.name}'))
    code, output = fork_tool(*command)
    assert code == 0, output
    for path in (tmp_path / 'images').rglob('*.*g'):
        path.write_bytes(path.read_bytes() + b' ')
    code, output = fork_tool(*command)
    line = output.strip().splitlines()[-1]
    assert code == 2 and f'is none of the 8 images that {tmp_path}/tokens was made of' in line and 'Traceback' not in output, output


def test_the_tokenizer_is_known_by_its_weights_and_not_by_their_place(fork_tool, options, tmp_path):
    arguments = (RECIPE, tmp_path / 'tokens', '--views', '1', '--workers', '0', '--cfg-options', *options)
    code, output = fork_tool(TOOL, *arguments)
    assert code == 0, output
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'tokenizer.pth').rename(tmp_path / 'elsewhere/other name.pth')
    moved = f'model.target_generator.checkpoint={tmp_path}/elsewhere/other name.pth'
    code, output = fork_tool(TOOL, *arguments, moved)
    assert code == 0, output
    state = torch.load(tmp_path / 'elsewhere/other name.pth', weights_only=True)
    state['quantizer.codes'][0, 0] += 1
    torch.save(state, tmp_path / 'tokenizer.pth')
    code, output = fork_tool(TOOL, *arguments)
    line = output.strip().splitlines()[-1]
    assert code == 2 and f'{tmp_path}/tokens was made otherwise: weights changed since' in line, output


def test_what_cannot_be_stored(fork_tool, options, tmp_path):
    changes = ['--cfg-options', *(option for option in options if 'target_generator' not in option)]
    code, output = fork_tool(TOOL, 'configs/digits/cae_pixels_vit-digits.py', tmp_path / 'out', *changes)
    assert code == 2 and 'PixelTargets are not' in output and not (tmp_path / 'out').exists(), output
    code, output = fork_tool(TOOL, RECIPE, tmp_path / 'out', '--cfg-options', *options, 'data_root=absent')
    assert code == 2 and 'absent' in output and 'does not exist' in output
    for path in (tmp_path / 'images').rglob('*.*g'):
        path.write_bytes(b'broken')
    code, output = fork_tool(TOOL, RECIPE, tmp_path / 'out', '--views', '1', '--cfg-options', *options)
    assert code == 2 and 'None of the 8 images can be read' in output and 'Traceback' not in output
    assert len((tmp_path / 'out/unreadable.tsv').read_text().splitlines()) == 8
