"""The head of attentive probing: one learned query looks at all tokens of a frozen encoder."""

import torch
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from ...registry import MODELS
from ..encoders.layers import LAYER_NORM_EPS
from ..methods.regressor import CrossAttention

# Cut at four standard deviations: mmengine's own cut at +-2 lets about one weight in 15 million be -2.
INIT = dict(type='TruncNormal', layer='Linear', std=0.02, a=-0.08, b=0.08, override=dict(type='Normal', name='fc', std=0.01))


@MODELS.register_module()
class AttentiveClsHead(LinearClsHead):
    """Attentive probing (arXiv 2202.03026, section 4.2): cross attention from one query, batch norm without scale and shift, classifier.

    There is no residual connection, no MLP and no position: the head can only choose which tokens to read. At evaluation the batch norm
    uses its running statistics, so that a prediction does not depend on the other images of the batch. (The authors' released code uses
    the statistics of the batch there too.)

    Args:
        num_classes: Number of classes.
        in_channels: Width C of the encoder, whose `out_type` must be 'raw': all tokens after the final norm, the cls token among them.
        num_heads: Attention heads; the paper takes the encoder's number.
        init_cfg: Initial weights; the paper's by default.
        **kwargs: For mmpretrain's ClsHead: `loss`, `topk`, `cal_acc`.
    """

    def __init__(self, num_classes: int, in_channels: int, num_heads: int, init_cfg: dict | None = INIT, **kwargs):
        super().__init__(num_classes, in_channels, init_cfg=init_cfg, **kwargs)
        self.query_token = nn.Parameter(torch.zeros(1, 1, in_channels))
        self.norm_q = nn.LayerNorm(in_channels, eps=LAYER_NORM_EPS)
        self.norm_k = nn.LayerNorm(in_channels, eps=LAYER_NORM_EPS)
        self.norm_v = nn.LayerNorm(in_channels, eps=LAYER_NORM_EPS)
        self.attn = CrossAttention(in_channels, num_heads)
        self.bn = nn.BatchNorm1d(in_channels, affine=False, eps=1e-5)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Tokens (B, n, C), the last of `feats` -> what the query reads from them, normalised (B, C)."""
        tokens = feats[-1]
        query = self.norm_q(self.query_token).expand(len(tokens), -1, -1)
        return self.bn(self.attn(query, self.norm_k(tokens), self.norm_v(tokens))[:, 0])
