"""Crop by physical size: how many microns one pixel of a view covers, whatever the magnification of a tile."""

import csv
import io
import os
import re

from mmcv.transforms import BaseTransform

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError, DataError
from ...utils.text_files import read_text


@TRANSFORMS.register_module()
class MicronScale(BaseTransform):
    """Give TwoViewCrop the area of its box by physical size, so that slides of different magnification are shown at the same scales.

    The resolution of a tile, in microns per pixel (mpp), is the same for all, or stands in a table, or in the name of its file.

    Required keys: ``img``, ``img_path``. Added keys: ``mpp`` (float, of the tile) and ``crop_scale``, (smallest, largest) share of the
    tile's area, which TwoViewCrop takes in place of its `scale`.

    Args:
        mpp (tuple[float, float]): Finest and coarsest resolution of the view, in microns per pixel. (0.5, 1.0) is about 20x to 10x.
        view_size (int): Side of the model's view in pixels: `size` of TwoViewCrop. Defaults to 224.
        tile_mpp (float, optional): Resolution of all tiles.
        table (str, optional): A CSV file with the columns `path` and `mpp`. A path is that of a tile, or of a folder for all tiles in it,
            relative to the table's folder or absolute.
        pattern (str, optional): A regular expression with a group `mpp`, searched for in the path of a tile: r'_mpp(?P<mpp>\\d+\\.\\d+)'.

    Raises:
        ConfigError: Not exactly one of the three sources is given, a range is empty, or the table or pattern cannot be used.
        DataError: The resolution of a tile is not known, or the tile is smaller than the smallest box.
    """

    def __init__(self, mpp, view_size=224, tile_mpp=None, table=None, pattern=None):
        if not 0 < mpp[0] <= mpp[1] or view_size < 1:
            raise ConfigError(f'MicronScale needs mpp=(finest, coarsest) above 0 and a positive view_size, got {mpp} and {view_size}')
        if sum(source is not None for source in (tile_mpp, table, pattern)) != 1:
            raise ConfigError('MicronScale needs one of tile_mpp (the resolution of all tiles), table (a CSV file) and pattern')
        if tile_mpp is not None and not tile_mpp > 0:
            raise ConfigError(f'tile_mpp={tile_mpp} must be above 0')
        self.mpp, self.view_size, self.tile_mpp = tuple(mpp), view_size, tile_mpp
        self.table, self.known = table, read_table(table) if table else {}
        self.pattern = compile_pattern(pattern) if pattern else None

    def transform(self, results):
        height, width = results['img'].shape[:2]
        path = results['img_path']
        results['mpp'] = tile = self.resolution_of(path)
        smallest, largest = ((self.view_size * mpp / tile) ** 2 / (height * width) for mpp in self.mpp)
        if smallest > 1:
            needed = self.view_size * self.mpp[0]
            raise DataError(
                f'{path}: {width}x{height} pixels at {tile:g} microns per pixel are {width * tile:.0f}x{height * tile:.0f} microns, too '
                f'small for a view of {needed:.0f} microns ({self.view_size} pixels at {self.mpp[0]:g}): lower mpp or cut larger tiles'
            )
        results['crop_scale'] = (smallest, min(largest, 1.0))
        return results

    def resolution_of(self, path):
        """Microns per pixel of a tile; a DataError if they are not known."""
        if self.tile_mpp is not None:
            return self.tile_mpp
        if self.pattern is not None:
            match = self.pattern.search(path)
            if not match:
                raise DataError(f"{path}: the pattern {self.pattern.pattern!r} does not find the tile's microns per pixel in it")
            return _number(match['mpp'], path)
        place = os.path.abspath(path)
        while place not in self.known:
            above = os.path.dirname(place)
            if above == place:
                raise DataError(f'{path}: neither the tile nor a folder it is in stands in {self.table}')
            place = above
        return self.known[place]

    def __repr__(self):
        source = dict(tile_mpp=self.tile_mpp, table=self.table, pattern=self.pattern and self.pattern.pattern)
        given = next(f'{name}={value!r}' for name, value in source.items() if value is not None)
        return f'{type(self).__name__}(mpp={self.mpp}, view_size={self.view_size}, {given})'


def read_table(path):
    """Microns per pixel by absolute path, from a CSV file with the columns `path` and `mpp`.

    Args:
        path (str): The file.

    Returns:
        dict[str, float]: Of tiles and folders.

    Raises:
        ConfigError: It cannot be read, lacks a column, or is empty.
        DataError: A value is no positive number.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path)))
        rows = list(reader)
    except (DataError, csv.Error) as error:
        raise ConfigError(f'The table {path} cannot be read ({error}): it must be a CSV file with the columns path and mpp') from error
    missing = {'path', 'mpp'} - set(reader.fieldnames or ())
    if missing or not rows:
        raise ConfigError(f'The table {path} has {"no column " + " and no column ".join(sorted(missing)) if missing else "no rows"}')
    folder = os.path.dirname(os.path.abspath(path))
    return {os.path.normpath(os.path.join(folder, row['path'])): _number(row['mpp'], f'{path}, {row["path"]}') for row in rows}


def compile_pattern(pattern):
    """A regular expression with a group `mpp`; a ConfigError if it is none."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f'pattern={pattern!r} is no regular expression: {error}') from error
    if 'mpp' not in compiled.groupindex:
        raise ConfigError(rf"pattern={pattern!r} has no group mpp; write such as '_mpp(?P<mpp>\d+\.\d+)'")
    return compiled


def _number(text, where):
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = 0.0
    if not value > 0:
        raise DataError(f'{where}: {text!r} is no number of microns per pixel')
    return value
