"""What has to be right in a COCO annotation file for a detector to learn from it, with messages for what is not."""

from collections.abc import Mapping, Sequence
from itertools import islice

from ....utils.errors import ConfigError, DataError, nearest
from .annotations import AnnotationCheck, Objects
from .values import identity, kind, shown, whole


def check_annotations(
    content, path: str, classes: Sequence[str] | None = None, masks: bool = False, polygons: bool = False, scored: bool = False
) -> Objects:
    """Check the content of an annotation file, and leave out the objects that nothing can be learnt from.

    Numbers that are written as texts become numbers, RLE masks are compressed, those in lists merged, and annotations are numbered from 1
    on: COCO's scoring takes the id 0 for "not matched".

    Args:
        content (dict): The parsed file, in COCO's format (https://cocodataset.org/#format-data). It is changed in place.
        path (str): Its name, for messages.
        classes (Sequence[str], optional): Names of the classes in the order of their labels; all categories if there are none.
        masks (bool): Objects need masks too.
        polygons (bool): These masks have to be polygons.
        scored (bool): Predictions will be scored against it, for which COCO's own code needs `iscrowd`. Objects with an area of 0 or
            narrower than a pixel stay then, since COCO's protocol counts them.

    Returns:
        Objects: How many there are, and how many were left out for which reason.

    Raises:
        DataError: It is no COCO file, its categories are not the classes in their order, an entry lacks something, has another type or
            refers to nothing, an RLE does not add up, coordinates are fractions or corners, or of all its objects none can be used.
    """
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in ('images', 'categories')):
        found = f'the keys {", ".join(map(str, islice(content, 6)))}' if isinstance(content, Mapping) else f'a {type(content).__name__}'
        raise DataError(
            f'{path} is no COCO annotation file: it needs lists `images`, `categories` and `annotations`, and holds {found}. '
            'Convert other formats to COCO first (mmdet has tools for Pascal VOC and Cityscapes)'
        )
    for key in ('images', 'categories', 'annotations'):
        check_entries(content, key, path)
    check_categories(content['categories'], path, classes)
    categories = {category['id']: (category['id'], classes is None or category['name'] in classes) for category in content['categories']}
    check = AnnotationCheck(path, check_images(content['images'], path), categories, masks, polygons, scored)
    annotations = [annotation for annotation in content.get('annotations', ()) if check(annotation)]
    check.conclude()
    check_names(content['images'], annotations, path)
    if 'annotations' in content:
        content['annotations'] = annotations
    for i, annotation in enumerate(annotations, 1):
        annotation['id'] = i
    return check.objects


def check_entries(content: Mapping, key: str, path: str):
    """All entries of a list are dicts with ids of their own, whole numbers if they are numbers."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise DataError(f'{path}: `{key}` is {kind(entries)}; it has to be a list')
    seen = {}
    for place, entry in enumerate(entries):
        name = f'{path}: entry {place} of `{key}` (from 0)'
        if not isinstance(entry, Mapping):
            raise DataError(f'{name} is {kind(entry)}; it has to be a dict')
        if entry.get('id') is None:
            raise DataError(f'{name} has no `id`')
        try:
            found = identity(entry['id'])
        except ValueError:
            raise DataError(f'{name} has the `id` {shown(entry["id"])}; it needs a whole number') from None
        if not isinstance(entry['id'], str) or key == 'categories' and isinstance(found, int):
            entry['id'] = found
        if seen.setdefault(found, place) != place:
            raise DataError(
                f'{path} has the id {found!r} twice in `{key}`, in the entries {seen[found]} and {place} (from 0): number the entries '
                'anew, and where files were put together, what refers to them'
            )


def check_categories(categories: list, path: str, classes: Sequence[str] | None):
    """Every class has a category of its name, and those that have follow each other in the order of the classes.

    mmdet numbers the labels in the order of the file, whatever the order of the classes; another order would exchange their names.
    """
    for category in categories:
        if isinstance(category['id'], str):
            raise DataError(f'{path}: the category {category.get("name")!r} has the `id` {category["id"]!r}; it needs a whole number')
        name = category.get('name')
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise DataError(f'{path}: the category {category["id"]} has the `name` {shown(name)}; it needs a text')
        category['name'] = str(name)
    if classes is None:
        return
    if isinstance(classes, str):
        raise ConfigError(f'metainfo.classes is the text {classes!r}: a single class is written with a comma, classes=({classes!r},)')
    names = [category['name'] for category in categories]
    missing = [name for name in classes if name not in names]
    if missing:
        guess = nearest(str(missing[0]), names)
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
    """What the ids of images stand for: the id as it is in the file, and (height, width)."""
    found = {}
    for image in images:
        name = f'{path}: the image {image.get("file_name") or image["id"]}'
        for key in ('file_name', 'height', 'width'):
            if image.get(key) in (None, ''):
                raise DataError(f'{name} has no `{key}`')
        if not isinstance(image['file_name'], str):
            raise DataError(f'{name} has the `file_name` {shown(image["file_name"])}; it needs a text')
        for key in ('height', 'width'):
            try:
                side = whole(image[key])
            except ValueError:
                side = 0
            if side < 1:
                raise DataError(f'{name} has the {key} {shown(image[key])}; it needs a number of pixels')
            image[key] = side
        found[identity(image['id'])] = image['id'], (image['height'], image['width'])
    if len({type(key) for key, _ in found.values()}) > 1:
        raise DataError(f'{path}: the ids of some images are numbers, those of others texts, which COCO cannot sort: use one kind')
    return found


def check_names(images: list, annotations: list, path: str):
    """An image that is listed more than once has the same objects each time; else those of one entry were background in the others."""
    listed = {}
    for image in images:
        listed.setdefault(image['file_name'], []).append(image['id'])
    listed = {name: ids for name, ids in listed.items() if len(ids) > 1}
    objects = {number: set() for ids in listed.values() for number in ids}
    for annotation in annotations if objects else ():
        if annotation['image_id'] in objects:
            objects[annotation['image_id']].add((annotation['category_id'], *annotation['bbox']))
    for name, ids in listed.items():
        if any(objects[number] != objects[ids[0]] for number in ids):
            raise DataError(
                f'{path}: the images {ids[0]!r} and {ids[1]!r} are the same file, {name}, with other objects each ({len(listed):,} files '
                'are listed more than once). List an image once, and let all its annotations refer to that entry'
            )


def quoted(names: Sequence[str], most: int = 12) -> str:
    """The first names, for a message."""
    return ', '.join(map(repr, names[:most])) + (f' ... ({len(names)})' if len(names) > most else '')
