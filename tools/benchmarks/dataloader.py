"""Loading images for pretraining: mmcae's pipelines against mmpretrain's, on the same JPEG files and one core.

    OMP_NUM_THREADS=1 python tools/benchmarks/dataloader.py --json work_dirs/benchmarks/dataloader.json
    python tools/benchmarks/dataloader.py --folder /path/to/jpegs

What is timed is what one loader worker does: read, decode, flip, crop twice, mask, collate. The files are generated, with the spectrum of
photographs, or your own. mmpretrain's pipeline is that of its CAE config, with the number of masked patches set right. Before anything is
timed, all have to decode the same pixels and to make the same views of the same boxes, within what their ways of resizing differ by.
--device is where the data preprocessor then normalises the batch, which is reported apart; and where it makes the views that a pipeline
leaves to it.
"""

import argparse
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path

from contenders import OURS, RECIPE, THEIR_CONFIG, THEIRS, metered
from options import add_timing_options, size_of

BY_PIL, REDUCED, PACKED = f'{OURS}, resized by PIL', f'{OURS}, reduced', f'{OURS}, packed'
BY_DEVICE = f'{OURS}, views on the device'
# Mean difference of views of the same box, in levels of 255. OpenCV does not average what it leaves out, PIL and torch do.
TOLERANCES = {THEIRS: 16, BY_PIL: 0.3, BY_DEVICE: 0.3, REDUCED: 5, PACKED: 0}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--sizes',
        type=size_of,
        nargs='+',
        default=[(500, 375), (1300, 1000)],
        metavar='WxH',
        help='of the files (default: 500x375 1300x1000)',
    )
    parser.add_argument('--images', type=int, default=64, help='files of each size (default: %(default)s)')
    parser.add_argument('--folder', type=Path, help='JPEG files of your own, in place of generated ones')
    parser.add_argument('--batch-size', type=int, default=32, help='images that are collated (default: %(default)s)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where batches are normalised (default: %(default)s)')
    add_timing_options(parser, rounds=9)
    args = parser.parse_args()
    if min(args.images, args.batch_size, args.rounds) < 1:
        parser.error('--images, --batch-size and --rounds must be at least 1')
    return args


def main():
    args = parse_args()
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, outputs=dict(json=()))
        compare(args)


def compare(args):
    import cv2
    import timing
    import torch

    device = timing.device_of(args.device)
    torch.set_num_threads(1)  # as in a loader worker
    cv2.setNumThreads(0)
    rows, results = [], dict(ours_vs_mmpretrain={}, settings={})
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in sources(args, Path(temporary)):
            datasets = contenders(folder, Path(temporary, f'packed {name}'))
            check(datasets)
            loaders = {who: build(dataset, args.batch_size) for who, dataset in datasets.items()}
            images, size = len(datasets[OURS]), mean_size(datasets[OURS])
            runs = {who: partial(load, loader) for who, loader in loaders.items()}
            times = timing.take_turns(runs, args.rounds, device, clock=args.clock)
            results['settings'][name] = dict(images=images, bytes_per_file=size, seconds=times)
            for who, loader in loaders.items():
                ratio = timing.ratio(times[THEIRS], times[who])
                if who != THEIRS:
                    results['ours_vs_mmpretrain'][f'{name} {who}'] = ratio
                row = {'files': name, 'KB': size / 1000, 'pipeline': who, 'images / s and core': images / statistics.median(times[who])}
                row['times mmpretrain'] = timing.show(ratio)
                row |= {f'{part} ms': 1000 * seconds / images for part, seconds in split(loader, timing.CLOCKS[args.clock]).items()}
                row[f'normalise on {args.device} ms'] = 1000 * normalise(who, loader, device, args.rounds)
                rows.append(row)
    timing.report(f'Loading JPEG files, batches of {args.batch_size}, {args.clock} clock', rows, device, results, args.json)


# ---------------------------------------------------------------- files


def sources(args, temporary):
    """Name and folder of every set of files."""
    if args.folder:
        yield args.folder.name, args.folder
        return
    for width, height in args.sizes:
        folder = temporary / f'{width}x{height}'
        folder.mkdir()
        for number in range(args.images):
            photograph(width, height, number).save(folder / f'{number:05d}.jpg', quality=92)
        yield folder.name, folder


def mean_size(dataset):
    """Bytes of a file."""
    return statistics.mean(Path(dataset.get_data_info(i)['img_path']).stat().st_size for i in range(len(dataset)))


def photograph(width, height, seed):
    """Noise with the spectrum of photographs, grey for the most part: as many bytes as a photograph of that size has at that quality."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    fall = 1 / np.maximum(distance, 1 / max(height, width)) ** 1.3
    fields = [np.fft.irfft2(fall * np.fft.rfft2(rng.normal(size=(height, width))), s=(height, width)) for _ in range(3)]
    planes = [128 + contrast * field / field.std() for contrast, field in zip((50, 15, 15), fields, strict=True)]
    return Image.fromarray(np.clip(np.dstack(planes), 0, 255).astype(np.uint8), 'YCbCr').convert('RGB')


# ---------------------------------------------------------------- the contenders


def contenders(folder, packed):
    """Name -> data set on the same files."""
    import mmpretrain
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import mmcae.datasets  # noqa: F401
    from mmcae import compat
    from mmcae.datasets.sources import packing
    from mmcae.registry import DATASETS
    from mmcae.utils.configs.loading import load_config

    compat.import_mmpretrain()
    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('benchmark', scope_name='mmpretrain')

    def ours(*changes, type='mmcae.ImageFolder', root=folder):
        cfg = load_config(RECIPE, list(changes)).train_dataloader.dataset
        return DATASETS.build(dict(cfg, type=type, data_root=str(root), data_prefix=''))

    theirs = Config.fromfile(Path(mmpretrain.__file__).parent / '.mim/configs' / THEIR_CONFIG).train_dataloader.dataset
    recipe = load_config(RECIPE)
    next(step for step in theirs.pipeline if step.type == 'BEiTMaskGenerator').num_masking_patches = recipe.num_masked
    their_dataset = DATASETS.build(dict(type='CustomDataset', data_root=str(folder), with_label=False, pipeline=theirs.pipeline))
    exact = ours()
    paths = [Path(exact.get_data_info(i)['img_path']).relative_to(folder).as_posix() for i in range(len(exact))]
    packing.pack(packing.SourceFiles(folder, paths), packed, {}, 500_000_000, 0, 0.0)
    return {
        THEIRS: their_dataset,
        OURS: exact,
        BY_PIL: ours('resize_backend=pillow'),
        BY_DEVICE: ours('resize_backend=device'),
        REDUCED: ours('reduced_decoding=True'),
        PACKED: ours(type='mmcae.PackedImages', root=packed),
    }


def build(dataset, batch_size):
    from torch.utils.data import DataLoader

    from mmcae.datasets import collate_views

    return DataLoader(dataset, batch_size, collate_fn=collate_views)


def load(loader):
    for _ in loader:
        pass


def transform_of(dataset, *names):
    """The transform of a pipeline that has one of these names."""
    return next(step for step in dataset.pipeline.transforms if type(step).__name__ in names)


STEPS = dict(  # part of the table -> the transforms that are it, ours and theirs
    decode=('LoadImage', 'LoadImageFromFile'),
    flip=('RandomFlip',),
    crop=('TwoViewCrop', 'RandomResizedCropAndInterpolationWithTwoPic'),
    mask=('BlockMaskGenerator', 'BEiTMaskGenerator'),
    pack=('PackInputs',),
)


def split(loader, clock):
    """Seconds of each part in one pass over the files."""
    with metered({part: [(transform_of(loader.dataset, *names), 'transform')] for part, names in STEPS.items()}, clock) as seconds:
        load(loader)
    return seconds


def normalise(who, loader, device, rounds):
    """Seconds per image from a batch as the loader gives it to the model's input: copied to the device, as float, normalised."""
    import timing

    from mmcae.registry import MODELS
    from mmcae.utils.configs.loading import load_config

    cfg = dict(load_config(RECIPE).data_preprocessor, to_rgb=who == THEIRS)
    preprocessor, batch = MODELS.build(cfg).to(device), next(iter(loader))

    def run():
        preprocessor(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), True)

    return statistics.median(timing.take_turns(dict(run=run), rounds, device)['run']) / len(batch['data_samples'])


# ---------------------------------------------------------------- do they compute the same?


def check(datasets):
    """Compare what is decoded, exactly, and the views of the same boxes, within tolerances."""
    import numpy as np

    found = {who: views(dataset) for who, dataset in datasets.items() if who != THEIRS}
    found[THEIRS] = their_views(datasets[THEIRS], datasets[OURS])
    for number in range(min(4, len(datasets[OURS]))):
        decoded = [transform_of(datasets[who], *STEPS['decode'])(datasets[who].get_data_info(number))['img'] for who in (THEIRS, OURS)]
        if not np.array_equal(decoded[0][..., ::-1], decoded[1]):
            raise SystemExit(f'{THEIRS} and {OURS} decode different pixels of {datasets[OURS].get_data_info(number)["img_path"]}')
    for who, pairs in found.items():
        for ours, exact in zip(pairs, found[OURS], strict=True):
            for a, b in zip(ours, exact, strict=True):
                difference = np.abs(a.astype(float) - b).mean() if a.shape == b.shape else np.inf
                if difference > TOLERANCES.get(who, 0):
                    raise SystemExit(f'{who} makes other views than {OURS}: they differ by {difference:.1f} levels of 255 on average')


def views(dataset, images=4):
    """Both views (h, w, 3) in RGB of the first images, not mirrored, with boxes drawn from fixed seeds."""
    import torch

    from mmcae.models.device_views import make_views

    pairs = []
    for number in range(min(images, len(dataset))):
        random.seed(number)
        info = dataset.get_data_info(number)
        if hasattr(dataset, 'reader'):
            info['img_bytes'] = dataset.reader.read(number)
        results = transform_of(dataset, *STEPS['decode'])(info)
        made = transform_of(dataset, *STEPS['crop'])(results)['img']
        if made[0].ndim == 1:  # a crop, of which the device makes the views
            made = [view[0].permute(1, 2, 0).numpy() for view in make_views(torch.from_numpy(made[0]), made[1][None], 'cpu')]
        pairs.append(made)
    return pairs


def their_views(dataset, ours, images=4):
    """The same of mmpretrain's pipeline, with our boxes."""
    crop, our_crop = transform_of(dataset, *STEPS['crop']), transform_of(ours, *STEPS['crop'])
    pairs = []
    for number in range(min(images, len(dataset))):
        results = transform_of(dataset, *STEPS['decode'])(dataset.get_data_info(number))
        random.seed(number)
        crop.get_params = lambda image, *_: our_crop.sample_box(*image.shape[:2])
        pairs.append([view[..., ::-1] for view in crop(results)['img']])
    del crop.get_params
    return pairs


if __name__ == '__main__':
    main()
