"""What the site has beyond MkDocs: pages of the repository's files that are linked to, and equations as MathML."""

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
SOURCE = "source"  # where the repository's files lie on the site
AS_THEY_ARE = {".svg", ".png", ".gif", ".json", ".html"}  # copied, not listed
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".sh": "bash", "": "makefile"}

CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$|(`+).+?\3", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(\s*([^)\s]+)[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
PARTS = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


# -- links to the repository's files ----------------------------------------------------------------------------


class Links:
    """Which place on the site each file of the repository has, and which page is rendered just now."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}  # path in the repository -> path on the site, before it is rendered
        self.origins: dict[str, str] = {}  # and back, for pages
        self.page = ""

    def resolve(self, link: str) -> str | None:
        """The path in the repository that a link on the page leads to, or None if it leads elsewhere."""
        path = link.partition("#")[0]
        if not path or path.startswith("/") or re.match(r"[a-z][a-z+.-]*:", path):
            return None
        return os.path.normpath(os.path.join(os.path.dirname(self.origins[self.page]), path))

    def rewritten(self, link: str) -> str:
        """The link as it is to be on the site."""
        place = self.places.get(self.resolve(link) or "")
        if place is None:
            return link  # within docs/, elsewhere, or broken: MkDocs tells
        _, hash_, anchor = link.partition("#")
        return os.path.relpath(place, os.path.dirname(self.page) or ".") + hash_ + anchor


LINKS = Links()


class Rewrite(Treeprocessor):
    """Before MkDocs looks at the links of a page, those out of docs/ lead to pages of the site."""

    def run(self, root: Element) -> None:
        for element in root.iter():
            for name in ("href", "src"):
                if element.get(name):
                    element.set(name, LINKS.rewritten(element.attrib[name]))


class RewriteLinks(Extension):
    """The extension of Markdown that does it."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(Rewrite(md), "repository", 5)  # after inline patterns, before MkDocs' at 0


def on_config(config: MkDocsConfig) -> None:
    """Prepare the links."""
    LINKS.__init__()
    config.markdown_extensions.append(RewriteLinks())


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each file out of docs/ that a page links to, and for those that these link to."""
    LINKS.places |= {f"docs/{file.src_uri}": file.src_uri for file in files if not file.inclusion.is_excluded()}
    LINKS.origins |= {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    pages = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    wanted = [name.removeprefix(f"{SOURCE}/") for name in names(config.nav) if name.startswith(f"{SOURCE}/")]
    while wanted or pages:
        if not wanted:
            LINKS.page, text = pages.pop()
            links = (inline or reference for inline, reference in LINK.findall(CODE.sub("", text)))
            wanted = [path for link in links if (path := LINKS.resolve(link)) and inside(path)]
        for path in sorted({*wanted} - LINKS.places.keys()):
            place, made = placed(path)
            LINKS.places[path] = place
            if made is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
                continue
            files.append(File.generated(config, place, content=made, inclusion=InclusionLevel.NOT_IN_NAV))
            LINKS.origins[place] = f"{path}/index.md" if (ROOT / path).is_dir() else path
            if (ROOT / path).is_dir() or path.endswith(".md"):
                pages.append((place, made))
        wanted = []


def names(nav: Any) -> Iterator[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from names(part)


def inside(path: str) -> bool:
    """Whether there is such a file or folder in the repository, so that its page can be made."""
    return not path.startswith("..") and (ROOT / path).exists()


def placed(path: str) -> tuple[str, str | None]:
    """The place of a file or folder on the site, and its page in Markdown; None for a file that is copied."""
    there = ROOT / path
    if there.is_dir() and (there / "README.md").exists():
        return f"{SOURCE}/{path}/README.md", (there / "README.md").read_text(encoding="utf-8")
    if there.is_dir():
        return f"{SOURCE}/{path}/index.md", folder(there, path)
    if there.suffix == ".md":
        return f"{SOURCE}/{path}", there.read_text(encoding="utf-8")
    if there.suffix in AS_THEY_ARE:
        return f"{SOURCE}/{path}", None
    return f"{SOURCE}/{path}.md", listing(there, path)


def folder(there: Path, path: str) -> str:
    """A page that lists the files of a folder."""
    shown = sorted(f.name for f in there.iterdir() if f.is_file() and f.suffix in LANGUAGES and f.name[0] not in "._")
    return "\n".join([unsearched(f"{path}/"), *(f"- [{name}]({name})" for name in shown), ""])


def listing(there: Path, path: str) -> str:
    """A page that shows a file, as it is."""
    text = there.read_text(encoding="utf-8").rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{unsearched(path)}\n{fence}{LANGUAGES.get(there.suffix, 'text')}\n{text}\n{fence}\n"


def unsearched(path: str) -> str:
    """The beginning of a page that the search leaves out and that has a path for a title."""
    return f"---\ntitle: {path}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{path}`\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Tell the links which page is rendered."""
    LINKS.page = page.file.src_uri


# -- equations --------------------------------------------------------------------------------------------------


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put MathML in the place of the equations that arithmatex has found."""
    return FORMULA.sub(lambda found: mathml(found, page.file.src_uri), html)


def mathml(found: re.Match[str], where: str) -> str:
    """An equation as MathML; what cannot be made into it ends the build, for it would be shown wrong."""
    tag, kind, escaped = found.groups()
    formula = html.unescape(escaped).strip()
    try:
        made = convert(formula, display="block" if kind == "[" else "inline")
    except Exception as error:  # whatever the converter meets in a formula that it does not know
        raise PluginError(f"{where}: cannot make MathML of {formula!r}: {type(error).__name__} {error}") from error
    for element in fromstring(made).iter():
        tag_name, text = element.tag.rpartition("}")[2], element.text or ""
        if re.match(r"\\[a-zA-Z]", text):
            raise PluginError(f"{where}: cannot make MathML of {formula!r}: {text} is unknown")
        if len(element) != PARTS.get(tag_name, len(element)):
            raise PluginError(f"{where}: cannot make MathML of {formula!r}: something is missing in it")
    return f'<{tag} class="equation">{made}</{tag}>'
