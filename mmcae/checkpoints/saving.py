"""The file backend of mmengine's by which checkpoints are saved and deleted: `backend_args=dict(backend='mmcae.atomic')`."""

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from ..utils.files import write_file
from .pieces import UNFINISHED, publish, remove

ATOMIC = 'mmcae.atomic'


class AtomicBackend(LocalBackend):
    """mmengine's LocalBackend whose files appear whole, and whose folders go whole; see :mod:`mmcae.checkpoints.pieces`."""

    def put(self, obj, filepath):
        """Write bytes, also in the place of a checkpoint in pieces, such as an earlier training's of the same name."""
        path = Path(filepath)
        if not path.is_dir():
            write_file(path, obj)
        else:
            write_file(path.with_name(UNFINISHED), obj)
            publish(path.with_name(UNFINISHED), path)

    def put_text(self, obj, filepath, encoding='utf-8'):
        """Write text."""
        write_file(filepath, obj.encode(encoding))

    def rmtree(self, dir_path):
        """Delete a folder, such as a checkpoint in pieces."""
        remove(Path(dir_path))


register_backend(ATOMIC, AtomicBackend, force=True)
