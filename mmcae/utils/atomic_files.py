"""Files that appear whole or not at all, by a file backend of mmengine's: `backend_args=dict(backend='mmcae.atomic')`."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


class AtomicBackend(LocalBackend):
    """mmengine's LocalBackend whose files are written beside their place, forced onto the disk, and then renamed.

    Whatever kills the process or the machine meanwhile, the name stands for the old file or for the complete new one.
    """

    def put(self, obj, filepath):
        """Write a file.

        Args:
            obj (bytes): Its content.
            filepath (str | Path): Its name; folders are made.

        Raises:
            OSError: Such as a full disk. What was there before is unchanged then, and nothing else is left behind.
        """
        filepath = Path(filepath)
        filepath.parent.mkdir(parents=True, exist_ok=True)
        # One name for all: what a killed process leaves is overwritten by the next.
        partial = filepath.with_name('unfinished.partial')
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(filepath)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(filepath)) from error
        folder = os.open(filepath.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name
        finally:
            os.close(folder)

    def put_text(self, obj, filepath, encoding='utf-8'):
        """The same for text."""
        self.put(obj.encode(encoding), filepath)


register_backend('mmcae.atomic', AtomicBackend, force=True)
