# ADE20K, the 150 classes of the scene parsing benchmark, in the layout that mmseg documents:
# images/{training,validation}/*.jpg and annotations/{training,validation}/*.png (0 = other, left out; 1..150 = the classes).

_base_ = './segmentation_512x512.py'

# ---- often changed
data_root = 'data/ade/ADEChallengeData2016'

# ---- rarely changed
data_preparation = (
    'Unpack ADEChallengeData2016.zip (http://sceneparsing.csail.mit.edu) into data/ade/, or set data_root of the dataloaders.'
)
train_dataloader = dict(
    dataset=dict(
        type='ADE20KDataset', data_root=data_root, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')
    )
)
val_dataloader = dict(
    dataset=dict(
        type='ADE20KDataset', data_root=data_root, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')
    )
)
test_dataloader = val_dataloader
