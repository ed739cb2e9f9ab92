"""tools/benchmarks/checkpointing.py: memory and time of a backbone with its activations kept and recomputed."""

import json

TOOL = 'tools/benchmarks/checkpointing.py'
CONFIG = 'configs/mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py'


def test_memory_of_a_small_backbone(run_tool, repository, tmp_path):
    """Recomputing needs less memory by what the blocks keep; images are padded as the detector pads them."""
    config = tmp_path / 'small.py'
    arch = dict(_delete_=True, embed_dims=96, num_layers=48, num_heads=2)
    config.write_text(
        f"_base_ = '{repository / CONFIG}'\nmodel = dict(backbone=dict(arch={arch!r}, out_indices=(11, 23, 35, 47), drop_path_rate=0.5))\n"
    )
    code, output = run_tool(
        'tools/benchmarks/checkpointing.py', config, '--size', '500x600', '--rounds', '1', '--json', tmp_path / 'x.json'
    )
    assert code == 0, output
    found = json.loads((tmp_path / 'x.json').read_text())
    assert found['shape'] == [1, 3, 512, 608] and '512x608' in output
    assert {name: len(times) for name, times in found['seconds'].items()} == dict(kept=1, recomputed=1)
    # 1217 tokens of 96 numbers, of which a block keeps at least 15 times as many: 6.7 MiB, and 48 blocks 320. The system
    # takes pages back and the C library holds some, more or less from run to run.
    saved = found['peak_memory_mib']['kept'] - found['peak_memory_mib']['recomputed']
    assert saved > 80, found
    assert [row['activations'] for row in found['rows']] == ['kept', 'recomputed']


def test_other_backbones_are_refused(run_tool):
    code, output = run_tool(
        'tools/benchmarks/checkpointing.py', 'configs/cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py', '--size', 'x'
    )
    assert code == 2 and "'x' is no size" in output
    code, output = run_tool(TOOL, 'configs/tokenizer/dvae_folder.py')
    assert code == 2 and 'its backbone is None' in output
