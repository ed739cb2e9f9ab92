"""A page of HTML in one file: tables, pictures, curves and commands, without anything from a network."""

import base64
import io
import mimetypes
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image

from ..utils.files import read_file, write_file

Picture = str | Path | Image.Image | Figure

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #555; --line: #ddd; --ground: #fff; --head: #f4f4f4; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --soft: #a8a8a8; --line: #444; --ground: #181a1b; --head: #24272a; --link: #8ab4f8; }
  img[src^="data:image/svg"] { filter: invert(.9) hue-rotate(180deg); }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; min-width: min(100%, 32rem); } caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { vertical-align: bottom; font-weight: 600; background: var(--head); }
.text td, .text th { text-align: left; } .text td { white-space: normal; overflow-wrap: anywhere; }
.text td:first-child { white-space: nowrap; }
@media (max-width: 40rem) { th, td { padding: .35rem .5rem; } .text td:first-child { white-space: normal; } }
figure { margin: 1rem 0; } figcaption { color: var(--soft); overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; } .grid figure { margin: 0; }
.zoom { display: block; border: 0; padding: 0; background: none; cursor: zoom-in; max-width: 100%; } .grid .zoom { width: 100%; }
img, canvas { max-width: 100%; } .zoom img { display: block; } .grid .zoom img { width: 100%; } img { background: #fff; }
dialog { border: 0; padding: 0; max-width: 100vw; max-height: 100vh; background: var(--ground); overflow: auto; }
dialog::backdrop { background: #000c; } dialog img { max-width: none; display: block; min-width: min(90vw, 60rem); cursor: zoom-out; }
code, pre { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; } pre { white-space: pre-wrap; }
td code { display: block; text-align: left; white-space: normal; min-width: 12rem; max-width: 50rem; } summary { cursor: pointer; }
"""
SCRIPT = """
const large = document.getElementById('large');
document.querySelectorAll('.zoom').forEach(button => button.addEventListener('click', () => {
  const image = button.querySelector('img');
  large.firstElementChild.src = image.src;
  large.firstElementChild.alt = image.alt;
  large.showModal();
}));
large.addEventListener('click', () => large.close());
"""


class Page:
    """Collects parts in the order they are to appear. Pictures become part of the file; a click enlarges them.

    Args:
        path: The file to write; links to other files are relative to its folder, so that the folder can be moved.
        title: Of the page.
    """

    def __init__(self, path: str | Path, title: str):
        self.path = Path(path)
        self.title = title
        self.parts: list[str] = []

    def heading(self, text: str):
        self.parts.append(f'<h2>{escape(text)}</h2>')

    def text(self, text: str):
        self.parts.append(f'<p>{escape(text)}</p>')

    def table(self, rows: Sequence[Sequence[str]], caption: str = '', text: bool = False):
        """Rows of text, the header first. Numbers keep to one line; with `text` cells are broken where they are long."""
        head, *body = rows
        lines = [f'<tr>{"".join(f"<th>{escape(cell)}</th>" for cell in head)}</tr>']
        lines += [f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>' for row in body]
        title = f'<caption>{escape(caption)}</caption>' if caption else ''
        self.parts.append(f'<div class="scroll"><table{" class=text" if text else ""}>{title}{"".join(lines)}</table></div>')

    def picture(self, picture: Picture, caption: str):
        """A file, a PIL image, or a matplotlib figure; the caption is its alternative text too."""
        self.parts.append(figure(picture, caption))

    def pictures(self, pictures: Sequence[tuple[Picture, str]]):
        """Pictures with captions, beside each other as far as there is room."""
        self.parts.append(f'<div class="grid">{"".join(figure(*one) for one in pictures)}</div>')

    def details(self, summary: str, text: str):
        """Long text that is shown on demand."""
        self.parts.append(f'<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>')

    def html(self, text: str):
        """A part that is written in HTML."""
        self.parts.append(text)

    def commands(self, entries: Sequence[tuple[str, str, str, str | Path]]):
        """Commands as (title, command, time taken, log file)."""
        rows = []
        for title, command, taken, log in entries:
            cells = (f'{escape(title)}<code>{escape(command)}</code>', escape(taken), f'<a href="{self.link(log)}">log</a>')
            rows.append(f'<tr>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
        self.parts.append(f'<div class="scroll"><table><tr><th>command</th><th>time</th><th></th></tr>{"".join(rows)}</table></div>')

    def files(self, paths: Sequence[str | Path]):
        """Links to files."""
        self.parts.append('<p>' + ' · '.join(f'<a href="{self.link(path)}">{escape(Path(path).name)}</a>' for path in paths) + '</p>')

    def link(self, path: str | Path) -> str:
        return escape(quote(os.path.relpath(path, self.path.parent)))

    def write(self):
        """Write the file."""
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title>'
        body = '\n'.join(self.parts)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(
            self.path,
            f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>\n{body}\n'
            f'<dialog id="large"><img src="data:," alt=""></dialog><script>{SCRIPT}</script></body></html>\n',
        )


def figure(picture: Picture, caption: str) -> str:
    """A picture with its caption, which a click enlarges."""
    image = f'<img src="{data_url(picture)}" alt="{escape(caption)}" loading="lazy">'
    return f'<figure><button class="zoom" title="Enlarge">{image}</button><figcaption>{escape(caption)}</figcaption></figure>'


def data_url(picture: Picture) -> str:
    """A picture as text that a page holds."""
    if isinstance(picture, str | Path):
        kind, content = mimetypes.guess_type(str(picture))[0] or 'image/png', read_file(picture)
    else:
        buffer = io.BytesIO()
        if isinstance(picture, Figure):
            picture.savefig(buffer, format='svg')
            kind = 'image/svg+xml'
        else:
            picture.save(buffer, 'PNG')
            kind = 'image/png'
        content = buffer.getvalue()
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'
