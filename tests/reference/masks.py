"""Block masks: rectangles are drawn until the number of masked patches is exact."""

import math
import random


def block_mask(rows, columns, count, smallest, largest=None, aspect=(0.3, 1 / 0.3)):
    """A mask as nested lists of True and False, drawn by Python's `random`.

    Args:
        rows, columns: The patch grid.
        count: How many patches are to be masked.
        smallest, largest: Patches of a block; `count` where no largest is given.
        aspect: Least and greatest height / width of a block.
    """
    largest = largest or count
    mask = [[False] * columns for _ in range(rows)]
    masked = 0
    while masked < count:
        budget = min(count - masked, largest)
        for _ in range(10):
            area = random.uniform(smallest, budget)
            ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= rows or width >= columns:
                continue
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            new = [(i, j) for i in range(top, top + height) for j in range(left, left + width) if not mask[i][j]]
            if 0 < len(new) <= budget:
                for i, j in new:
                    mask[i][j] = True
                masked += len(new)
                break
    return mask
