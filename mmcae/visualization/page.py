"""A page of HTML with tables, pictures and commands, in one file next to its pictures."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.8rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4; } th:first-child, td:first-child { text-align: left; }
th { vertical-align: bottom; font-weight: 600; background: #f6f6f6; }
img { max-width: 100%; } figure { margin: 1rem 0; } figcaption { color: #555; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; } td code { display: block; text-align: left; max-width: 50rem; }
"""


class Page:
    """Collects parts in the order they are to appear.

    Args:
        path: The file to write; links are relative to its folder, so that the folder can be moved.
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

    def table(self, rows: Sequence[Sequence[str]], caption: str = ''):
        """Rows of text, the header first."""
        head, *body = rows
        lines = [f'<tr>{"".join(f"<th>{escape(text)}</th>" for text in head)}</tr>']
        lines += [f'<tr>{"".join(f"<td>{escape(text)}</td>" for text in row)}</tr>' for row in body]
        self.parts.append(f'<table><caption>{escape(caption)}</caption>{"".join(lines)}</table>')

    def picture(self, path: str | Path, caption: str):
        link = self.link(path)
        self.parts.append(
            f'<figure><a href="{link}"><img src="{link}" alt="{escape(caption)}"></a><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def commands(self, entries: Sequence[tuple[str, str, str, str | Path]]):
        """Commands as (title, command, time taken, log file)."""
        rows = []
        for title, command, taken, log in entries:
            cells = (f'{escape(title)}<code>{escape(command)}</code>', escape(taken), f'<a href="{self.link(log)}">log</a>')
            rows.append(f'<tr>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
        self.parts.append(f'<table><tr><th>command</th><th>time</th><th></th></tr>{"".join(rows)}</table>')

    def files(self, paths: Sequence[str | Path]):
        """Links to files."""
        self.parts.append('<p>' + ' · '.join(f'<a href="{self.link(path)}">{escape(Path(path).name)}</a>' for path in paths) + '</p>')

    def link(self, path: str | Path) -> str:
        return escape(quote(os.path.relpath(path, self.path.parent)))

    def write(self):
        """Write the file."""
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title>'
        body = '\n'.join(self.parts)
        self.path.write_text(
            f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n'
            f'<body><h1>{escape(self.title)}</h1>\n{body}\n</body></html>\n'
        )
