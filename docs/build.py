"""What .mkdocs.yml needs of ours: links that lead out of docs/, and the examples of docstrings.

What pages link to outside of docs/ becomes a part of the site. In the repository a page says
`../SECURITY.md`; on the site that file is a page beside it. What is no Markdown is there as it is.
A file from outside is not followed further: its links to files that the site has not become text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files


class ExamplesAreCode(Extension):
    """Has `Example:` of a docstring taken for the section that griffe calls `Examples:`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename it."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )


LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?( \"[^\"]*\")?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to with `../`, and the pictures of those that are pages."""
    root = Path(config.docs_dir).parent

    def add(name: str) -> None:
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(root / name)))

    for page in list(files.documentation_pages()):
        for _, target, *_ in LINK.findall(page.content_string):
            name = target.removeprefix("../")
            if name == target:
                continue
            add(name)
            text = (root / name).read_text() if name.endswith(".md") else ""
            for _, picture, *_ in LINK.findall(text):
                if picture.endswith(".png"):
                    add((Path(name).parent / picture).as_posix())
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the files are on the site."""
    docs = Path(config.docs_dir)
    is_outside = docs not in Path(page.file.abs_src_path).parents
    here = Path(page.file.src_uri).parent

    def moved(found: re.Match[str]) -> str:
        text, target, heading, title = (part or "" for part in found.groups())
        if "://" in target:
            return found[0]
        if not is_outside:
            return f"[{text}]({target.removeprefix('../')}{heading}{title})"
        name = (here / target).as_posix().removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return text
        return f"[{text}]({'../' * len(here.parts)}{name}{heading}{title})"

    return LINK.sub(moved, markdown)
