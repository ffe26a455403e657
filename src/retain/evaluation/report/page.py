"""The HTML of a report: one page that asks nobody for anything, reads without scripts, and follows the reader's light or dark setting.

Each figure stands in the page twice, light and dark; style rules show one. Everything that comes from a run is escaped here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from urllib.parse import quote

from retain.evaluation.plots import THEMES
from retain.evaluation.report.tables import Number, Table

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_UNNEEDED = (
    re.compile(r"^.*?(?=<svg)", re.DOTALL),
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<style[^>]*>.*?</style>", re.DOTALL),
    re.compile(r"<!--.*?-->", re.DOTALL),
)


@dataclass(frozen=True)
class Section:
    """A part of the page: heading, and HTML that is escaped already."""

    name: str
    title: str
    body: str


@dataclass(frozen=True)
class Picture:
    """A figure in both themes, as SVG, with its texts and the files beside the page."""

    name: str
    caption: str
    alt: str
    light: str
    dark: str
    files: Sequence[str]
    narrow: bool


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<li><a href="#{part.name}">{text(part.title)}</a></li>' for part in sections)
    parts = "\n".join(
        f'<section id="{part.name}" aria-labelledby="{part.name}-title">\n<h2 id="{part.name}-title">'
        f"{text(part.title)}</h2>\n{part.body}\n</section>"
        for part in sections
    )
    choices = "".join(
        f'<label><input type="radio" name="theme" id="theme-{name}"{" checked" if name == "auto" else ""}><span>{name}</span></label>'
        for name in ("auto", "light", "dark")
    )
    facts = "".join(f"<li>{text(fact)}</li>" for fact in lead)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{text(title)}</title>
<style>
{style()}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<fieldset class="theme"><legend>Theme</legend>{choices}</fieldset>
<h1>{text(title)}</h1>
<ul class="lead">{facts}</ul>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main id="main">
{parts}
</main>
</body>
</html>
"""


def style() -> str:
    """The style sheet, with the colours of both themes."""
    light, dark = (
        f"--background: {theme.background}; --text: {theme.text}; --muted: {theme.muted}; --line: {theme.grid}; --soft: {theme.missing}; "
        f"--accent: {theme.series[0]}; --warning: {theme.series[1]};"
        for theme in (THEMES["light"], THEMES["dark"])
    )
    show_light, show_dark = (
        f"color-scheme: {name}; --shown-light: {on}; --shown-dark: {off};"
        for name, on, off in (("light", "block", "none"), ("dark", "none", "block"))
    )
    rules = [
        f":root {{ {light} {show_light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} {show_dark} }} }}",
        f":root:has(#theme-light:checked) {{ {light} {show_light} }}",
        f":root:has(#theme-dark:checked) {{ {dark} {show_dark} }}",
        f"@media print {{ :root, :root:has(#theme-auto:checked), :root:has(#theme-dark:checked) {{ {light} {show_light} }} }}",
    ]
    sheet = resources.files("retain.evaluation.report").joinpath("page.css").read_text(encoding="utf-8")
    return "\n".join(rules) + "\n" + sheet


def table(made: Table) -> str:
    """A table that scrolls in its own frame where the window is narrow; the frame can be reached with the keyboard."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in made.head)
    rows = "\n".join(
        f'<tr><th scope="row">{text(str(first))}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in made.rows
    )
    notes = ""
    if made.notes:
        items = "".join(f"<li>{text(note)}</li>" for note in made.notes)
        notes = f"\n<details><summary>What the columns mean</summary><ul>{items}</ul></details>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="caption-{made.name}">\n<table id="table-{made.name}">'
        f'<caption id="caption-{made.name}">{text(made.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
        f"{notes}"
    )


def pictures(made: Iterable[Picture]) -> str:
    """Figures with their captions."""
    parts = []
    for picture in made:
        svgs = "".join(
            f'<div class="{theme}">{inline_svg(svg, f"{picture.name}-{theme}", picture.alt)}</div>'
            for theme, svg in (("light", picture.light), ("dark", picture.dark))
        )
        files = " ".join(f'<a href="{text(quote(file))}">{text(file.rpartition(".")[2].upper())}</a>' for file in picture.files)
        kind = ' class="narrow"' if picture.narrow else ""
        caption = f'<figcaption>{text(picture.caption)} <span class="files">{files}</span></figcaption>'
        parts.append(f'<figure id="{picture.name}"{kind}>{svgs}{caption}</figure>')
    return '<div class="figures">' + "\n".join(parts) + "</div>"


def inline_svg(svg: str, name: str, alt: str) -> str:
    """An SVG file's content for a page: named for those who cannot see it, and with names of its own for its parts."""
    for pattern in _UNNEEDED:
        svg = pattern.sub("", svg, count=0)
    start, tag, rest = svg.partition(">")
    width, box = (re.search(pattern, start) for pattern in (r'width="([0-9.]+)pt"', r'viewBox="[^"]*"'))
    if not tag or width is None or box is None:
        raise ValueError(f"the figure {name} is not an SVG of matplotlib")
    size = f"{float(width[1]) * 4 / 3:.0f}px"  # points in pixels: the size at which its letters are as large as the page's
    rest = _ID.sub(lambda match: f"{match[0]}{name}-", rest)
    return f'<svg role="img" aria-label="{text(alt)}" {box[0]} style="width: {size}">{rest.strip()}'


def facts(pairs: Iterable[tuple[str, str]], caption: str) -> str:
    """Names and values as a table of two columns."""
    rows = "\n".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in pairs)
    return f'<div class="scroll"><table class="facts"><caption>{text(caption)}</caption>\n<tbody>{rows}</tbody></table></div>'


def text(value: str) -> str:
    """Text as HTML."""
    return html.escape(value, quote=True)


def _cell(cell: str | Number) -> str:
    if isinstance(cell, str):
        return text(cell)
    margin = f" <small>{text(cell.margin)}</small>" if cell.margin else ""
    return f'<data value="{cell.value!r}">{text(cell.text)}</data>{margin}'
