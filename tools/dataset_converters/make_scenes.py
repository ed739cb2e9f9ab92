"""Compose the pictures of a class tree into colour scenes for pretraining, detection and segmentation.

The tree, `{train,val,test}/CLASS/*.png`, has pictures that each show one object on plain (or transparent) ground, such as Fashion-MNIST's
(fashion_mnist.py). Each scene is composed from pictures of its own split only. Grey objects are tinted, coloured ones keep their colours.
Writes, in the formats that the ordinary loaders read:

    scenes96/{split}/*.png, annotations/scenes96_{split}.json   COCO instances with boxes and masks of the visible part (mmdet)
    scenes64/{split}/*.png, scenes64_labels/{split}/*.png, scenes96_labels/...   label maps, 0 = background, 1... = the classes (mmseg)
    pretrain/{scenes64,scenes96}/*.png     unlabelled, from training pictures only
    sources.json   which pictures stand in which image;  sheet.png   a look at all of it

    python tools/dataset_converters/make_scenes.py data/fashion/classification --out data/fashion_scenes
"""

import argparse
from pathlib import Path

from scenes.composer import PRETRAIN64, PRETRAIN96, SCENES64, SCENES96
from scenes.files import Refused
from scenes.making import add_options, make_scenes, parse
from scenes.pictures import ClassTree


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 'data/scenes')
    parser.add_argument('pictures', type=Path, help='the class tree, with the folders train, val and test')
    args = parse(parser)
    if args.out.resolve().is_relative_to(args.pictures.resolve()):
        parser.error(f'{args.out} lies in {args.pictures}, whose folders are classes: choose a folder outside of it with --out')
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        pictures = ClassTree(args.pictures)
        settings = {'pictures': pictures.digest()}
        try:
            make_scenes(args, ClassTree.kind, lambda: pictures, (SCENES64, SCENES96, PRETRAIN64, PRETRAIN96), settings)
        except Refused as error:
            parser.error(str(error))


if __name__ == '__main__':
    main()
