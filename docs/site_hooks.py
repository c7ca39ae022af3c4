"""What MkDocs does not do by itself: the API reference, the table of models, and links out of docs/."""

import os
import posixpath
import re
from pathlib import Path

import api_reference
import tables
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s#]+")


def on_config(config):
    """Replaces the folders in the navigation by their pages."""
    config.nav = _expanded(config.nav)
    return config


def on_files(files: Files, config) -> Files:
    """Adds the API reference, and the files outside docs/ to which pages link."""
    for path, text in api_reference.pages().items():
        files.append(File.generated(config, path, content=text))
    waiting = [DOCS / file.src_uri for file in files.documentation_pages() if not file.generated_by]
    known = set()
    while waiting:
        page = waiting.pop()
        for path in _targets_outside_docs(page) - known:
            known.add(path)
            file = path.relative_to(ROOT).as_posix()
            added = File.generated(config, file, abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)
            files.append(added)
            waiting += [path] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Inserts the table of models, and makes links of the repository links of the site."""
    source = ROOT / page.file.src_uri if page.file.generated_by else DOCS / page.file.src_uri
    markdown = _LINK.sub(lambda link: _on_the_site(link[0], source), markdown)
    if page.file.src_uri == "models.md":
        markdown = tables.replaced(markdown, "models", tables.models_table(tables.README.read_text()))
    return markdown


def _expanded(nav: list) -> list:
    """Replaces "api/" and "results/" at any depth."""
    entries = []
    for entry in nav:
        if entry == "results/":
            entries += _results()
        elif isinstance(entry, dict):
            ((title, inner),) = entry.items()
            if inner == "api/":
                inner = list(api_reference.pages())
            entries.append({title: _expanded(inner) if isinstance(inner, list) else inner})
        else:
            entries.append(entry)
    return entries


def _results() -> list:
    """The overview first, then each result with its other pages."""
    paths = sorted((DOCS / "results").rglob("*.md"), key=lambda path: (path.parent, path.name != "README.md"))
    entries = []
    for path in paths:
        uri = path.relative_to(DOCS).as_posix()
        title = f"{path.stem.replace('_', ' ').capitalize()}: {path.parent.name}"
        entries.append(uri if path.name == "README.md" else {title: uri})
    return entries


def _targets_outside_docs(page: Path) -> set[Path]:
    targets = {Path(os.path.normpath(page.parent / link)) for link in _LINK.findall(page.read_text())}
    return {path for path in targets if path.is_file() and ROOT in path.parents and DOCS not in path.parents}


def _on_the_site(link: str, source: Path) -> str:
    """The site has the folder docs/ at its top, and the other files of the repository beside its contents."""
    target = Path(os.path.normpath(source.parent / link))
    if not (ROOT in target.parents and target.exists()):
        return link  # MkDocs warns
    return posixpath.relpath(_uri(target), _uri(source.parent))


def _uri(path: Path) -> str:
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
