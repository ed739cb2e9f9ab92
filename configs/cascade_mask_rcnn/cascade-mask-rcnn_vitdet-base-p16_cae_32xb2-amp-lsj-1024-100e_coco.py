# Cascade Mask R-CNN on CAE ViT-B/16 by ViTDet's recipe. There is no reported figure from CAE; detectron2's model zoo has, from MAE's
# encoder, 54.0 box / 46.7 mask AP. The numbers are those of its config cascade_mask_rcnn_vitdet_b_100ep, but for what the header of
# mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco.py names.
#
# ---- often changed, on the command line: as for Mask R-CNN
# ---- possibly changed

_base_ = [
    '../_base_/models/cascade_mask_rcnn_vitdet-base.py',
    '../_base_/datasets/coco_instance_lsj-1024.py',
    '../_base_/schedules/detection_lsj-100e.py',
    '../_base_/runtimes/detection.py',
]
