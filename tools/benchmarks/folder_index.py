"""How long it takes to find a million images, to remember them, and what that costs each loader worker in memory.

Makes a tree of empty files and compares `mmcae.ImageFolder` with mmpretrain's `CustomDataset`, each in processes of its own, in the same
run: building from nothing, starting again, peak memory, and the memory that a forked loader worker no longer shares once it has gone
through all files.

    python tools/benchmarks/folder_index.py --files 1000000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_FOLDER = 1000
CONTENDERS = {
    'mmcae.ImageFolder': dict(type='mmcae.ImageFolder'),
    'CustomDataset': dict(type='mmpretrain.CustomDataset', with_label=False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', type=int, default=1_000_000, help='how many (default: %(default)s)')
    parser.add_argument('--folder', type=Path, help='where the tree is made, and removed at the end (default: the system temporary folder)')
    parser.add_argument('--out', type=Path, help='write the figures here, as JSON')
    parser.add_argument('--measure', nargs=2, metavar=('CONTENDER', 'TREE'), help=argparse.SUPPRESS)  # the processes of its own
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    if args.files < 1:
        parser.error('--files must be positive')
    from mmcae.commands.arguments import check_arguments  # after the options are read: --help must not wait for torch
    from mmcae.utils.errors import one_line_errors

    with one_line_errors():
        check_arguments(args, outputs=dict(out=()))
        compare(args)


def compare(args):
    """Time both contenders over one tree, and show the figures."""
    with tempfile.TemporaryDirectory(dir=args.folder) as tree, tempfile.TemporaryDirectory() as cache:
        os.environ['MMCAE_CACHE'] = cache
        began = time.perf_counter()
        make_tree(Path(tree), args.files)
        print(f'Made {args.files:,} empty files in {time.perf_counter() - began:.0f} s')
        figures = {}
        for name in CONTENDERS:
            figures[name] = dict(first=run(name, tree), again=run(name, tree))
        figures['mmcae.ImageFolder']['index_bytes'] = sum(path.stat().st_size for path in Path(cache, 'indexes').glob('*.index'))
    show(figures, args.files)
    if args.out:
        args.out.write_text(json.dumps(dict(files=args.files, **figures), indent=1) + '\n')


def make_tree(tree, files):
    """Files named as in ImageNet, 1,000 in each folder; then a pause, after which an index trusts the times of change."""
    for start in range(0, files, PER_FOLDER):
        folder = tree / f'n{start // PER_FOLDER:08d}'
        folder.mkdir()
        for number in range(start, min(start + PER_FOLDER, files)):
            os.close(os.open(folder / f'{folder.name}_{number:08d}.JPEG', os.O_CREAT | os.O_WRONLY))
    time.sleep(3)


def run(name, tree):
    """The figures of one contender, from a process of its own."""
    command = [sys.executable, __file__, '--measure', name, tree]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(name, tree):
    """Build a data set and go through it in a forked worker.

    Returns:
        dict: `seconds` to build, `peak` and `before` (bytes of resident memory, with and without the data set), `worker` (bytes that a
        worker has to itself after going through all files), `samples`.
    """
    from mmengine.registry import init_default_scope

    import mmcae.datasets  # noqa: F401
    from mmcae import compat
    from mmcae.registry import DATASETS

    compat.import_mmpretrain()
    import mmpretrain.datasets  # noqa: F401

    init_default_scope('mmpretrain')
    before = peak_memory()
    began = time.perf_counter()
    dataset = DATASETS.build(dict(data_root=tree, **CONTENDERS[name]))
    seconds = time.perf_counter() - began
    return dict(seconds=seconds, before=before, peak=peak_memory(), worker=worker_memory(dataset), samples=len(dataset))


def peak_memory():
    """Largest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker_memory(dataset):
    """Bytes that a forked process has to itself after looking at every file of a data set, beyond what it has without."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = private_memory()
        for index in range(len(dataset)):
            dataset.get_data_info(index)
        os.write(writer, str(private_memory() - before).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return int(text)


def private_memory():
    """Bytes of memory that this process shares with nobody; what it maps from a file is the system's, even while it is the only reader."""
    total, sizes = 0, {}
    for line in [*Path('/proc/self/smaps').read_text().splitlines(), '0-0 end']:
        name, *words = line.split()
        if name.endswith(':'):
            sizes[name] = words[0]
        else:  # the head of the next mapping
            private = sum(int(sizes.get(key, 0)) for key in ('Private_Clean:', 'Private_Dirty:'))
            total += min(private, int(sizes.get('Anonymous:', 0)))
            sizes = {}
    return 1024 * total


def show(figures, files):
    """Print a table, and the ratios."""
    print(f'{files:,} files, {PER_FOLDER:,} in each folder')
    print(f'{"":20}{"first":>10}{"again":>10}{"peak memory":>14}{"per worker":>12}')
    for name, values in figures.items():
        first, again = values['first'], values['again']
        peak, worker = (first['peak'] - first['before']) / 1e6, first['worker'] / 1e6
        print(f'{name:20}{first["seconds"]:8.1f} s{again["seconds"]:8.2f} s{peak:11.0f} MB{worker:9.1f} MB')
    ours, theirs = figures['mmcae.ImageFolder'], figures['CustomDataset']
    print(f'The index: {ours["index_bytes"] / 1e6:.0f} MB, {ours["index_bytes"] / files:.1f} bytes a file')
    ratios = {label: theirs[label]['seconds'] / ours[label]['seconds'] for label in ('first', 'again')}
    print(f'CustomDataset / ImageFolder: {ratios["first"]:.1f}x the first time, {ratios["again"]:.1f}x after that')


if __name__ == '__main__':
    main()
