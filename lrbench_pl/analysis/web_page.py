"""Build a self-contained page: no server, no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import plotly.graph_objects as go

from lrbench_pl.words import clean


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        title: Its heading, as text.
        note: Explanation below the heading, as text.
        figures: Figures, each with a heading, which may be empty.
        body: Further content, as HTML.
    """

    title: str
    note: str = ""
    figures: tuple[tuple[str, go.Figure], ...] = ()
    body: str = ""


@dataclass(frozen=True)
class Live:
    """A page that is rewritten while it is open, and reloads itself then.

    The open page loads the file again in a hidden frame, which needs no server; in the frame every page only tells
    when it was written.

    Args:
        written: Different for each time the page is written.
        every: Seconds between two looks at the file.
        status: Line below the first paragraph, as text.
    """

    written: str
    every: float
    status: str


# Answers a live page that looks at its file, and loads no more of it.
_ANSWER = (
    '<script>if (parent !== window && location.search.startsWith("?look=")) '
    '{ parent.postMessage({ written: "WRITTEN" }, "*"); window.stop(); }</script>'
)


def page(title: str, lead: str, sections: Sequence[Section], live: Live | None = None, answer: str = "") -> str:
    """Return a self-contained page as HTML.

    Args:
        title: Its heading, as text.
        lead: First paragraph, as text.
        sections: Its sections.
        live: Set if the page reloads itself.
        answer: What stands above them, as HTML.
    """
    from plotly.offline import get_plotlyjs

    blocks: list[str] = []
    specs: list[str] = []
    for number, section in enumerate(sections):
        drawn = []
        for heading, figure in section.figures:
            name = f"spec-{len(specs)}"
            specs.append(f'<script type="application/json" id="{name}">{_json(figure)}</script>')
            head = f"<h3>{as_html(heading)}</h3>" if heading else ""
            drawn.append(f'<figure>{head}<div class="plot" data-spec="{name}"></div></figure>')
        note = f'<p class="note">{as_html(section.note)}</p>' if section.note else ""
        blocks.append(
            f'<section id="s{number}"><h2>{as_html(section.title)}</h2>{note}{"".join(drawn)}{section.body}</section>'
        )
    links = "".join(f'<a href="#s{number}">{as_html(each.title)}</a>' for number, each in enumerate(sections))
    files = resources.files("lrbench_pl.analysis") / "page"
    css, script, reload = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "live.js"))
    head = _ANSWER.replace("WRITTEN", "" if live is None else live.written)
    status = ""
    if live is not None:
        status = (
            f'<p class="note" id="status" data-written="{live.written}" data-every="{live.every:g}">'
            f"{as_html(live.status)}</p>"
        )
        script = f"{script}</script>\n<script>{reload}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{as_html(title)}</title><style>{css}</style></head>\n<body><main><h1>{as_html(title)}</h1>"
        f'<p class="lead">{as_html(lead)}</p>{status}{answer}<nav>{links}</nav>\n{chr(10).join(blocks)}</main>\n'
        f"{chr(10).join(specs)}\n<script>{get_plotlyjs()}</script>\n<script>{script}</script></body></html>\n"
    )


def as_html(text: str) -> str:
    """Return text as HTML; whoever wrote it, it is shown and neither obeyed nor executed."""
    return html.escape("\n".join(map(clean, text.split("\n"))))


def command(text: str) -> str:
    """Return a command as HTML, with a button that copies it."""
    return f'<div class="command"><pre>{as_html(text)}</pre><button type="button">Copy</button></div>'


def _json(figure: go.Figure) -> str:
    """Return a figure as JSON that cannot end the script element around it."""
    text: str = figure.to_json()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
