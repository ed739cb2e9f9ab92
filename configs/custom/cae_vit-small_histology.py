r"""CAE with a ViT-S encoder on tiles of stained tissue (haematoxylin and eosin): cae_vit-small_folder.py with what is known about tissue.

    mmcae train custom/cae_vit-small_histology data_root=TILES

The folder holds tiles as the usual tilers write them, such as one folder for each slide. Tissue has no top and no side, so tiles are
flipped and turned by 90 degrees; laboratories stain differently, so the amounts of the stains vary. Both views of a tile share all of it.
With the resolution of the tiles, crops are cut by physical size: set one of

    tile_mpp=0.5                                     all tiles have 0.5 microns per pixel
    mpp_table=/path/to/slides.csv                    columns path and mpp: tiles, or folders of tiles
    mpp_pattern='_mpp(?P<mpp>\d+\.\d+)'           it stands in the names

docs/histology.md goes from slides to an encoder in timm.
"""

_base_ = ['cae_vit-small_folder.py']

# ---- often changed; more in cae_vit-small_folder.py
tile_mpp = None
mpp_table = None
mpp_pattern = None
view_mpp = (0.5, 1.5)  # microns per pixel of the view, finest and coarsest: 20x to about 7x. Tiles must be large enough for the finest
crop_scale = (0.25, 1.0)  # where the resolution of the tiles is not known: share of the tile's area

# ---- possibly changed: how far the stains vary
stain_scale = 0.15
stain_shift = 0.03

# ---- rarely changed
data_preparation = 'Put the tiles there, such as in a folder for each slide, or name their folder: data_root=TILES'
known = dict(tile_mpp=tile_mpp, table=mpp_table, pattern=mpp_pattern)
by_microns = [dict(type='mmcae.MicronScale', mpp=view_mpp, view_size=_base_.image_size, **known)]
train_pipeline = [
    _base_.loading,
    *(by_microns if any(source is not None for source in known.values()) else []),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='mmcae.RandomRotate90'),
    dict(type='mmcae.HEDJitter', scale=stain_scale, shift=stain_shift),
    {**_base_.crop, **_base_.second_view, 'scale': crop_scale},
    _base_.mask,
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
