"""Check that not too many image files are unreadable."""

from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process

from ...datasets.sources.bad_files import ReplaceBadFiles
from ...datasets.wrappers import innermost
from ...registry import CHECKS
from ...utils.errors import ConfigError, DataError
from ...utils.files import write_file
from .base import Check

LISTED = 20  # files that the log lists by name; bad_files.txt has all of them


@CHECKS.register_module('bad_files')
class BadFilesCheck(Check):
    """Collect the files that a data set could not read, over all loader workers and processes, and stop when there are too many.

    For `mmcae.ImageFolder` and `mmcae.PackedImages`, which replace such files. New ones are logged as a warning, and all of them listed at
    the end of each epoch (of a run counted in iterations: at its end). `bad_files.txt` in the work dir has one line for each: path, tab,
    reason. A resumed run continues this list. The processes exchange their lists every `interval` iterations, so that all of them stop
    after the same iteration.

    Args:
        max_share: Stop when more than this share of the data set's files is unreadable, 0 to 1. 0 stops at the first, 1 never.
        interval: Iterations between two exchanges.

    Raises:
        ConfigError: `max_share` is outside of [0, 1], or `interval` is not positive.
        DataError: While training, when too many files are unreadable.
    """

    def __init__(self, max_share: float = 0.01, interval: int = 50):
        if isinstance(max_share, bool) or not isinstance(max_share, int | float) or not 0 <= max_share <= 1:
            raise ConfigError(f'max_bad_files={max_share!r}: expected a share of all files, between 0 (none may be bad) and 1 (all may be)')
        if interval < 1:
            raise ConfigError(f'bad_files.interval={interval} must be at least 1')
        self.max_share, self.interval = max_share, interval
        self.replaces = False
        self.known: dict[str, str] = {}  # of all processes, path -> reason
        self.found: dict[str, str] = {}  # of this process, since the last exchange

    def before_split(self, runner, split):
        if split != 'train':
            return
        self.replaces = any(isinstance(part, ReplaceBadFiles) for part in innermost(runner.train_dataloader.dataset))
        if not self.replaces:
            return
        self.path = Path(runner.work_dir) / 'bad_files.txt'
        if runner._resume:
            self.known = read_list(self.path)
        elif is_main_process():
            self.path.unlink(missing_ok=True)

    def after_train_iter(self, runner, batch, outputs):
        if self.replaces:
            self.found.update(bad_files_of(batch))
            if (runner.iter + 1) % self.interval == 0:
                self.exchange(runner)

    def after_train_epoch(self, runner):
        if self.replaces:
            self.exchange(runner)
        if self.known:
            names = sorted(self.known)
            lines = [f'    {name}: {self.known[name]}' for name in names[:LISTED]]
            if len(names) > LISTED:
                lines.append(f'    ... and {len(names) - LISTED} more in {self.path}')
            runner.logger.warning('\n'.join([f'{self.count(runner)} could not be read, others took their places:', *lines]))

    def exchange(self, runner):
        """Merge the lists of all processes, write them to the file, and stop if there are too many."""
        new = {path: reason for part in all_gather_object(self.found) for path, reason in part.items() if path not in self.known}
        self.found = {}
        if not new:
            return
        self.known.update(new)
        if is_main_process():
            write_list(self.path, self.known)
        if len(self.known) > self.max_share * len(runner.train_dataloader.dataset):
            path, reason = next(iter(new.items()))
            raise DataError(
                f'{self.count(runner)} could not be read, more than max_bad_files={self.max_share:g} allows. The last: {path} ({reason}). '
                f'{self.path} lists them: repair or remove them, or allow more by --cfg-options max_bad_files=SHARE'
            )
        runner.logger.warning(f'{self.count(runner)} could not be read so far, {len(new)} of them new; see {self.path}')

    def count(self, runner) -> str:
        """Such as "3 of 5,000 files (0.06 %)"."""
        total = len(runner.train_dataloader.dataset)
        return f'{len(self.known):,} of {total:,} files ({100 * len(self.known) / total:.2g} %)'


def bad_files_of(batch) -> dict[str, str]:
    """Path and reason of the files that the samples of a batch replace; empty for a batch without data samples."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return {path: reason for sample in samples or () for path, reason in sample.metainfo.get('bad_files', ())}


def read_list(path: Path) -> dict[str, str]:
    """The content of a bad_files.txt; empty if there is none."""
    if not path.exists():
        return {}
    return dict(line.split('\t', 1) for line in path.read_text(encoding='utf-8').splitlines() if '\t' in line)


def write_list(path: Path, files: dict[str, str]):
    """Write a bad_files.txt, sorted by path."""
    write_file(path, ''.join(f'{name}\t{files[name]}\n' for name in sorted(files)))
