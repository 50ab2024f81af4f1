"""The hook of mkdocs.yml: pages from outside of docs/, the API reference, links between them.

Pages link to files of the repository, for they are read there, too. In the site a Python module
becomes its page of the reference, and any other file a copy of it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
#: Pages of the site -> where they lie in the repository, outside of docs/.
OUTSIDE = {
    "index.md": "README.md",
    "recipes/README.md": "recipes/README.md",
    "tests/benchmarks/README.md": "tests/benchmarks/README.md",
    "tests/reliability/README.md": "tests/reliability/README.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> None:
    """Adds the reference to the navigation."""
    config.nav.append({"Reference": [*reference(ROOT / "transformer")]})


def reference(package: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of the navigation for a package: itself, its modules, its packages."""
    yield {package.name: in_site(package.relative_to(ROOT).as_posix())}
    for module in sorted({*package.glob("*.py")} - {package / "__init__.py"}):
        yield {module.stem: in_site(module.relative_to(ROOT).as_posix())}
    for inner in sorted(package.glob("*/__init__.py")):
        yield {inner.parent.name: [*reference(inner.parent)]}


def in_site(path: str) -> str:
    """Says where a file or a folder of the repository is in the site."""
    for page, origin in OUTSIDE.items():
        if path == origin or f"{path}/README.md" == origin:
            return page
    if path.startswith("transformer"):
        is_package = not path.endswith(".py") or path.endswith("__init__.py")
        module = path.removesuffix(".py").removesuffix("/__init__")
        return f"reference/{module}{'/index' if is_package else ''}.md"
    return path.removeprefix("docs/")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside of docs/, and a page for each module."""
    for page, origin in OUTSIDE.items():
        text = (ROOT / origin).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for path in (ROOT / "transformer").rglob("*.py"):
        module = path.relative_to(ROOT).as_posix()
        name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        page = File.generated(config, in_site(module), content=f"# {name}\n\n::: {name}\n")
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links to the repository into links to pages, or to copies of files, of the site."""
    here = page.file.src_uri
    origin = PurePosixPath(OUTSIDE.get(here, f"docs/{here}")).parent

    def linked(match: re.Match[str]) -> str:
        image, text, link, anchor = match.groups()
        target = os.path.normpath(origin / link)
        uri = in_site(target)
        if files.get_file_from_path(uri) is None:
            if (ROOT / target).is_dir():  # the site has no pages for those
                return str(text)
            if (ROOT / target).is_file():
                copy = File.generated(config, uri, abs_src_path=str(ROOT / target))
                files.append(copy)
        return f"{image}[{text}]({os.path.relpath(uri, os.path.dirname(here))}{anchor or ''})"

    return LINK.sub(linked, markdown)
