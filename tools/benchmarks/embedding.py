"""Features of many tiles by `mmcae embed`, against a plain loop with timm's model and transforms and torch's DataLoader.

    OMP_NUM_THREADS=1 python tools/benchmarks/embedding.py --images 20000 --json work_dirs/benchmarks/embedding.json

The same generated JPEG files and the same random ViT, one process each and no loader workers, so that a second of computing is one of one
core. Both write cls tokens to a file, which have to be the same before anything is reported: images per second of computing, from the start
of the process to its end, and the memory that it holds during the last four fifths of its time. Linux only: memory is read from /proc.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS, PLAIN = 'mmcae embed', 'plain loop'
CROP = 224 / 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=20000, help='how many tiles (default: %(default)s)')
    parser.add_argument('--size', type=int, default=96, help='of a tile, in pixels (default: %(default)s)')
    parser.add_argument('--width', type=int, default=192, help='of the encoder (default: %(default)s, a ViT-Ti)')
    parser.add_argument('--depth', type=int, default=12, help='of the encoder (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=64, help='images at a time (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write the results there')
    parser.add_argument('--plain', type=Path, metavar='FOLDER', help=argparse.SUPPRESS)  # the process of the plain loop
    args = parser.parse_args()
    if min(args.images, args.depth, args.batch_size) < 1:
        parser.error('--images, --depth and --batch-size must be at least 1')
    if min(args.size, args.width) < 64 or args.size % 16 or args.width % 64:
        parser.error('--size must be a multiple of 16, --width of 64, and both at least 64')
    if args.plain:
        return plain_loop(args, args.plain)
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, outputs=dict(json=()))
        compare(args)


def compare(args):
    import timing
    import torch

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_tiles(folder / 'tiles', args.images, args.size)
        torch.save(model_of(args).state_dict(), folder / 'encoder.pth')
        embed = ('-m', 'mmcae', 'embed', folder / 'encoder.pth', folder / 'tiles', '--out', folder / 'embed.npz')
        options = ('--img-size', args.size, '--num-heads', args.width // 64, '--batch-size', args.batch_size)
        commands = {OURS: (*embed, *options, '--workers', 0, '--device', 'cpu'), PLAIN: (__file__, *sys.argv[1:], '--plain', folder)}
        for name, command in commands.items():
            seconds, memory = run(command)
            settled = memory[len(memory) // 5 :]
            row = {'contender': name, 'images / s and core': args.images / seconds}
            rows.append(row | {'MB at least': min(settled) / 1e6, 'MB at most': max(settled) / 1e6})
        compare_features(folder)
    ratio = rows[0]['images / s and core'] / rows[1]['images / s and core']
    title = f'Features of {args.images:,} tiles of {args.size} pixels, ViT of width {args.width} and depth {args.depth}'
    timing.report(title, rows, torch.device('cpu'), dict(ours_vs_plain=ratio), args.json)


def make_tiles(folder, count, size):
    """JPEG files of coloured noise, coarse and fine, 1,000 in each folder."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f'{number // 1000:03d}' / f'{number:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse) + random.normal(0, 8, (size, size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def model_of(args):
    """A random ViT of timm's that mmcae reads, too."""
    import timm
    import torch

    torch.manual_seed(0)
    shape = dict(img_size=args.size, embed_dim=args.width, depth=args.depth, num_heads=args.width // 64)
    return timm.create_model('beit_base_patch16_224', num_classes=0, global_pool='token', **shape).eval()


def plain_loop(args, folder):
    """What one writes without mmcae; all features are kept in memory until the end."""
    import numpy as np
    import timm.data
    import torch
    from torchvision.datasets.folder import pil_loader

    model = model_of(args)
    transform = timm.data.create_transform(args.size, crop_pct=CROP, interpolation='bicubic')

    class Tiles(torch.utils.data.Dataset):
        files = sorted((folder / 'tiles').rglob('*.jpg'))

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return transform(pil_loader(self.files[index]))

    with torch.inference_mode():
        features = [model(images).numpy() for images in torch.utils.data.DataLoader(Tiles(), args.batch_size)]
    np.savez(folder / 'plain.npz', cls=np.concatenate(features))


def run(command):
    """Run a Python process.

    Returns:
        tuple[float, list[int]]: Its seconds of computing, and bytes of resident memory, looked at every half second.
    """
    before, memory = resource.getrusage(resource.RUSAGE_CHILDREN), []
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        pages = Path(f'/proc/{process.pid}/statm').read_text().split()
        memory.append(int(pages[1]) * os.sysconf('SC_PAGE_SIZE'))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f'This command failed: {" ".join(map(str, command))}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, list(filter(None, memory))  # none of an ended process


def compare_features(folder):
    """Both have computed the same, but for rounding where images are resized."""
    import numpy as np

    ours, plain = (np.load(folder / name)['cls'] for name in ('embed.npz', 'plain.npz'))
    difference = np.abs(ours - plain).max() / plain.std() if ours.shape == plain.shape else np.inf
    if difference > 0.05:
        raise SystemExit(f'{OURS} and {PLAIN} compute other features: they differ by {difference:.2f} of their standard deviation')


if __name__ == '__main__':
    main()
