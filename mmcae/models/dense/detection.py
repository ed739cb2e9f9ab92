"""Three parts of mmdet's two-stage detectors, extended: to bfloat16, to maps of any memory layout, to masks in test-time augmentation."""

import torch
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import RPNHead as MMDetRPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor as MMDetSingleRoIExtractor
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from torch import Tensor

from ...utils.errors import ConfigError


class RPNHead(MMDetRPNHead):
    """mmdet's RPNHead, whose proposals are computed in float32 under mixed precision too.

    mmdet gives the anchors the precision of the predictions, but in bfloat16 the coordinates of a box at the right of an image of 1333
    pixels are multiples of 8. Takes the arguments of mmdet's.

    Raises:
        ConfigError: In training: the strides of its anchors are not those of its maps, as with another encoder's patches.
    """

    def get_anchors(self, featmap_sizes, batch_img_metas, device='cuda'):
        """mmdet's, for maps whose strides are those of the config."""
        size, (height, width) = batch_img_metas[0].get('batch_input_shape'), featmap_sizes[0]
        stride_w, stride_h = self.prior_generator.strides[0]  # mmdet keeps (w, h)
        if size and (abs(height * stride_h - size[0]) >= stride_h or abs(width * stride_w - size[1]) >= stride_w):
            found = 'x'.join(f'{pixels / cells:g}' for pixels, cells in zip(size, featmap_sizes[0], strict=True))
            raise ConfigError(
                f'The first map has a stride of {found} pixels, and rpn_head.anchor_generator.strides begins with {stride_h:g}: set '
                'strides there, and featmap_strides of the RoI extractors, that fit the patches of the backbone'
            )
        return super().get_anchors(featmap_sizes, batch_img_metas, device)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, h, w), one per stride -> scores (B, A, h, w) and box corrections (B, 4 A, h, w) of each, in float32."""
        return tuple([prediction.float() for prediction in level] for level in super().forward(x))


class SingleRoIExtractor(MMDetSingleRoIExtractor):
    """mmdet's SingleRoIExtractor, whose RoIAlign also works in bfloat16 and on maps that are not contiguous.

    mmcv's RoIAlign has no bfloat16, and it reads a map that is not contiguous, such as a convolution in channels_last gives, as if it were:
    its results are garbage then, without an error. Takes the arguments of mmdet's.
    """

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Maps (B, C, h, w), one per stride, and boxes (n, 5) -> (n, C, size, size), in float32 where the maps are bfloat16."""
        feats = tuple((x.float() if x.dtype == torch.bfloat16 else x).contiguous() for x in feats)
        return super().forward(feats, rois, roi_scale_factor)


class MaskTTAModel(DetTTAModel):
    """Merge the detections of several views of an image: boxes as mmdet's DetTTAModel does, and masks with their boxes.

    The detections of all views, flipped back, compete in one non-maximum suppression; those that are left keep the mask that was predicted
    with them. Detectors without masks work too.

    Args:
        tta_cfg (dict): `nms`, the suppression in mmcv's terms, and `max_per_img`, the number of detections to keep.
        module (nn.Module | dict): The detector.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        merged = data_samples[0]
        views = [sample.pred_instances for sample in data_samples]
        boxes, scores = self.merge_aug_bboxes([v.bboxes for v in views], [v.scores for v in views], [s.metainfo for s in data_samples])
        if not len(boxes):
            return merged
        labels = torch.cat([view.labels for view in views])
        kept_boxes, kept = batched_nms(boxes, scores, labels, self.tta_cfg['nms'])
        kept_boxes, kept = kept_boxes[: self.tta_cfg['max_per_img']], kept[: self.tta_cfg['max_per_img']]
        instances = type(views[0])(bboxes=kept_boxes[:, :4], scores=kept_boxes[:, 4], labels=labels[kept])
        if 'masks' in views[0]:
            instances.masks = torch.cat([flip_back(s.pred_instances.masks, s.metainfo) for s in data_samples])[kept]
        merged.pred_instances = instances
        return merged


def flip_back(masks: Tensor, metainfo: dict) -> Tensor:
    """Masks (n, H, W) of a view in the orientation of the image."""
    if not metainfo['flip']:
        return masks
    return masks.flip({'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}[metainfo['flip_direction']])
