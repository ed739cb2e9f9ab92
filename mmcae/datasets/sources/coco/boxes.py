"""Whether the boxes of a COCO file, taken together, are what they are read as: (left, top, width, height)."""

from collections.abc import Mapping, Sequence

from ....utils.errors import DataError


class BoxStatistics:
    """Collect boxes of a file, and judge them as a whole.

    Attributes:
        number (int): Boxes.
        corners (int): Those that would lie in their image if they were (left, top, right, bottom).
        better (int): Those that fit image, mask or area as corners only.
        misfits (int): Those that have less than half of their union with the box around the mask in common.
        beyond (int): Those that reach beyond their image by more than a tenth of its side.
    """

    def __init__(self):
        self.number = self.corners = self.better = self.misfits = self.beyond = 0
        self.examples = {}  # annotations, by what they show

    def add(self, annotation: Mapping, box: Sequence, size: tuple, mask_box: Sequence | None):
        """Count a box (left, top, width, height).

        Args:
            annotation (dict): For its id, its area and for messages.
            box (Sequence[float]): The same as numbers, finite.
            size (tuple[int, int]): Height and width of the image.
            mask_box (Sequence[float], optional): (left, top, right, bottom) around the mask.
        """
        (a, b, c, d), (height, width), area = box, size, annotation['area']
        read, corners = (a, b, a + c, b + d), (a, b, c, d)
        self.number += 1
        self.corners += a < c <= width + 1 and b < d <= height + 1
        beyond = a + c > 1.1 * width or b + d > 1.1 * height
        better = beyond or alike(area, (c - a) * (d - b)) and not alike(area, c * d)
        if mask_box:
            better |= common(mask_box, corners) > 0.9 and common(mask_box, read) < 0.8
            self.note('misfits', common(mask_box, read) < 0.5, annotation, size)
        self.note('beyond', beyond, annotation, size)
        self.note('better', better, annotation, size)

    def note(self, what: str, found: bool, annotation: Mapping, size: tuple):
        if found:
            setattr(self, what, getattr(self, what) + 1)
            self.examples.setdefault(what, (annotation['id'], annotation['bbox'], size))

    def judge(self, path: str):
        """Refuse corners: a DataError, if nearly all boxes could be corners, and some make no sense otherwise."""
        if self.better and self.corners >= 0.99 * self.number and self.better >= 0.05 * self.number:
            name, box, (height, width) = self.examples['better']
            raise DataError(
                f'{path}: the boxes look like (left, top, right, bottom); COCO has (left, top, width, height). {self.better:,} of '
                f'{self.number:,} fit their image, mask or area as corners only, the first is annotation {name!r} with {box} in an image '
                f'of {width}x{height} pixels (width x height). Subtract left from right and top from bottom'
            )

    def doubts(self) -> list[str]:
        """What looks wrong, and may be right."""
        found = []
        if self.beyond:
            found.append(f'{self.beyond:,} boxes reach far beyond their image (annotation {self.examples["beyond"][0]!r} ...)')
        if self.misfits > 0.05 * self.number:
            found.append(f'{self.misfits:,} boxes do not fit their masks (annotation {self.examples["misfits"][0]!r} ...)')
        return found


def alike(a: float, b: float) -> bool:
    """Whether two areas differ by less than a hundredth."""
    return abs(a - b) < 0.01 * abs(a)


def common(a: Sequence, b: Sequence) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union > 0 else 0.0
