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


def test_store_then_pretrain(run_tool, options, tmp_path, repository):
    arguments = (RECIPE, tmp_path / 'tokens', '--views', '2', '--workers', '1', '--cfg-options', *options)
    code, output = run_tool(TOOL, *arguments)
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
    code, output = run_tool(*command)
    assert code == 0 and 'mlm_acc' in output and (tmp_path / 'work/iter_3.pth').exists(), output

    # Other files than those that the store was made of.
    for path in (tmp_path / 'images').rglob('*.*g'):
        path.rename(path.with_name(f'new_{path.name}'))
    code, output = run_tool(*command)
    assert code == 2 and 'was made for other files' in output and 'Traceback' not in output, output


def test_what_cannot_be_stored(run_tool, options, tmp_path):
    changes = ['--cfg-options', *(option for option in options if 'target_generator' not in option)]
    code, output = run_tool(TOOL, 'configs/digits/cae_pixels_vit-digits.py', tmp_path / 'out', *changes)
    assert code == 2 and 'PixelTargets are not' in output and not (tmp_path / 'out').exists(), output
    code, output = run_tool(TOOL, RECIPE, tmp_path / 'out', '--cfg-options', *options, 'data_root=absent')
    assert code == 2 and 'absent' in output and 'does not exist' in output
    for path in (tmp_path / 'images').rglob('*.*g'):
        path.write_bytes(b'broken')
    code, output = run_tool(TOOL, RECIPE, tmp_path / 'out', '--views', '1', '--cfg-options', *options)
    assert code == 2 and 'None of the 8 images can be read' in output and 'Traceback' not in output
    assert len((tmp_path / 'out/unreadable.tsv').read_text().splitlines()) == 8
