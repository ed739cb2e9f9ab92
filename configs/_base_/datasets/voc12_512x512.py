# Pascal VOC 2012, 21 classes with the background, in its own layout.

_base_ = './segmentation_512x512.py'

data_preparation = (
    'Unpack VOCtrainval_11-May-2012.tar (http://host.robots.ox.ac.uk/pascal/VOC/voc2012) into data/, or set data_root of the dataloaders.'
)
voc12 = dict(
    type='PascalVOCDataset', data_root='data/VOCdevkit/VOC2012', data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass')
)
train_dataloader = dict(dataset=dict(ann_file='ImageSets/Segmentation/train.txt', **voc12))
val_dataloader = dict(dataset=dict(ann_file='ImageSets/Segmentation/val.txt', **voc12))
test_dataloader = val_dataloader
