"""Turn links of the documentation to files of the repository into links to pages of the site that show them.

Pages are written so that their links work where the repository is browsed: `../configs/digits/` or `../mmcae/models/methods/cae.py`. What
lies outside docs/ is not part of a site, so each file that is linked to gets a page with its text, and each folder one with its files.
Links that are named by a file of docs/, `[tutorial.md](tutorial.md)`, are named by the title of the page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r'(\]\()((?:\.\./)+[^)\s#]*)((?:#[^)\s]*)?\))')
NAMED = re.compile(r'\[[\w/]+\.md\]\(([^)\s#]+\.md)((?:#[^)\s]*)?\))')
ROLE = re.compile(r':(?:func|class|meth|mod|attr|data):<code>(~?)([^<]*)</code>')
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.yml': 'yaml', '.toml': 'toml'}


def on_files(files, config):
    """Add the pages of files and folders that any page links to."""
    root = Path(config.docs_dir).parent
    for page in [file for file in files if file.src_uri.endswith('.md')]:
        for _, target, _ in LINK.findall(page.content_string):
            path = outside(page.src_uri, target)
            if path and (root / path).exists() and files.get_file_from_path(source_page(path)) is None:
                files.append(File.generated(config, source_page(path), content=text_of(root / path, path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links to files outside docs/ lead to their pages, and name links to pages by their titles."""

    def replace(match):
        path = outside(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        return match[1] + posixpath.relpath(source_page(path), posixpath.dirname(page.file.src_uri) or '.') + match[3]

    def name(match):
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[1])))
        title = re.match(r'# (.+)', file.content_string) if file else None
        return f'[{title[1]}]({match[1]}{match[2]}' if title else match[0]

    return LINK.sub(replace, NAMED.sub(name, markdown))


def on_page_content(html, page, config, files):
    """Docstrings name functions as Sphinx does, `:func:`~mmcae.apis.embed``; the site shows the name."""
    return ROLE.sub(lambda match: f'<code>{match[2].rpartition(".")[2] if match[1] else match[2]}</code>', html)


def outside(page, target):
    """The path of a link's target in the repository, or None if it lies in docs/."""
    path = posixpath.normpath(posixpath.join('docs', posixpath.dirname(page), target))
    return None if path.startswith(('docs/', '..')) or path == 'docs' else path


def source_page(path):
    """Where the page of a file or folder lies in the site."""
    return f'source/{path}.md'


def text_of(file, path):
    """The page of a file or a folder, as Markdown."""
    if file.is_dir():
        return f'# {path}\n\n' + '\n'.join(f'- `{entry.name}`' for entry in sorted(file.iterdir()) if not entry.name.startswith(('_', '.')))
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.md':  # its own links hold in its own place
        return re.sub(r'!?\[([^\]]*)\]\((?!https?:)[^)]*\)', r'\1', text)
    return f'# {path}\n\n````{LANGUAGES.get(file.suffix, "text")}\n{text}\n````\n'
