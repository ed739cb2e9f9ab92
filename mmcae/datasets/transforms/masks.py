"""Draw which patches of an image are masked: in blocks (the paper's way) or each patch by itself."""

import math
import random

import numpy as np
from mmcv.transforms import BaseTransform

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError


@TRANSFORMS.register_module()
class BlockMaskGenerator(BaseTransform):
    """Mask rectangular blocks of patches until exactly ``num_masked`` patches are masked.

    The block-wise masking of BEiT that CAE uses (arXiv 2202.03026, section 4.1; arXiv 2106.08254, algorithm 1), with the authors'
    sampling: blocks may overlap and may touch every edge of the grid, and a block counts only if it adds at least one patch and no more
    than are left to mask.

    Added keys: ``mask``, a bool array (h, w), True = masked.

    Args:
        grid (int | tuple[int, int]): Patches per side, or (rows, columns): image size / patch size.
        num_masked (int): Patches to mask in each image.
        min_block (int): Smallest area of a block in patches, as long as that many are left to mask. Defaults to 16.
        max_block (int, optional): Largest area of a block in patches. Defaults to None: ``num_masked``.
        aspect (tuple[float, float]): Smallest and largest height / width of a block. Defaults to (0.3, 1 / 0.3).

    Raises:
        ConfigError: More patches are to be masked than can be while one stays visible, a range is empty, or no block of the wanted
            size and shape fits the grid.
    """

    # Draws in a row that may fail: settings that work need a few hundred at most, those that can never work must not hang.
    MAX_FAILURES = 100_000

    def __init__(self, grid, num_masked, min_block=16, max_block=None, aspect=(0.3, 1 / 0.3)):
        self.grid = _rows_columns(grid)
        self.num_masked = _check_count(num_masked, self.grid)
        self.min_block = min_block
        self.max_block = num_masked if max_block is None else max_block
        if min_block < 1 or (max_block is not None and max_block < min_block):
            raise ConfigError(f'blocks need 1 <= min_block <= max_block, got min_block={min_block}, max_block={max_block}')
        if not 0 < aspect[0] <= aspect[1]:
            raise ConfigError(f'aspect must be (smallest, largest) height / width above 0, got {aspect}')
        self.aspect = tuple(aspect)
        self._log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
        # A mask is one whole number, one bit per patch in raster order; a column of bits times a row of bits is a block.
        rows, columns = self.grid
        self._column_bits = [sum(1 << (row * columns) for row in range(h)) for h in range(rows)]
        self._row_bits = [(1 << w) - 1 for w in range(columns)]
        self._draw(random.Random(0))  # settings that cannot work fail here and not in a loader worker

    def transform(self, results):
        results['mask'] = self._to_array(self._draw(random))
        return results

    def _draw(self, rng):
        rows, columns = self.grid
        mask, left_to_mask, failures = 0, self.num_masked, 0
        while left_to_mask:
            budget = min(left_to_mask, self.max_block)
            area = rng.uniform(self.min_block, budget)
            aspect = math.exp(rng.uniform(*self._log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < rows and w < columns:
                top, left = rng.randint(0, rows - h), rng.randint(0, columns - w)
                with_block = mask | (self._column_bits[h] * self._row_bits[w]) << (top * columns + left)
                added = with_block.bit_count() - (self.num_masked - left_to_mask)
                if 0 < added <= budget:
                    mask, left_to_mask, failures = with_block, left_to_mask - added, 0
                    continue
            failures += 1
            if failures == self.MAX_FAILURES:
                raise ConfigError(
                    f'no block fits: a {rows}x{columns} grid cannot get {self.num_masked} patches masked in blocks of '
                    f'{self.min_block} to {self.max_block} patches with height / width within {self.aspect}; lower min_block'
                )
        return mask

    def _to_array(self, mask):
        rows, columns = self.grid
        data = mask.to_bytes((rows * columns + 7) // 8, 'little')
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=rows * columns, bitorder='little')
        return bits.view(bool).reshape(rows, columns)

    def __repr__(self):
        return (
            f'{type(self).__name__}(grid={self.grid}, num_masked={self.num_masked}, min_block={self.min_block}, '
            f'max_block={self.max_block}, aspect={self.aspect})'
        )


@TRANSFORMS.register_module()
class RandomMaskGenerator(BaseTransform):
    """Mask patches chosen one by one, each as likely as any other; the count is the same for every image.

    Added keys: ``mask``, a bool array (h, w), True = masked.

    Args:
        grid (int | tuple[int, int]): Patches per side, or (rows, columns): image size / patch size.
        num_masked (int, optional): Patches to mask in each image.
        ratio (float, optional): Share of the patches to mask instead of ``num_masked``, rounded down.

    Raises:
        ConfigError: Not exactly one of ``num_masked`` and ``ratio`` is given, or the count leaves no patch masked or none visible.
    """

    def __init__(self, grid, num_masked=None, ratio=None):
        self.grid = _rows_columns(grid)
        if (num_masked is None) == (ratio is None):
            raise ConfigError(f'give either num_masked or ratio, got num_masked={num_masked}, ratio={ratio}')
        if num_masked is None:
            num_masked = math.floor(ratio * self.grid[0] * self.grid[1] + 1e-6)  # 0.29 * 100 is 28.999... in floating point
        self.num_masked = _check_count(num_masked, self.grid)

    def transform(self, results):
        rows, columns = self.grid
        mask = np.zeros(rows * columns, bool)
        mask[np.random.permutation(rows * columns)[: self.num_masked]] = True
        results['mask'] = mask.reshape(rows, columns)
        return results

    def __repr__(self):
        return f'{type(self).__name__}(grid={self.grid}, num_masked={self.num_masked})'


@TRANSFORMS.register_module()
class MultiBlockMaskGenerator(BaseTransform):
    """Choose target blocks and a context for I-JEPA (arXiv 2301.08243, section 3).

    The blocks lie anywhere and may overlap; the context is ``num_visible`` patches out of those that are in no block. Since one batch needs
    equal counts, blocks have one size, where the paper draws one for each batch, and the context is cut to one size in every batch.

    Added keys: ``mask``, a bool array (h, w), False = context; ``target_blocks``, an int64 array (T, k) of raster indices, to be packed by
    ``PackInputs(algorithm_keys=['target_blocks'])``.

    Args:
        grid (int | tuple[int, int]): Patches per side, or (rows, columns): image size / patch size.
        block (int | tuple[int, int]): Patches per side of a target block, or (rows, columns); the paper's have 0.15 to 0.2 of the image.
        num_visible (int): Patches of the context.
        num_blocks (int): Target blocks of each image. Defaults to 4.

    Raises:
        ConfigError: A block does not fit the grid, or too few patches are left for the context.
    """

    MAX_FAILURES = 10_000

    def __init__(self, grid, block, num_visible, num_blocks=4):
        self.grid, self.block = _rows_columns(grid), _rows_columns(block)
        self.num_visible, self.num_blocks = num_visible, num_blocks
        if any(size > side for size, side in zip(self.block, self.grid, strict=True)):
            raise ConfigError(f'block={self.block} does not fit the grid of {self.grid[0]}x{self.grid[1]} patches')
        if num_blocks < 1:
            raise ConfigError(f'num_blocks={num_blocks} must be at least 1')
        _check_count(self.grid[0] * self.grid[1] - num_visible, self.grid)
        self._draw(np.random.RandomState(0))  # settings that cannot work fail here and not in a loader worker

    def transform(self, results):
        results['mask'], results['target_blocks'] = self._draw(np.random)
        return results

    def _draw(self, rng):
        raster = np.arange(self.grid[0] * self.grid[1]).reshape(self.grid)
        (rows, columns), (h, w) = self.grid, self.block
        for _ in range(self.MAX_FAILURES):
            corners = [(rng.randint(rows - h + 1), rng.randint(columns - w + 1)) for _ in range(self.num_blocks)]
            blocks = np.stack([raster[top : top + h, left : left + w].ravel() for top, left in corners])
            free = np.setdiff1d(raster, blocks)
            if len(free) >= self.num_visible:
                mask = np.ones(raster.size, bool)
                mask[rng.permutation(free)[: self.num_visible]] = False
                return mask.reshape(self.grid), blocks
        raise ConfigError(
            f'{self.num_blocks} blocks of {h}x{w} on a {rows}x{columns} grid hardly ever leave {self.num_visible} patches for the context: '
            'lower num_visible, block or num_blocks'
        )

    def __repr__(self):
        settings = f'block={self.block}, num_visible={self.num_visible}, num_blocks={self.num_blocks}'
        return f'{type(self).__name__}(grid={self.grid}, {settings})'


def _rows_columns(grid):
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if rows < 1 or columns < 1:
        raise ConfigError(f'grid must be positive, got {grid}')
    return rows, columns


def _check_count(num_masked, grid):
    patches = grid[0] * grid[1]
    if not 1 <= num_masked < patches:
        raise ConfigError(
            f'num_masked must lie between 1 and {patches - 1}, so that something is masked and something visible on the '
            f'{grid[0]}x{grid[1]} grid; got {num_masked}'
        )
    return num_masked
