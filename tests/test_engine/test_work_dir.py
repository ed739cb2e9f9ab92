"""The folders that one training alone writes to."""

import pytest
from mmengine.config import Config

from mmcae.engine.work_dir import hold_work_dir
from mmcae.utils.errors import DataError


def test_the_folder_of_the_checkpoints_is_held_and_swept_too(tmp_path):
    """Trainings with work dirs of the same name have one folder of checkpoints below a common `out_dir`."""
    out_dir, remains = tmp_path / 'checkpoints', tmp_path / 'checkpoints' / 'run' / 'unfinished.partial'
    first, second, other = (
        Config(dict(work_dir=str(tmp_path / name), default_hooks=dict(checkpoint=dict(out_dir=str(out_dir)))))
        for name in ('a/run', 'b/run', 'a/other')
    )
    remains.mkdir(parents=True)
    with hold_work_dir(first, 'none'), hold_work_dir(other, 'none'):
        assert not remains.exists()
        with pytest.raises(DataError, match='checkpoints/run is in use by process'), hold_work_dir(second, 'none'):
            pass
    with hold_work_dir(second, 'none'):
        pass
    second.default_hooks.checkpoint.out_dir = second.work_dir
    with hold_work_dir(second, 'none'):  # one folder, held once
        pass
