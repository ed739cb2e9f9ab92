"""The data sets inside others."""


def innermost(dataset):
    """The data sets inside mmengine's, mmdet's and mmseg's wrappers (concatenated, repeated, balanced, mixed), or the one that is given.

    Args:
        dataset (Dataset): Any.

    Yields:
        Dataset: Each that is no wrapper.
    """
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for part in inner:
        if part is None:
            yield dataset
        else:
            yield from innermost(part)
