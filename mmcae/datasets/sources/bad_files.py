"""An image that cannot be read gives its place to another one, and is reported: what data sets of unlabelled images have in common."""

import numpy as np

from ...utils.errors import DataError, StorageError


class ReplaceBadFiles:
    """Mixin of a data set for pretraining: one damaged file among millions must neither end a run nor go unnoticed.

    A sample for which the pipeline raises a DataError is replaced by another sample of the data set, unless it is a StorageError, which
    tells nothing about the file and ends the run. Which one depends on its index alone, so that runs, workers and processes agree. The
    replacement carries in its metainfo what it stands for: `bad_files`, a list of (path, reason), which `mmcae.Checks` collects,
    counts and writes down.

    Goes before mmengine's BaseDataset in the list of bases: it overrides `prepare_data`, and needs `get_data_info` (with `img_path`, the
    name to report) and a pipeline that ends in PackInputs.

    Raises:
        StorageError: The storage or the memory fails, and has failed for a while.
        DataError: No image was found in `MAX_TRIES` tries, or in all of a smaller data set; or `test_mode` is set, where a metric must not
            be computed on other images than were asked for.
    """

    # With half of a data set damaged this many tries fail in a row once in 10^15 samples.
    MAX_TRIES = 50

    def prepare_data(self, idx):
        if self.test_mode:
            return super().prepare_data(idx)
        bad = []
        for candidate in self.candidates(idx):
            try:
                data = super().prepare_data(candidate)
            except StorageError:
                raise
            except DataError as error:
                bad.append((printable(self.get_data_info(candidate)['img_path']), printable(str(error))))
                continue
            if bad:
                data['data_samples'].set_metainfo(dict(bad_files=bad))
            return data
        raise DataError(
            f'{len(bad)} of {len(self)} files were tried and none can be read: is this the right folder, and has everything been copied? '
            f'The first: {bad[0][1]}'
        )

    def candidates(self, idx):
        """`idx`, then others in an order that depends on it alone, each once; the random state of the pipeline is not touched.

        Args:
            idx (int): Of a sample, below `len(self)`.

        Yields:
            int: The next sample to try.
        """
        yield idx
        rng, tried = np.random.default_rng(idx), {idx}
        while len(tried) < min(self.MAX_TRIES, len(self)):
            other = int(rng.integers(len(self)))
            if other not in tried:
                tried.add(other)
                yield other


def printable(text):
    """A text as it can stand in a line of a log: no line breaks or tabs, and nothing that UTF-8 cannot encode.

    Args:
        text (str): Such as a path; names that are no UTF-8 hold surrogates in Python.

    Returns:
        str: The same with such characters written as escapes.
    """
    for character, escape in (('\n', r'\n'), ('\r', r'\r'), ('\t', r'\t')):
        text = text.replace(character, escape)
    return text.encode('utf-8', 'backslashreplace').decode()
