"""Checks the built site: `python tools/check_site.py build/site`.

Every link leads to a file of the site, every anchor to an element of its page; no page loads anything from elsewhere.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href"}
"""The attributes of elements whose targets a browser loads by itself."""


class Page(HTMLParser):
    """The targets and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if LOADED.get(tag) in given and given.get("rel") != "canonical":
            self.loaded.add(given[LOADED[tag]])


def problems(site: Path) -> list[str]:
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} has no pages"]
    for path, page in pages.items():
        for target in sorted(page.links | page.loaded):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                if target in page.loaded and url.scheme != "data":
                    found.append(f"{path}: loads {target}")
                continue
            folder = site if url.path.startswith("/") else path.parent
            file = (folder / unquote(url.path).lstrip("/")).resolve() if url.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(f"{path}: {target} does not exist")
            elif file in pages and unquote(url.fragment) not in pages[file].anchors:
                found.append(f"{path}: {target} has no such anchor")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "No problems found.")
    sys.exit(bool(found))
