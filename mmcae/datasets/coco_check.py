"""What has to be right in a COCO annotation file for a detector to learn from it, with messages for what is not."""

from collections.abc import Mapping, Sequence
from itertools import islice

from ..utils.errors import DataError, nearest

BOX_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


def check_annotations(content, path: str, classes: Sequence[str], masks: bool = False, scored: bool = False):
    """Check the content of an annotation file against the classes of a data set.

    What mmdet itself copes with is left alone: images without objects, crowds, and boxes that are empty or outside their image, which it
    leaves out.

    Args:
        content (dict): The parsed file, in COCO's format (https://cocodataset.org/#format-data).
        path (str): Its name, for messages.
        classes (Sequence[str]): Names of the classes in the order of their labels.
        masks (bool): Objects need masks too.
        scored (bool): Predictions will be scored against it, for which COCO's own code needs `iscrowd`.

    Raises:
        DataError: It is no COCO file, its categories are not the classes in their order, or an entry lacks something or refers to nothing.
    """
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in ('images', 'categories')):
        found = f'the keys {", ".join(map(str, islice(content, 6)))}' if isinstance(content, Mapping) else f'a {type(content).__name__}'
        raise DataError(
            f'{path} is no COCO annotation file: it needs lists `images`, `categories` and `annotations`, and holds {found}. '
            'Convert other formats to COCO first (mmdet has tools for Pascal VOC and Cityscapes)'
        )
    check_categories(content['categories'], path, classes)
    sizes = check_images(content['images'], path)
    ids = {category['id'] for category in content['categories']}
    needed = (*BOX_KEYS, *(['segmentation'] if masks else []), *(['iscrowd'] if scored else []))
    for annotation in content.get('annotations', ()):
        name = f'{path}: annotation {annotation.get("id")}'
        for key in needed:
            if annotation.get(key) in (None, []):
                remedy = '; for boxes alone take a detector without masks' if key == 'segmentation' else ''
                raise DataError(f'{name} has no `{key}`{remedy}')
        if len(annotation['bbox']) != 4:
            raise DataError(f'{name} has the bbox {annotation["bbox"]}; it needs four numbers: left, top, width, height')
        size = sizes.get(annotation['image_id'])
        if size is None:
            raise DataError(f'{name} belongs to image {annotation["image_id"]!r}, and there is no image with this id')
        if annotation['category_id'] not in ids:
            raise DataError(f'{name} has the category {annotation["category_id"]!r}, and there is no category with this id')
        mask = annotation.get('segmentation')
        if masks and isinstance(mask, Mapping) and list(mask.get('size', ())) != size:
            raise DataError(f'{name} has a mask of (height, width) {mask.get("size")}, but its image has {size}')


def check_categories(categories: list, path: str, classes: Sequence[str]):
    """Every class has a category of its name, and those that have follow each other in the order of the classes.

    mmdet numbers the labels in the order of the file, whatever the order of the classes; another order would exchange their names.
    """
    names = [category.get('name') for category in categories]
    missing = [name for name in classes if name not in names]
    if missing:
        guess = nearest(missing[0], [str(name) for name in names])
        raise DataError(
            f'{path} has no category {missing[0]!r}{guess} ({len(missing)} of {len(classes)} classes are missing). It has {quoted(names)}. '
            'Set metainfo=dict(classes=(...)) of the data sets to these, and num_classes of the heads to their number'
        )
    order = [name for name in names if name in set(classes)]
    if order != list(classes):
        raise DataError(
            f'{path} has the categories in another order than the classes, or one twice: {quoted(order)}, but metainfo.classes is '
            f'{quoted(classes)}. Give the classes in the order of the file'
        )


def check_images(images: list, path: str) -> dict:
    """The [height, width] of every image by its id."""
    sizes = {}
    for image in images:
        missing = [key for key in ('id', 'file_name', 'height', 'width') if image.get(key) in (None, '', 0)]
        if missing and missing != ['id']:  # 0 is an id
            raise DataError(f'{path}: the image {image.get("file_name") or image.get("id")} has no `{missing[-1]}`')
        sizes[image.get('id')] = [image['height'], image['width']]
    return sizes


def quoted(names: Sequence[str], most: int = 12) -> str:
    """The first names, for a message."""
    return ', '.join(map(repr, names[:most])) + (f' ... ({len(names)})' if len(names) > most else '')
