"""Test a checkpoint: print the metrics of a config's test set and write them to metrics.json in the work dir.

    mmcae test CONFIG CHECKPOINT
    mmcae test CONFIG CHECKPOINT --show-dir pictures    # predictions drawn into the images

The work dir may be that of a training, also while it runs. What cannot work ends with one line and exit code 2; MMCAE_TRACEBACK=1 in the
environment shows where it was raised.
"""

import json
from pathlib import Path

from .arguments import add_changes, add_launcher


def add_arguments(parser):
    parser.add_argument('config', help='a config file, or the name of one that comes with mmcae')
    parser.add_argument('checkpoint', help='a checkpoint of this very model')
    parser.add_argument('--work-dir', help='where metrics.json goes, and the log, into test/ (default: work_dirs/NAME_OF_THE_CONFIG)')
    parser.add_argument(
        '--out',
        help='also write the predictions. Classification: a .pkl file. Detection: a .pkl file, or a name that .bbox.json and .segm.json '
        "in COCO's format are appended to. Segmentation: a folder for label maps as .png",
    )
    parser.add_argument('--show-dir', help='draw the predictions into the test images and save them here')
    parser.add_argument(
        '--tta', action='store_true', help="average over the config's tta_pipeline (default: the image and its mirror image)"
    )
    add_changes(parser)
    add_launcher(parser)


def run(args):
    from ..compat import leave_distributed
    from ..datasets import check_data, read_images_alike
    from ..engine.launch import build_runner, require_checkpoint
    from ..utils.configs.loading import load_config, set_work_dir
    from ..utils.errors import ConfigError
    from ..utils.files import write_file

    cfg = load_config(args.config, [*args.changes, *args.cfg_options])
    if not cfg.get('test_dataloader') or cfg.get('test_evaluator') is None:
        raise ConfigError(f'{args.config} describes no test: it has no test_dataloader or no test_evaluator')
    require_checkpoint(args.checkpoint)
    check_data(cfg, ('test',))
    set_work_dir(cfg, args.work_dir, cfg.filename)
    path = Path(cfg.work_dir) / 'metrics.json'
    cfg.work_dir = str(path.parent / 'test')  # for the config and the log, which would take the place of a training's
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.out:
        write_predictions(cfg, args.out)
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.tta:
        if args.show_dir and cfg.get('default_scope') == 'mmpretrain':
            raise ConfigError('--show-dir cannot draw several views of an image: leave --tta out')
        augment_test(cfg)
    read_images_alike(cfg)
    runner = build_runner(cfg, args.launcher)
    metrics = runner.test()
    if runner.rank == 0:
        write_file(path, json.dumps({name: float(value) for name, value in metrics.items()}, indent=1) + '\n')
        print(f'Wrote {path}', flush=True)
    leave_distributed()


def write_predictions(cfg, out):
    """Have the test write its predictions, in the way of the library that makes them."""
    from ..utils.errors import ConfigError
    from .arguments import check_output, check_output_folder

    scope = cfg.get('default_scope')
    if scope == 'mmseg':
        check_output_folder(out, f'--out {out}')
    else:
        check_output(out, '--out')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    pickled = out.endswith(('.pkl', '.pickle'))
    if scope == 'mmseg':
        if pickled:
            raise ConfigError(f'--out {out}: segmentation writes label maps; name a folder')
        wanted = dict(output_dir=out)
        kinds = ('IoUMetric', 'CityscapesMetric')
    elif scope == 'mmdet' and not pickled:
        wanted = dict(outfile_prefix=out)
        kinds = ('CocoMetric',)
    else:
        if not pickled:
            raise ConfigError(f'--out {out}: name a .pkl file')
        dump = 'mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]
        return
    writers = [evaluator for evaluator in evaluators if evaluator['type'].split('.')[-1] in kinds]
    if not writers:
        raise ConfigError(f'--out {out}: none of the test_evaluators is a {" or ".join(kinds)}, which would write it')
    for evaluator in writers:
        evaluator.update(wanted)


def draw_predictions(cfg, folder):
    """Switch on the visualisation hook of the config's library, for every image; put it and its visualizer in where the config has none."""
    from mmengine.config import ConfigDict

    from .arguments import check_output_folder

    check_output_folder(folder, f'--show-dir {folder}')
    folder = str(Path(folder).resolve())
    hook, settings, visualizer = {
        'mmdet': ('mmdet.DetVisualizationHook', dict(draw=True, test_out_dir=folder), 'mmdet.DetLocalVisualizer'),
        'mmseg': ('mmseg.SegVisualizationHook', dict(draw=True, interval=1), 'mmseg.SegLocalVisualizer'),
    }.get(
        cfg.get('default_scope'),
        ('mmpretrain.VisualizationHook', dict(enable=True, interval=1, out_dir=folder), 'mmpretrain.UniversalVisualizer'),
    )
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('visualization', ConfigDict(type=hook)).update(settings)
    cfg.setdefault('visualizer', ConfigDict(type=visualizer, vis_backends=[dict(type='LocalVisBackend')]))
    if cfg.default_scope == 'mmseg':  # its hook has no folder of its own
        cfg.visualizer.save_dir = folder


def augment_test(cfg):
    """Wrap the model and the test pipeline for test-time augmentation, as each library does it."""
    from copy import deepcopy

    from mmengine.config import ConfigDict

    from ..utils.errors import ConfigError

    models = {
        'mmpretrain': dict(type='AverageClsScoreTTA'),
        'mmdet': dict(type='mmcae.MaskTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
        'mmseg': dict(type='SegTTAModel'),
    }
    scope = cfg.get('default_scope')
    if scope not in models:
        raise ConfigError(f'--tta: nothing known for default_scope={scope!r}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:  # wrappers
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg:
        *loading, pack = deepcopy(dataset.pipeline)
        if scope == 'mmdet':
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
            pack = dict(type='mmdet.PackDetInputs', meta_keys=keys)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*loading, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.get('tta_model', models[scope]), module=cfg.model)
