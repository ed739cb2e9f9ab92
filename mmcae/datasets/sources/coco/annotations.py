"""Whether a detector can learn from the annotations of a COCO file, one after the other, and what is wrong with them as a whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from ....utils.errors import DataError
from .boxes import BoxStatistics
from .masks import FEW_POINTS, FRACTIONS, NOT_FINITE, ODD, MaskError, check_mask
from .values import flag, identity, numbers, real, shown

CROWD = 'crowds (`iscrowd`), whose regions are ignored'
IGNORED = 'marked by `ignore`'
OTHER_CLASS = 'of categories that are not among the classes'
EMPTY = 'with an empty box'
OUTSIDE = 'with a box outside of the image'
THIN = 'with a box narrower than a pixel'
NO_AREA = 'with an `area` of 0 or less'
ELSEWHERE = 'with a mask outside of the box'
BITMAP = 'with an RLE mask, which LoadAnnotations(poly2mask=False) cannot read'
REMEDIES = {
    CROWD: 'set `iscrowd` to 0 where an annotation is a single object',
    OTHER_CLASS: 'add their categories to metainfo.classes',
    FEW_POINTS: 'a polygon is [x1, y1, x2, y2, x3, y3, ...], in a list of its own',
    ODD: 'a polygon is [x1, y1, x2, y2, x3, y3, ...], in a list of its own',
    NO_AREA: 'write the area of the mask or of the box, in pixels',
    BITMAP: 'set poly2mask=True',
}
# What mmdet and COCO's scoring have to see all the same; and what is left out of training only, because COCO's scoring counts it.
KEPT = (CROWD, IGNORED, OTHER_CLASS)
SCORED = (IGNORED, THIN, NO_AREA)


@dataclass
class Objects:
    """What there is to be learnt, or scored, in an annotation file.

    Attributes:
        count (int): Objects that can be used.
        left_out (Counter[str]): The number of those that cannot, by reason.
        examples (dict): For each reason the id of one of them.
        doubts (list[str]): What looks wrong in those that can be used.
    """

    count: int = 0
    left_out: Counter = field(default_factory=Counter)
    examples: dict = field(default_factory=dict)
    doubts: list = field(default_factory=list)

    def leave_out(self, reason: str, annotation: Mapping, number: int = 1):
        self.left_out[reason] += number
        self.examples.setdefault(reason, annotation['id'])

    def reasons(self) -> str:
        """Such as "3 with an empty box (annotation 7 ...)"."""
        parts = self.left_out.most_common()
        return '; '.join(f'{number:,} {reason} (annotation {self.examples[reason]!r} ...)' for reason, number in parts)

    def as_usual(self) -> bool:
        """Whether nothing looks wrong or was left out but what belongs to COCO files: crowds, objects to be ignored, other categories."""
        return {*self.left_out} <= {*KEPT} and not self.doubts

    def summary(self) -> str:
        """What was left out and what looks wrong, as sentences after others; '' if there is nothing."""
        return ''.join([f'. Left out: {self.reasons()}' if self.left_out else '', *(f'. {doubt}' for doubt in self.doubts)])

    def remedy(self) -> str:
        """What to do about the most frequent reason."""
        return REMEDIES.get(self.left_out.most_common(1)[0][0], 'correct them')


class AnnotationCheck:
    """Check one annotation after the other: `check(annotation)` is whether it stays in the file; then :meth:`conclude`.

    Args:
        path (str): The name of the file, for messages.
        images (dict): For what an id stands for (see :func:`.values.identity`) the id itself, and (height, width).
        categories (dict): The same, and whether the category is among the classes.
        masks (bool): Objects need masks.
        polygons (bool): These have to be polygons.
        scored (bool): Predictions will be scored against them.

    Attributes:
        objects (Objects): What has been found so far.
    """

    def __init__(self, path: str, images: dict, categories: dict, masks: bool, polygons: bool, scored: bool):
        self.path, self.images, self.categories = path, images, categories
        self.masks, self.polygons, self.scored = masks, polygons, scored
        self.needed = ('image_id', 'category_id', 'bbox', 'area', *['segmentation'] * masks, *['iscrowd'] * scored)
        self.objects = Objects()
        self.number = 0  # of annotations
        self.boxes = BoxStatistics()

    def __call__(self, annotation: dict) -> bool:
        name = f'{self.path}: annotation {annotation["id"]}'
        self.number += 1
        for key in self.needed:
            if annotation.get(key) in (None, []):
                remedy = '; for boxes alone take a detector without masks' if key == 'segmentation' else ''
                raise DataError(f'{name} has no `{key}`{remedy}')
        image = self.find(self.images, annotation['image_id'])
        if image is None:
            raise DataError(f'{name} belongs to image {shown(annotation["image_id"])}, and there is no image with this id')
        category = self.find(self.categories, annotation['category_id'])
        if category is None:
            raise DataError(f'{name} has the category {shown(annotation["category_id"])}, and there is no category with this id')
        annotation['image_id'], size = image
        annotation['category_id'], among_classes = category
        try:
            annotation['bbox'] = box = numbers(annotation['bbox'])
        except ValueError:
            box = ()
        if len(box) != 4:
            raise DataError(f'{name} has the bbox {shown(annotation["bbox"])}; it needs four numbers: left, top, width, height')
        for key, convert in (('area', real), ('iscrowd', flag), ('ignore', flag)):
            if key in annotation:
                try:
                    annotation[key] = convert(annotation[key])
                except ValueError:
                    what = 'a number' if key == 'area' else '0 or 1'
                    raise DataError(f'{name} has the {key} {shown(annotation[key])}; it needs {what}') from None
        try:
            reason = self.unusable(annotation, [real(value) for value in box], size, among_classes)
        except MaskError as error:
            raise DataError(f'{name} {error}') from None
        if reason is None or self.scored and reason in SCORED:
            self.objects.count += 1
            return True
        self.objects.leave_out(reason, annotation)
        return reason in KEPT

    @staticmethod
    def find(entries: dict, value):
        """The entry that an annotation refers to, or None."""
        try:
            return entries.get(identity(value))
        except ValueError:
            return None

    def unusable(self, annotation: dict, box: list, size: tuple, among_classes: bool) -> str | None:
        """Why an object cannot be used, or None. Its mask is checked in any case, and changed where that makes it readable."""
        problem, mask_box = None, None
        if self.masks:
            mask, problem, mask_box, parts = check_mask(annotation['segmentation'], size)
            if mask is not None:
                annotation['segmentation'] = mask
            if parts:
                self.objects.leave_out('parts of masks that are no polygons; the other parts stay', annotation, parts)
        problem = self.wrong_box(annotation, box, size, mask_box) or problem
        if problem:
            return problem
        if annotation.get('iscrowd'):
            return CROWD
        if not among_classes:
            return OTHER_CLASS
        if annotation.get('ignore'):
            return IGNORED
        if self.polygons and isinstance(annotation['segmentation'], Mapping):
            return BITMAP
        if min(box[2:]) < 1:
            return THIN
        return NO_AREA if annotation['area'] <= 0 else None

    def wrong_box(self, annotation: dict, box: list, size: tuple, mask_box: Sequence | None) -> str | None:
        """Why nothing can be found in a box (left, top, width, height), or None."""
        left, top, width, height = box
        limit = 10 * max(size)
        if not all(-limit <= value <= limit for value in box) or not abs(annotation['area']) < inf:
            return NOT_FINITE
        if all(0 <= value <= 1 for value in box) and max(size) > 1:
            return FRACTIONS
        if width <= 0 or height <= 0:
            return EMPTY
        if left >= size[1] or top >= size[0] or left + width <= 0 or top + height <= 0:
            return OUTSIDE
        self.boxes.add(annotation, box, size, mask_box)
        if mask_box and not overlap((left, top, left + width, top + height), mask_box):
            return ELSEWHERE
        return None

    def conclude(self):
        """Judge the file as a whole, once all annotations are checked."""
        fractions, objects = self.objects.left_out[FRACTIONS], self.objects
        if fractions > 0.01 * self.number:
            raise DataError(
                f'{self.path}: the coordinates of {fractions:,} of {self.number:,} annotations lie between 0 and 1, in annotation '
                f"{objects.examples[FRACTIONS]!r} first. They look like fractions of the image, as in YOLO's format; COCO's are pixels: "
                'multiply them by the width and height of their image, and make a box of its left, top, width and height'
            )
        self.boxes.judge(self.path)
        objects.doubts = self.boxes.doubts()
        if self.number and not objects.count:
            raise DataError(
                f'{self.path}: none of its {self.number:,} annotations can be used, so there is no object to learn from or to score. '
                f'They are: {objects.reasons()}; {objects.remedy()}'
            )


def overlap(a: Sequence, b: Sequence) -> bool:
    """Whether two boxes (left, top, right, bottom) have a point in common."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
