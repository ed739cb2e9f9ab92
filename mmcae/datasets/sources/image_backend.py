"""Images for the transforms of OpenMMLab's libraries, which read some files wrongly: 16 bits as black or white, damaged files as grey.

The file backend `backend_args=dict(backend='mmcae.images')` stands between the file and mmcv's LoadImageFromFile, so that configs, and the
inferencers that look for this transform, stay as they are.
"""

from mmengine.config import ConfigDict
from mmengine.fileio import LocalBackend, register_backend

from ..transforms.image_file import ImageFile, content_of

LOADERS = tuple(f'{scope}LoadImageFromFile' for scope in ('', 'mmcv.', 'mmengine.', 'mmpretrain.', 'mmdet.', 'mmseg.'))
JPEG, PNG, PNM, TIFF = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', (b'P5', b'P6'), (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
DEPTH = 24  # where a PNG has its bits per sample


class ImageBackend(LocalBackend):
    """mmengine's LocalBackend whose files are images that everybody reads alike.

    Whole JPEGs and PNGs of 8 bits, and formats that know nothing else, come as they are. TIFFs, other bit depths, and files whose end is
    missing are read by :class:`~mmcae.datasets.transforms.image_file.ImageFile`, and come as 8-bit RGB without compression.

    Args:
        white (float, optional): See :class:`mmcae.LoadImage`.
    """

    def __init__(self, white=None, **kwargs):
        super().__init__(**kwargs)
        self.white = white

    def get(self, filepath):
        """The content of a file.

        Args:
            filepath (str | Path): The file.

        Returns:
            bytes: Its own, or those of a PPM.

        Raises:
            DataError: It is missing, damaged, or its range of brightness is unknown; the message names it.
            StorageError: It cannot be read for reasons that tell nothing about its content.
        """
        data = content_of(filepath)
        if is_plain(data):
            return data
        pixels = ImageFile(filepath, data, self.white).read()
        return b'P6 %d %d 255\n' % pixels.shape[1::-1] + pixels.tobytes()


def is_plain(data):
    """Whether all readers get the same 8-bit pixels out of a file."""
    if data.startswith(JPEG):
        return data.endswith(b'\xff\xd9')
    if data.startswith(PNG):
        return data[DEPTH : DEPTH + 1] <= b'\x08' and data.endswith(b'IEND\xaeB`\x82')
    return not data.startswith((*TIFF, *PNM)) and any(data.startswith(mark) for mark in (b'RIFF', b'BM', b'GIF8'))


def read_images_alike(cfg):
    """Have every LoadImageFromFile of a config that names no backend read by :class:`ImageBackend`.

    Args:
        cfg (Config | dict | list): Changed in place.
    """
    for value in list(cfg.values()) if hasattr(cfg, 'values') else cfg:
        if isinstance(value, dict | list | tuple):
            read_images_alike(value)
    if isinstance(cfg, dict) and cfg.get('type') in LOADERS and not cfg.get('backend_args') and not cfg.get('file_client_args'):
        cfg['backend_args'] = ConfigDict(backend='mmcae.images')


register_backend('mmcae.images', ImageBackend, force=True)
