"""From a folder of images to a tokenizer to a pretrained CAE, as a user does it: by tools/train.py, as processes."""

import torch
from PIL import Image

from mmcae.models import DiscreteVAE


def test_own_tokenizer_from_folder_to_pretraining(image_folder, run_tool, repository, tmp_path):
    folder = image_folder(classes=('slides/a', 'slides/b'), count=8, size=(40, 56))
    options = ['train_dataloader.num_workers=0', 'train_dataloader.batch_size=4', f'train_dataloader.dataset.data_root={folder}']
    sizes = ['model.vocab_size=16', 'model.channels=[8,16]', 'model.num_blocks=1', 'model.code_dim=8']
    schedule = ['train_cfg.max_epochs=2', 'param_scheduler.0.end=2', 'default_hooks.logger.interval=2']
    scale = ['train_dataloader.dataset.pipeline.1.size=32']
    code, output = run_tool(
        'tools/train.py',
        'configs/tokenizer/dvae_folder.py',
        '--work-dir',
        tmp_path / 'vae',
        '--cfg-options',
        *options,
        *sizes,
        *schedule,
        *scale,
    )
    assert code == 0, output
    assert all(name in output for name in ('loss_reconstruction: ', 'perplexity: ', 'codebook_usage: '))
    sheets = [Image.open(tmp_path / f'vae/reconstructions/epoch_{epoch}.png') for epoch in (1, 2)]
    assert sheets[0].size == sheets[1].size and sheets[0].tobytes() != sheets[1].tobytes()
    checkpoint = tmp_path / 'vae/epoch_2.pth'
    assert DiscreteVAE(checkpoint=checkpoint).tokenize(torch.rand(1, 3, 32, 32)).shape == (1, 8, 8)

    # Tokens of 4x4 pixels for patches of 8x8: the tokenizer's view has half the size of the encoder's.
    target = dict(_delete_=True, type='mmcae.DiscreteVAE', checkpoint=str(checkpoint))
    (tmp_path / 'cae.py').write_text(
        f"""_base_ = ['{repository}/configs/digits/cae_vit-digits.py']
model = dict(target_generator={target}, decoder=dict(num_outputs=16))
train_pipeline = [
    dict(type='mmcae.LoadImage'),
    dict(type='mmcae.TwoViewCrop', size=32, second_size=16),
    dict(type='mmcae.RandomMaskGenerator', grid=4, ratio=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(data_root='{folder}', data_prefix='', pipeline=train_pipeline))
train_cfg = dict(max_iters=2)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=0, end=2, by_epoch=False)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=2))
"""
    )
    code, output = run_tool('tools/train.py', tmp_path / 'cae.py', '--work-dir', tmp_path / 'cae', timeout=300)
    assert code == 0 and 'mlm_acc: ' in output, output
    state = torch.load(tmp_path / 'cae/iter_2.pth', weights_only=True)['state_dict']
    assert 'decoder.head.weight' in state and not any(key.startswith('target_generator') for key in state)
