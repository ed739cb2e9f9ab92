"""Fashion-MNIST as a class tree and a folder without labels: 70,000 photographs of clothing in ten classes (Zalando, MIT licence).

Reads the four IDX files, compressed or not, of the Debian package dataset-fashion-mnist or of torchvision, and writes

    classification/{train,val,test}/CLASS/*.png   50,000, 10,000 and 10,000 pictures; folders sort in the order of the official labels
    pretrain/tiles32/*.png                        the 50,000 of train without their labels (hard links, where the file system has them)
    fashion_mnist.json                            the checksums of the files that were read

test is the official test set. val is a sixth of each class of the official training set, the same in every conversion; files are called by
their number in the IDX file. The 28x28 grey pixels stand unchanged in the middle of 32x32, the side of the digits, in 2 pixels of black,
which is the ground of every picture.

    python tools/dataset_converters/fashion_mnist.py --out data/fashion

An interrupted conversion goes on with the folder in which it stopped.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 't-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot'.split()
PLACES = ('/usr/share/datasets/fashion-mnist', 'data/FashionMNIST/raw')  # the Debian package's, and torchvision's below data/
BELOW = ('.', 'raw', 'FashionMNIST/raw')  # where torchvision puts them in the folder that a user knows
REMEDY = (
    'Install the Debian package dataset-fashion-mnist, or fetch them by torchvision: '
    'python -c "from torchvision.datasets import FashionMNIST as F; F(\'data\', download=True)"; '
    '--source names the folder where they are elsewhere'
)
SIDE, MARGIN = 28, 2  # pixels; the margin makes 32 of 28
PICTURES = {'train': 'train-images-idx3-ubyte', 'test': 't10k-images-idx3-ubyte'}
LABELS = {'train': 'train-labels-idx1-ubyte', 'test': 't10k-labels-idx1-ubyte'}
# SHA-256 of the published files, uncompressed. MNIST, KMNIST and others have files of the same names, sizes and headers.
PUBLISHED = {
    'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
    'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
    't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
    't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
}
MARKER, VERSION = 'fashion_mnist.json', 1
FOLDERS = ('classification/train', 'classification/val', 'classification/test', 'pretrain/tiles32')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, help=f'folder of the IDX files (default: the first there is of {", ".join(PLACES)})')
    parser.add_argument('--out', type=Path, default=Path('data/fashion'), help='folder to write (default: %(default)s)')
    parser.add_argument(
        '--unpublished',
        action='store_true',
        help='take files of this format that are not the published ones, such as a part of them: results cannot be compared with others',
    )
    args = parser.parse_args()
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        try:
            convert(args)
        except KeyboardInterrupt:
            sys.exit('\nInterrupted. The same command goes on from here.')


def convert(args):
    from mmcae.utils.files import write_file
    from mmcae.utils.locks import locked
    from mmcae.utils.processes import interruptible

    claim(args.out)
    with locked(args.out), interruptible():
        before = read_marker(args.out)
        missing = [name for name in FOLDERS if not (args.out / name).is_dir()]
        if before and not missing and not args.source:
            print(f'{args.out} is complete already: nothing to do.')
            return
        pictures, labels, checksums = read_source(find_source(args.source), args.unpublished)
        marker = dict(version=VERSION, files=checksums)
        refuse_other(args.out, before, marker)
        write_file(args.out / MARKER, json.dumps(marker, indent=1) + '\n')
        for name in missing:
            write_folder(args.out, name, pictures, labels)
    counts = ', '.join(f'{name} {sum(len(files) for _, _, files in os.walk(args.out / name)):,}' for name in FOLDERS)
    print(f'{args.out} is complete: {counts} pictures')


# ---------------------------------------------------------------- the output folder


def claim(out):
    """Refuse a place that is somebody else's, before a lock file is put there."""
    from mmcae.utils.errors import DataError

    if out.is_file():
        raise DataError(f'{out} is a file: choose a folder with --out')
    others = sorted(path.name for path in out.iterdir() if path.name[0] != '.') if out.is_dir() else []
    if others and MARKER not in others:
        raise DataError(f'{out} is not empty and was not made by this tool ({others[0]} is in it): choose another folder with --out')


def read_marker(out):
    """What an earlier run has noted in a folder, or None."""
    from mmcae.utils.errors import DataError

    path = out / MARKER
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise DataError(f'{path} is damaged: delete {out}, or choose another folder with --out') from None


def refuse_other(out, before, marker):
    """Refuse a folder that was made from other files."""
    from mmcae.utils.errors import DataError

    if before and before != marker:
        raise DataError(f'{out} was made from other files or by another version of this tool: delete it, or choose another --out')


def write_folder(out, name, pictures, labels):
    """Write one of `FOLDERS`, which takes its name when it is complete."""
    from mmcae.utils.files import sync_folder
    from mmcae.utils.progress import Display

    final = out / name
    unfinished = final.with_name(f'{final.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    split = {'tiles32': 'train'}.get(final.name, final.name)
    official = 'test' if split == 'test' else 'train'
    indices, display = members(split, labels), Display()
    for done, index in enumerate(indices):
        display.status(lambda done=done: f'{name}: {done:,} of {len(indices):,} pictures')
        path = picture_path(index, labels[official][index])
        if name == 'pretrain/tiles32':
            link(out / 'classification/train' / path, unfinished / path.name)
        else:
            (unfinished / path).parent.mkdir(exist_ok=True)
            Image.fromarray(np.pad(pictures[official][index], MARGIN)).save(unfinished / path)
    display.close()
    os.sync()  # the pictures are on the disk before their folder has its name
    os.replace(unfinished, final)
    sync_folder(final.parent)
    display.event(f'{final}: {len(indices):,} pictures')


def members(split, labels):
    """Which pictures of the official training set (train, val) or test set (test) are in a split, ascending."""
    if split == 'test':
        return np.arange(len(labels['test']))
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(labels['train'] == label)) for label in range(len(CLASSES))]
    val = np.sort(np.concatenate([own[: max(1, round(len(own) / 6))] for own in drawn]))
    return val if split == 'val' else np.setdiff1d(np.arange(len(labels['train'])), val)


def picture_path(index, label):
    """Where a picture stands in the folder of its split. The number sorts the classes as their labels do."""
    return Path(f'{label}_{CLASSES[label]}', f'{index:05d}.png')


def link(old, new):
    try:
        os.link(old, new)
    except OSError:  # a file system without hard links
        shutil.copyfile(old, new)


# ---------------------------------------------------------------- the source


def find_source(folder):
    """The paths of the four files, by their names without .gz.

    Args:
        folder (Path | None): Where the user says they are.

    Raises:
        DataError: Some or all are absent.
    """
    from mmcae.utils.errors import DataError

    places = [folder / below for below in BELOW] if folder else [Path(place) for place in PLACES]
    for place in places:
        found = {name: next((path for path in (place / name, place / f'{name}.gz') if path.is_file()), None) for name in PUBLISHED}
        absent = [name for name, path in found.items() if path is None]
        if not absent:
            return found
        if len(absent) < len(found):
            raise DataError(f'{place} has some of the files of Fashion-MNIST, but no {" and no ".join(absent)} (or .gz). {REMEDY}')
    raise DataError(f'No files of Fashion-MNIST in {" or ".join(map(str, [folder] if folder else places))}. {REMEDY}')


def read_source(found, unpublished):
    """Read and check the four files.

    Args:
        found (dict): Their paths by name.
        unpublished (bool): Whether others than the published files are taken, of whatever number of pictures.

    Returns:
        tuple[dict, dict, dict]: Pictures, uint8 (N, 28, 28), and labels, uint8 (N,), both by 'train' and 'test'; checksums by name.

    Raises:
        DataError: It names the file, what is wrong with it, and what to do.
    """
    from mmcae.utils.errors import DataError

    contents = {name: uncompressed(path) for name, path in found.items()}
    arrays = {name: parse_idx(found[name], content, 3 if 'images' in name else 1) for name, content in contents.items()}
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    names = {checksum: name for name, checksum in PUBLISHED.items()}
    for name, checksum in checksums.items():
        if names.get(checksum, name) != name:
            raise DataError(f'{found[name]} has what belongs into {names[checksum]}: are training and test set exchanged?')
    for split in ('train', 'test'):
        pictures, labels = PICTURES[split], LABELS[split]
        if len(arrays[pictures]) != len(arrays[labels]):
            counts = f'{found[pictures]} has {len(arrays[pictures]):,} pictures, but {found[labels]} has {len(arrays[labels]):,} labels'
            raise DataError(f'{counts}: one of them belongs to another set. {REMEDY}')
        if arrays[pictures].shape[1:] != (SIDE, SIDE):
            raise DataError(f'{found[pictures]} has pictures of {arrays[pictures].shape[1:]} pixels, not {(SIDE, SIDE)}. {REMEDY}')
        if set(np.unique(arrays[labels])) != set(range(len(CLASSES))) or min(np.bincount(arrays[labels])) < 2:
            raise DataError(f'{found[labels]} has labels other than 0 to 9, or fewer than two of one. {REMEDY}')
    if not unpublished:
        for name, checksum in checksums.items():
            if checksum != PUBLISHED[name]:
                raise DataError(
                    f'{found[name]} is well-formed, but not the published file of Fashion-MNIST (its checksum differs). MNIST and others '
                    f'have files of the same names. {REMEDY}; --unpublished takes it nevertheless'
                )
    return *({split: arrays[name] for split, name in kind.items()} for kind in (PICTURES, LABELS)), checksums


def uncompressed(path):
    """The content of a file, compressed by gzip or not."""
    from mmcae.utils.errors import DataError
    from mmcae.utils.files import read_file

    content = read_file(path)
    if content[:2] != b'\x1f\x8b':
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} is damaged or cut off: {error}. Get it anew. {REMEDY}') from error


def parse_idx(path, content, dimensions):
    """An array out of the IDX format: 0, 0, 8 (bytes), the number of dimensions, their lengths as big-endian 32 bit, the values.

    Args:
        path (Path): For messages.
        content (bytes): The file, uncompressed.
        dimensions (int): How many it has to have: 3 for pictures, 1 for labels.
    """
    from mmcae.utils.errors import DataError

    if content[:3] != b'\0\0\x08' or len(content) < 4:
        raise DataError(f'{path} is no IDX file of bytes: it begins with {content[:4].hex(" ") or "nothing"}. {REMEDY}')
    if content[3] != dimensions:
        kinds = {1: 'labels', 3: 'pictures'}
        held = kinds.get(content[3], f'{content[3]} dimensions')
        raise DataError(f'{path} holds {held} where {kinds[dimensions]} belong: are files exchanged? {REMEDY}')
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], '>u4')[:dimensions].tolist() if len(content) >= start else []
    expected = start + int(np.prod(shape, dtype=object)) if shape else start
    if len(content) != expected:
        wrong = 'is cut off' if len(content) < expected else 'is too long'
        raise DataError(f'{path} {wrong}: it has {len(content):,} bytes (uncompressed), its header asks for {expected:,}. {REMEDY}')
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


if __name__ == '__main__':
    main()
