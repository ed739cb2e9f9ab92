"""Compose scikit-learn's bundled handwritten digits into colour scenes for pretraining, classification, detection and segmentation.

The 1,797 real 8x8 digits of `sklearn.datasets.load_digits` (UCI) are split into train, val and test once and for all, and every image is
composed from digits of its own split only. Writes, in the formats that the ordinary loaders read:

    classification/{train,val,test}/{0..9}/*.png   32x32, one digit each (mmpretrain CustomDataset)
    scenes96/{split}/*.png, annotations/scenes96_{split}.json   COCO instances with boxes and masks of the visible part (mmdet)
    scenes64/{split}/*.png, scenes64_labels/{split}/*.png, scenes96_labels/...   label maps, 0 = background, 1..10 = digit 0..9 (mmseg)
    pretrain/{tiles32,scenes64,scenes96}/*.png     unlabelled, from training digits only
    sources.json   which digits stand in which image;  sheet.png   a look at all of it

    python tools/dataset_converters/make_digit_scenes.py --out data/digits

make_scenes.py does the same with other pictures.
"""

import argparse

from scenes.composer import PRETRAIN64, PRETRAIN96, SCENES64, SCENES96, Tree
from scenes.files import Refused
from scenes.making import add_options, make_scenes, parse
from scenes.pictures import Digits

# The order is part of what the images depend on.
TREES = (
    Tree('classification', 32, {'train': 6000, 'val': 1000, 'test': 2000}, (1,), (34, 42), (0, 2)),
    SCENES64,
    SCENES96,
    Tree('pretrain/tiles32', 32, {'train': 8000}, (1,), (34, 42), (0, 2), labelled=False),
    PRETRAIN64,
    PRETRAIN96,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 'data/digits')
    args = parse(parser)
    try:
        make_scenes(args, Digits.kind, Digits, TREES)
    except Refused as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
