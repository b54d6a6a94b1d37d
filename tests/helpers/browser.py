"""A page of the report, read by a parser of HTML and shown in Chromium."""

import html.parser
import subprocess


class Reader(html.parser.HTMLParser):
    """Collects a page's elements, and the cells of its tables."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.cells, self.scripts = [], {}, []
        self.row = self.script = None
        self.table = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "table":
            self.table = attributes["id"]
        elif tag == "tr":
            self.row = []
            self.cells.setdefault(self.table, []).append(self.row)
        elif tag in ("td", "th"):
            self.row.append("")
        elif tag == "script":
            self.scripts.append("")
            self.script = True

    def handle_endtag(self, tag):
        if tag == "script":
            self.script = None
        elif tag in ("table", "tr"):
            self.row = None

    def handle_data(self, data):
        if self.script:
            self.scripts[-1] += data
        elif self.row:
            self.row[-1] = " ".join(f"{self.row[-1]} {data}".split())

    def rows(self, table):
        """The rows by their first cell; those of alarms, which have one cell, apart."""
        return {row[0]: row for row in self.cells[table][1:] if len(row) > 1}


def browse(page, profile):
    """The page after its scripts have run, as text, and what the browser's console said.

    The window is taller than any page: figures are drawn as they come into sight.
    """
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    flags += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--enable-logging=stderr"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1366,16000"]
    done = subprocess.run(["chromium", *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
