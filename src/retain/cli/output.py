"""JSON, numbers and tables: how everything that a command shows looks."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

DASH = "–"


def to_plain(value: Any) -> Any:
    """A value as JSON has it. Bytes are left out of records; numbers that JSON lacks become null."""
    if hasattr(value, "to_dict"):
        return to_plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return to_plain({name: item for name, item in fields.items() if not isinstance(item, bytes)})
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [to_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def to_json(value: Any) -> str:
    """JSON that is also readable."""
    return json.dumps(to_plain(value), ensure_ascii=False, indent=2)


def number(value: Any) -> float | None:
    """A finite number, or None for everything else (a ledger holds "nan" as text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: Any, digits: int = 0) -> str:
    """A share as a percentage."""
    share = number(value)
    return DASH if share is None else f"{_no_minus_zero(share * 100, digits):.{digits}f} %"


def signed_percent(value: Any, digits: int = 1) -> str:
    """A change as a percentage with its sign."""
    share = number(value)
    return DASH if share is None else f"{_no_minus_zero(share * 100, digits):+.{digits}f} %"


def amount(value: Any) -> str:
    """A count: 950, 12,300, 1.2 M."""
    count = number(value)
    if count is None:
        return DASH
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(count) >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:,.0f}"


def data_size(value: Any) -> str:
    """Bytes: 512 B, 2.4 MB."""
    count = number(value)
    if count is None:
        return DASH
    for size, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:.0f} B"


def duration(value: Any) -> str:
    """Seconds: 0.4 s, 41 s, 3 min 20 s, 1 h 5 min."""
    seconds = number(value)
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def when(text: Any) -> str:
    """The ledger's time (UTC) as local time to the minute."""
    try:
        return datetime.datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return str(text)


def change(before: Any, after: Any, show: Any = percent, better: int = 1) -> Text:
    """ "before → after", green when it got better, red when it got worse. `better` is the sign of a good change; 0 is neutral."""
    first, last = number(before), number(after)
    if first is None and last is None:
        return Text(DASH, style="dim")
    style = ""
    if first is not None and last is not None and better and show(first) != show(last):
        style = "green" if (last - first) * better > 0 else "red"
    return Text.assemble((show(first), "dim"), (" → ", "dim"), (show(last), style))


def loss_of(value: Any, limit: Any = None, digits: int = 1, signed: bool = False) -> Text:
    """A share that should be small (forgetting, a rise of perplexity): green below zero or at it, red above the limit."""
    share, most = number(value), number(limit)
    style = "dim" if share is None else "green" if share <= 0 else "red" if most is not None and share > most else ""
    return Text(signed_percent(share, digits) if signed else percent(share, digits), style=style)


def table(*columns: str, right: Iterable[str] = (), title: str | None = None) -> Table:
    """An empty table in the style of all tables."""
    made = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values, one pair a line, without lines around them."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def words(value: Any) -> str:
    """A JSON value on one line, for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {words(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(words(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: DASH}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def count(amount_of: int, noun: str, plural: str | None = None) -> str:
    """ "1 document", "3 documents"."""
    return f"{amount_of:,} {noun if amount_of == 1 else plural or noun + 's'}"


def shorten(text: str, limit: int = 44) -> str:
    """Text on one line, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def home(path: Path | str) -> str:
    """A path with the home directory written as ~."""
    text, own = str(path), str(Path.home())
    return "~" + text[len(own) :] if own != "/" and (text == own or text.startswith(own + "/")) else text


def _no_minus_zero(value: float, digits: int) -> float:
    return 0.0 if round(value, digits) == 0 else value
