"""Which images a data set has, and in which order, as one short text: to notice that files have come, gone or changed places."""

import hashlib
import os
import pickle
from collections.abc import Sequence

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

# Where data sets keep the path of a sample's file.
PATHS = ('img_path', 'image_path', 'video_path')


def fingerprint(dataset: Dataset) -> str:
    """A checksum over the names of a data set's samples, in their order.

    Names are the paths of the files below the folder that is common to all, so that the same data set in another place has the same
    fingerprint. What has no path counts by all that is known of it. A million images take a second or less where the data set knows its
    paths (`sample_names`, as ImageFolder and PackedImages have it), else two or three.

    Args:
        dataset: Any of mmengine's kind, or a wrapper of some (concatenated, repeated, balanced, folds, subsets). Of other data sets, whose
            index cannot be seen, the number of samples and the class.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f'{len(dataset)} samples'.encode())
    parts = list(dataset.datasets) if isinstance(dataset, ConcatDataset) else [getattr(dataset, 'dataset', None)]
    if parts != [None]:
        for part in parts:
            digest.update(fingerprint(part).encode())
        for name in ('repeat_indices', 'indices'):  # of mmengine's ClassBalancedDataset, and torch's Subset
            if getattr(dataset, name, None) is not None:
                digest.update(np.asarray(getattr(dataset, name), dtype=np.int64).tobytes())
    else:
        digest.update(b'\0'.join(names_of(dataset)))
    return digest.hexdigest()


def names_of(dataset: Dataset) -> list[bytes]:
    """What tells the samples of a data set apart."""
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    if hasattr(dataset, 'sample_names'):
        return below_common_folder(dataset.sample_names())
    if hasattr(dataset, 'data_bytes') and dataset.serialize_data:
        infos = map(pickle.loads, split(dataset.data_bytes, dataset.data_address))
    elif hasattr(dataset, 'data_list'):
        infos = dataset.data_list
    else:
        return [type(dataset).__qualname__.encode()]
    return below_common_folder([name_of(info) for info in infos])


def name_of(info) -> bytes:
    """The path of a sample by what the data set knows of it, or all of that."""
    if isinstance(info, dict):
        path = next((info[key] for key in PATHS if isinstance(info.get(key), str)), None)
        if path is not None:
            return os.fsencode(path)
    return pickle.dumps(info, protocol=4)


def below_common_folder(names: list[bytes]) -> list[bytes]:
    """Paths without the folder that all of them share."""
    if not names:
        return names
    first, last = min(names), max(names)
    common = os.path.commonprefix([first, last]).rfind(b'/') + 1
    return [name[common:] for name in names]


def split(buffer: np.ndarray, ends: Sequence[int]) -> list[bytes]:
    """The pieces of a buffer of bytes (uint8) that end at these places."""
    data, ends = buffer.tobytes(), np.asarray(ends).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
