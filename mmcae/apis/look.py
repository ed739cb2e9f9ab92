"""A page that shows what encoders make of images: colours, similarity, attention, what CAE's regressor reads, reconstructions."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints import read_weights
from ..evaluation.attention_weights import cross_attention, self_attention
from ..models import Encoder
from ..utils.errors import ConfigError
from ..visualization.attention import overlay
from ..visualization.page import Page, data_url
from ..visualization.patch_features import pca_colors, similarities
from ..visualization.reconstruction import reconstruction_sheet
from ..visualization.sheet import as_rgb, enlarge, picture_sheet
from .features import load_encoder_and_view
from .images import load_image, resize
from .load import load_cae
from .reconstruct import load_pretrained, reconstruct
from .view import View

SIDE = 224  # pixels of a picture on the page
SIMILARITY = """
<style>.similar { display: flex; flex-wrap: wrap; gap: .6rem; } .similar figure { margin: 0; max-width: 100%; }
.similar canvas { cursor: crosshair; display: block; }</style>
<script>
document.querySelectorAll('.similar').forEach(group => {
  const views = [...group.querySelectorAll('canvas')].map(canvas => {
    const cells = Uint8Array.from(atob(canvas.dataset.cells), letter => letter.charCodeAt(0));
    const image = new Image();
    const view = {canvas, cells, image, rows: +canvas.dataset.rows, columns: +canvas.dataset.columns};
    image.onload = () => draw(view);
    image.src = canvas.dataset.image;
    return view;
  });
  let at = [0.5, 0.5];  // of height and width
  function draw({canvas, cells, image, rows, columns}) {
    const pen = canvas.getContext('2d'), count = rows * columns;
    const row = Math.min(rows - 1, Math.floor(at[0] * rows)), column = Math.min(columns - 1, Math.floor(at[1] * columns));
    const line = cells.subarray((row * columns + column) * count, (row * columns + column + 1) * count);
    const low = Math.min(...line), high = Math.max(...line), wide = canvas.width / columns, tall = canvas.height / rows;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    line.forEach((value, cell) => {
      const share = (value - low) / Math.max(1, high - low);
      pen.fillStyle = `rgba(${Math.round(255 * share)}, ${Math.round(120 * share * share)}, ${Math.round(90 * (1 - share))}, 0.7)`;
      pen.fillRect(cell % columns * wide, Math.floor(cell / columns) * tall, wide + .5, tall + .5);
    });
    pen.lineWidth = 2; pen.strokeStyle = '#fff';
    pen.strokeRect(column * wide, row * tall, wide, tall);
    const name = canvas.dataset.name;
    canvas.setAttribute('aria-label', `${name}: similarity to the patch in row ${row + 1}, column ${column + 1}`);
  }
  views.forEach(view => {
    view.canvas.addEventListener('click', event => {
      at = [event.offsetY / view.canvas.clientHeight, event.offsetX / view.canvas.clientWidth];
      views.forEach(draw);
    });
    view.canvas.addEventListener('keydown', event => {
      const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
      if (!step) return;
      event.preventDefault();
      const move = (place, by, count) => (Math.min(count - 1, Math.max(0, Math.floor(place * count) + by)) + .5) / count;
      at = [move(at[0], step[0], view.rows), move(at[1], step[1], view.columns)];
      views.forEach(draw);
    });
  });
});
</script>
"""


@dataclass
class Shown:
    """A checkpoint as a page shows it.

    Attributes:
        encoder: In eval mode.
        view: What it is shown.
        model: The pretraining model, if the file has a regressor; its cross-attention is shown.
        pretrained: The pretraining model with its target, if a config tells it; its reconstructions are shown.
        note: Why there are no reconstructions, where some are expected.
    """

    encoder: Encoder
    view: View
    model: nn.Module | None = None
    pretrained: nn.Module | None = None
    note: str = ''


def load_shown(path: str | Path, config: str | Path | None = None, num_heads: int | None = None, decoder_num_heads: int | None = None):
    """What can be shown of a checkpoint.

    Args:
        path: The checkpoint.
        config: Of its pretraining, for reconstructions.
        num_heads, decoder_num_heads: Of the encoder and the regressor, where the file does not tell.

    Returns:
        Shown: What the file and the config tell.

    Raises:
        CheckpointError: It holds no encoder, or is not of this config.
        ConfigError: The config describes neither CAE nor CAE v2.
    """
    weights = read_weights(path)
    encoder, view = load_encoder_and_view(weights, **({} if num_heads is None else dict(num_heads=num_heads)))
    shown = Shown(encoder.eval(), view)
    if 'regressor.mask_token' in weights.state:
        shown.model = load_cae(weights, num_heads, decoder_num_heads).eval()
    if config is not None:
        shown.pretrained = load_pretrained(config, weights)
    return shown


def write_encoder_page(encoders: Mapping[str, Shown], images: Sequence[str | Path], out: str | Path, **settings) -> Path:
    """Write a page; the arguments are those of :func:`add_encoders`, and `out` is the file, `.html`."""
    page = Page(out, f'Images as seen by {", ".join(encoders)}')
    add_encoders(page, encoders, images, **settings)
    page.write()
    return page.path


def add_encoders(
    page: Page,
    encoders: Mapping[str, Shown],
    images: Sequence[str | Path],
    side: int | None = None,
    mask_ratio: float = 0.5,
    masks: int = 3,
    seed: int = 0,
):
    """Add to a page what encoders make of images.

    Args:
        page: To add to.
        encoders: From :func:`load_shown`, by name.
        images: Files of any sizes.
        side: Pixels of the longer side as the encoders see it. Defaults to that of each encoder's view.
        mask_ratio: Share of the patches that is hidden from pretraining models.
        masks: Random masks of each image that is reconstructed.
        seed: Of the masks.

    Raises:
        DataError: An image cannot be read, or there are too few patches for colours.
    """
    cuts = {key: [whole_image(image, one.encoder, one.view, side) for image in images] for key, one in encoders.items()}
    features = {key: [patches_of(one.encoder, one.view, cut) for cut in cuts[key]] for key, one in encoders.items()}
    names = [Path(image).name for image in images]
    page.heading('Patch features as colours')
    page.text(
        'The first three principal components of the last patch features, of all images together. Components of further encoders are '
        'turned to match those of the first.'
    )
    colors = pca_colors(list(features.values()))
    shown = [as_rgb(cut) for cut in next(iter(cuts.values()))]
    rows = [[image, *(enlarge(one[number], SIDE, smooth=False) for one in colors)] for number, image in enumerate(shown)]
    page.picture(picture_sheet(rows, ['image', *encoders], SIDE, smooth=False), f'{", ".join(names)}, and features as colours')
    page.heading('Similarity to a patch')
    page.text('Click on a patch, or move by the arrow keys: its cosine to all others, from low (dark blue) to high (orange).')
    for number, name in enumerate(names):
        page.html(similarity_html(name, {key: (cuts[key][number], features[key][number]) for key in encoders}))
    page.html(SIMILARITY)
    for key, one in encoders.items():
        if not one.encoder.has_cls:
            continue
        page.heading(f'Attention of the cls token: {key}')
        for name, cut in zip(names, cuts[key], strict=True):
            page.picture(block_sheet(one.encoder, one.view, cut), f'{name}: blocks in rows, heads in columns')
    for key, one in encoders.items():
        if one.model is not None:
            page.heading(f'What the regressor reads: {key}')
            page.text(f'{mask_ratio:.0%} of the patches are hidden (grey). For some (framed): the patches that the regressor attends to.')
            for name, cut in zip(names, cuts[key], strict=True):
                page.picture(regressor_sheet(one.model, one.view, cut, mask_ratio, seed), f'{name}: cross-attention of the regressor')
    for key, one in encoders.items():
        if one.pretrained is not None or one.note:
            add_reconstructions(page, key, one, images, mask_ratio, masks, seed)


def add_reconstructions(page: Page, key: str, shown: Shown, images: Sequence[str | Path], mask_ratio: float, masks: int, seed: int):
    """Several masks of each image, reconstructed; or the reason why there are none."""
    page.heading(f'Reconstructions: {key}')
    note, sheets = shown.note, []
    try:
        for image in images if shown.pretrained is not None else ():
            rows = [reconstruct(shown.pretrained, image, mask_ratio, seed=seed + number) for number in range(masks)]
            sheets.append((reconstruction_sheet(rows), f'{Path(image).name}: a random mask in each row, {mask_ratio:.0%} hidden'))
    except ConfigError as error:  # a target that cannot be drawn
        note = str(error)
    for sheet in sheets:
        page.picture(*sheet)
    if note:
        page.text(f'There are none. {note}')


def whole_image(path, encoder: Encoder, view: View, side: int | None = None) -> np.ndarray:
    """An image, all of it and in its proportions as far as patches allow.

    Args:
        path: What :func:`mmcae.apis.images.load_image` takes.
        encoder: Whose patches tile the result.
        view: Of the encoder.
        side: Pixels of the longer side, rounded to patches. Defaults to that of the view.

    Returns:
        (h, w, channels), not normalised.
    """
    image = load_image(path, view.channels)
    scale = (side or max(view.size)) / max(image.shape[:2])
    size = tuple(max(1, round(n * scale / p)) * p for n, p in zip(image.shape[:2], encoder.patch_size, strict=True))
    return resize(image, size, Image.Resampling[view.interpolation.upper()])


@torch.no_grad()
def patches_of(encoder: Encoder, view: View, image: np.ndarray) -> Tensor:
    """The last tokens of the patches of one image (h, w, channels): float32 (rows, columns, C)."""
    images = view.normalize([image]).to(next(encoder.parameters()).device)
    tokens = encoder.encode(images)[0, encoder.num_prefix_tokens :]
    return tokens.float().cpu().unflatten(0, encoder.grid_of(images.shape[-2:]))


def similarity_html(name: str, shown: Mapping[str, tuple]) -> str:
    """The clickable pictures of one image, one for each encoder: (image (h, w, channels), features (rows, columns, C)) by name."""
    figures = []
    for key, (image, features) in shown.items():
        picture = enlarge(as_rgb(image), SIDE + SIDE // 2)
        rows, columns = features.shape[:2]
        cells = base64.b64encode(similarities(features).tobytes()).decode()
        label = escape(f'{key}, {name}')
        figures.append(
            f'<figure><canvas tabindex="0" role="img" aria-label="{label}" data-name="{label}" width="{picture.shape[1]}" '
            f'height="{picture.shape[0]}" data-rows="{rows}" data-columns="{columns}" data-cells="{cells}" '
            f'data-image="{data_url(Image.fromarray(picture))}"></canvas><figcaption>{label}</figcaption></figure>'
        )
    return f'<div class="similar">{"".join(figures)}</div>'


def block_sheet(encoder: Encoder, view: View, image: np.ndarray) -> Image.Image:
    """The attention of the cls token to the patches: a row for each block, a column for the mean and each head."""
    inputs = view.normalize([image]).to(next(encoder.parameters()).device)
    grid, rows = encoder.grid_of(inputs.shape[-2:]), []
    for block in range(encoder.num_layers):
        weights = self_attention(encoder, inputs, block, slice(1))[0, :, 0, encoder.num_prefix_tokens :]
        maps = weights.unflatten(-1, grid).cpu().float().numpy()
        rows.append([overlay(as_rgb(image), heads) for heads in (maps.mean(axis=0), *maps)])
    return picture_sheet(rows, ['mean', *(f'head {number}' for number in range(1, len(rows[0])))], 112)


def regressor_sheet(model: nn.Module, view: View, image: np.ndarray, mask_ratio: float, seed: int, queries: int = 5) -> Image.Image:
    """From which patches the last block of a regressor reads masked ones: the masked image, then one picture for each of some patches."""
    inputs = view.normalize([image]).to(next(model.parameters()).device)
    rows, columns = model.backbone.grid_of(inputs.shape[-2:])
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
    hidden = order[: min(max(1, round(mask_ratio * len(order))), len(order) - 1)].sort().values
    mask = torch.zeros(1, len(order), dtype=torch.bool)
    mask[0, hidden] = True
    weights = cross_attention(model, inputs, mask)[0].mean(dim=0).cpu().float().numpy()
    patch = [side // count for side, count in zip(image.shape[:2], (rows, columns), strict=True)]
    covered = np.where(np.kron(mask[0].view(rows, columns).numpy(), np.ones(patch, dtype=bool))[..., None], 128, as_rgb(image))
    cells = [covered.astype(np.uint8)]
    for number in np.linspace(0, len(hidden) - 1, min(queries, len(hidden))).astype(int):
        cells.append(framed(overlay(covered.astype(np.uint8), weights[number].reshape(rows, columns)), int(hidden[number]), columns, patch))
    return picture_sheet([cells], ['what the encoder sees', *(f'masked patch {number}' for number in range(1, len(cells)))], SIDE)


def framed(image: np.ndarray, cell: int, columns: int, patch: Sequence[int]) -> np.ndarray:
    """A copy of an image with a white frame around a patch."""
    image, width = image.copy(), max(1, min(patch) // 8)
    top, left = cell // columns * patch[0], cell % columns * patch[1]
    inner = image[top + width : top + patch[0] - width, left + width : left + patch[1] - width].copy()
    image[top : top + patch[0], left : left + patch[1]] = 255
    image[top + width : top + patch[0] - width, left + width : left + patch[1] - width] = inner
    return image
