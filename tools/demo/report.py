"""What the demo leaves: results.json, results.md, and index.html with the tables, the pictures and every command."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from results import markdown, read_results, summarize, table

from mmcae.commands.jobs import JobRunner
from mmcae.utils.files import write_file
from mmcae.utils.progress import duration
from mmcae.visualization.page import Page

TITLE = 'mmcae: Context Autoencoder on handwritten digits'
INTRODUCTION = (
    'A small vision transformer (4 blocks, 96 channels, 8x8 patches) was pretrained by CAE on unlabelled images of real handwritten '
    'digits, then judged, and carried into detection and segmentation, side by side with random initialisation at the same budget.'
)
# Headings, and under each the pictures with their captions.
SECTIONS = {
    'Masked and reconstructed': {
        'digits': 'Test digits. Half of the patches are hidden; the tokenizer draws the tokens that CAE predicts for them. The tokens '
        'hold the pattern of light and dark; the mean colour and the contrast of every patch are taken from the true image.',
        'scenes': 'The same on test scenes.',
    },
    'Where the encoder looks': {'attention': 'Attention of the cls token to the patches in the last block, on test scenes.'},
    'Detection': {
        'mask_rcnn': 'Mask R-CNN on the first scenes of the test set, boxes of a score of at least 0.5.',
        'mask_rcnn_curves': 'Its training.',
    },
    'Segmentation': {'upernet': 'UperNet on the first scenes of the test set.', 'upernet_curves': 'Its training.'},
    'Pretraining': {'pretrain_curves': 'What pretraining logged.'},
}


def picture_of(out: Path, name: str) -> Path:
    """Where the picture of a name in :data:`SECTIONS` is."""
    return out / 'pictures' / name / f'{name}.png'


def write_report(
    out: Path,
    figures: Mapping[tuple[str, str], Sequence[float]],
    published: Path,
    runner: JobRunner,
    seconds: float,
) -> str:
    """Write all of it.

    Args:
        out: The demo's folder.
        figures: One figure per seed, as fractions, by encoder and protocol.
        published: The results.json to compare with; nothing is compared where there is none.
        runner: Has run all commands.
        seconds: The last run took, which may have found most of the work done.

    Returns:
        The tables, as Markdown.
    """
    results = summarize(figures)
    write_file(out / 'results.json', json.dumps(results, indent=1) + '\n')
    count = max(map(len, figures.values()))
    seeds = 'seed 0' if count == 1 else f'seeds 0 to {count - 1}, mean ± standard deviation'
    tables = {f'This run: {seeds}': table(results)}
    if published.exists():
        shutil.copy(published, out / 'published_results.json')
        tables['Published: mean ± standard deviation of three seeds'] = table(read_results(published))
    text = '\n'.join(f'## {title}\n\nTest split, in per cent.\n\n{markdown(rows)}' for title, rows in tables.items())
    write_file(out / 'results.md', f'# Results on the embedded digits\n\n{text}')
    write_page(out, tables, runner, seconds)
    return text


def write_page(out: Path, tables: Mapping[str, Sequence[Sequence[str]]], runner: JobRunner, seconds: float):
    """Write index.html; the pictures and logs have to be there."""
    records = {name: runner.record(name) for name in runner.jobs}
    work = sum(record['seconds'] for record in records.values())
    machine = f'GPU {torch.cuda.get_device_name()}' if torch.cuda.is_available() else 'CPU'
    page = Page(out / 'index.html', TITLE)
    page.text(INTRODUCTION)
    page.text(
        f'{len(records)} commands, {runner.lanes} at a time, {duration(work)} of work in all, {duration(seconds)} for the last run. '
        f'torch {torch.__version__} on {machine}.'
    )
    page.heading('Results')
    for title, rows in tables.items():
        page.table(rows, f'{title}. Test split, in per cent.')
    page.files([path for path in (out / 'results.md', out / 'results.json', out / 'published_results.json') if path.exists()])
    for heading, pictures in SECTIONS.items():
        page.heading(heading)
        for name, caption in pictures.items():
            page.picture(picture_of(out, name), caption)
    page.heading('Every command')
    page.text('Each can be repeated and changed by hand, from the folder that the demo was started in.')
    page.commands(
        [
            (job.title, records[name]['command'], duration(records[name]['seconds']), runner.log_of(name))
            for name, job in runner.jobs.items()
        ]
    )
    page.write()
