"""Updates and their certificates: the table of the history and the panel of one update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from retain.cli.output import (
    DASH,
    amount,
    change,
    count,
    data_size,
    duration,
    facts,
    loss_of,
    number,
    percent,
    shorten,
    table,
    when,
    words,
)

if TYPE_CHECKING:
    from retain.workspace.reports import Update

STATUS = {"committed": "green", "rejected": "red", "unchanged": "yellow", "reverted": "yellow", "dry-run": "cyan"}
PANEL_WIDTH = 110
ROOMY = 104  # columns from which on a table shows everything
_NAMED = 3  # of more documents than this a line names two and says how many more there are
_LISTED = 12  # documents that a certificate lists
_DONE = {
    "learn": "learned", "consolidate": "joined", "revert": "went back", "forget": "forgotten", "merge": "merged", "import": "imported",
    "enable": "switched",
}  # fmt: skip
_LIMITS = {"max_forgetting": "forgetting ≤", "max_perplexity_rise": "perplexity rise ≤", "min_recall_gain": "recall gain ≥"}


def titles(update: Update, names: Mapping[str, str]) -> str:
    """What an update is about, in the words of its documents' titles."""
    return few(title_list(update, names)) or DASH


def few(names: Sequence[str]) -> str:
    """Names in a line; of many the first two and how many more there are."""
    shown = [shorten(name) for name in (names if len(names) <= _NAMED else names[: _NAMED - 1])]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def consolidated_text(update: Update) -> str:
    """ "16 adapters of law became shared-law: 6.5 MB → 0.4 MB a document"; empty for an update that was no consolidation."""
    facts = _part(update.certificate, "consolidated")
    if not facts:
        return ""
    joined = f"{count(int(facts['adapters_before']), 'adapter')} of {facts['domain']}"
    if update.status == "rejected":
        return f"{joined} stay as they are"
    sizes = [data_size(facts[f"bytes_per_document_{when}"]) for when in ("before", "after")]
    return f"{joined} became {facts['into']}: {' → '.join(sizes)} a document"


def title_list(update: Update, names: Mapping[str, str]) -> list[str]:
    """The titles of an update's documents; the id where there is no title."""
    known = dict(names)
    for entry in update.certificate.get("documents") or ():
        if isinstance(entry, Mapping) and entry.get("title"):
            known.setdefault(str(entry.get("id", "")), str(entry["title"]))
    return [known.get(document) or document for document in map(_id_of, update.documents)]


def result(update: Update) -> Text:
    """The outcome of an update as one coloured word."""
    word = _DONE.get(update.kind, update.kind) if update.status == "committed" else update.status
    return Text(word, style=STATUS.get(update.status, ""))


def updates_table(updates: Sequence[Update], names: Mapping[str, str], width: int, history: bool = True) -> Table:
    """Updates with what they taught and what they cost in old knowledge. `history` adds number and time where the width allows it."""
    roomy = width >= ROOMY
    columns = ["#", "when"] if history and roomy else []
    columns += ["update", "document", "result", "recall", "forgetting", "perplexity"] + (["took"] if roomy else [])
    rows = table(*columns, right=("#", "forgetting", "took"))
    for column in rows.columns:
        column.no_wrap = column.header != "document"
    for update in updates:
        certificate = update.certificate
        learned, kept, limits = _part(certificate, "learned"), _part(certificate, "kept"), _part(_part(certificate, "gate"), "limits")
        about = Text(titles(update, names))
        if shared := consolidated_text(update):
            about.append(f"\n{shared}", style="dim")
        if update.reason and update.status != "committed":
            about.append(f"\n{update.reason}", style="dim")
        cells: dict[str, RenderableType] = {
            "#": str(update.sequence),
            "when": Text(when(update.created_at), style="dim"),
            "update": update.id or DASH,
            "document": about,
            "result": result(update),
            "recall": change(learned.get("recall_before"), learned.get("recall_after")),
            "forgetting": loss_of(kept.get("forgetting"), limits.get("max_forgetting")),
            "perplexity": _perplexity(kept, limits),
            "took": duration(_part(certificate, "cost").get("seconds")),
        }
        rows.add_row(*(cells[column] for column in columns), style="dim" if update.status == "reverted" else "")
    return rows


def plans_table(updates: Sequence[Update], names: Mapping[str, str]) -> Table:
    """What a dry run would learn."""
    rows = table("document", "study items", "questions kept out", "examples", "tokens", right=("questions kept out", "examples", "tokens"))
    for update in updates:
        plan = _part(update.certificate, "plan")
        items = Text(words(plan.get("items") or DASH))
        rows.add_row(
            Text(titles(update, names)), items, amount(plan.get("probes")), amount(plan.get("examples")), amount(plan.get("tokens"))
        )
    return rows


def certificate_panel(update: Update, names: Mapping[str, str]) -> RenderableType:
    """Everything that an update's certificate says."""
    certificate = update.certificate
    about: list[RenderableType] = []
    entries = list(zip(map(_id_of, update.documents), title_list(update, names), strict=True))
    for document, title in entries[:_LISTED]:
        about.append(Text.assemble((title, "bold"), (f"  {document}" if title != document else "", "dim")))
    if len(entries) > _LISTED:
        about.append(Text(f"and {len(entries) - _LISTED} more", style="dim"))
    if update.reason:
        about.append(Text(update.reason, style=STATUS.get(update.status, "")))
    rows: list[tuple[str, RenderableType]] = []
    sections: tuple[tuple[str, RenderableType | None], ...] = (
        ("adapters", _consolidated(_part(certificate, "consolidated"))),
        ("learned", _learned(_part(certificate, "learned"))),
        ("kept", _kept(_part(certificate, "kept"), _part(_part(certificate, "gate"), "limits"))),
        ("gate", _gate(_part(certificate, "gate"), update.reason)),
        ("cost", _cost(_part(certificate, "cost"))),
        ("made with", _made(certificate)),
    )
    for name, lines in sections:
        if lines is not None:
            rows += [(name, lines), ("", "")]
    heading = Text.assemble(("update ", ""), (update.id, "bold"), ("  #", "dim"), (str(update.sequence), "dim"), "  ", result(update))
    body = Group(*about, *([""] if about and rows else []), facts(rows[:-1]))
    foot = Text(when(update.created_at), style="dim")
    panel = Panel(body, title=heading, title_align="left", subtitle=foot, subtitle_align="right", padding=(1, 2), expand=False)
    return Constrain(panel, PANEL_WIDTH)


def summary_line(updates: Sequence[Update]) -> str:
    """ "3 learned, 1 unchanged": the outcome of many updates."""
    kinds: dict[str, int] = {}
    for update in updates:
        word = result(update).plain
        kinds[word] = kinds.get(word, 0) + 1
    return ", ".join(f"{number_of} {word}" for word, number_of in kinds.items())


def _consolidated(facts: Mapping[str, Any]) -> RenderableType | None:
    if not facts:
        return None
    rows = (("number", "adapters", amount), ("together", "bytes", data_size), ("a document", "bytes_per_document", data_size))
    return _lines((name, change(facts[f"{key}_before"], facts.get(f"{key}_after"), show, better=-1), "") for name, key, show in rows)


def _learned(learned: Mapping[str, Any]) -> RenderableType | None:
    if not learned:
        return None
    asked = number(learned.get("probes"))
    probes = f"{count(int(asked), 'question')} kept out of training" if asked is not None else ""
    return _lines([("recall", change(learned.get("recall_before"), learned.get("recall_after")), probes)])


def _kept(kept: Mapping[str, Any], limits: Mapping[str, Any]) -> RenderableType | None:
    if not kept:
        return None
    forgetting = number(kept.get("forgetting"))
    asked = number(kept.get("old_probes"))
    verdict = "" if forgetting is None else "nothing forgotten" if forgetting == 0 else "improved" if forgetting < 0 else ""
    probes = count(int(asked), "question") + " of earlier documents" if asked else ""
    rows: list[tuple[str, RenderableType, RenderableType]] = [
        ("earlier documents", change(kept.get("old_recall_before"), kept.get("old_recall_after"), better=0), probes),
        ("forgetting", loss_of(forgetting, limits.get("max_forgetting")), verdict),
        (
            "control perplexity",
            _perplexity_change(kept),
            loss_of(kept.get("perplexity_rise"), limits.get("max_perplexity_rise"), 2, signed=True),
        ),
        ("general questions", change(kept.get("control_accuracy_before"), kept.get("control_accuracy_after"), better=0), ""),
    ]
    alone, divergence = number(kept.get("always_on_perplexity")), number(kept.get("kl"))
    if alone is not None:
        rows.append(("without routing", f"{alone:.2f}", "control perplexity if it were always on"))
    if divergence is not None:
        rows.append(("divergence", f"{divergence:.4f}", "nats a token from the base, always on (KL)"))
    return _lines(row for row in rows if not (isinstance(row[1], Text) and row[1].plain == DASH))


def _gate(gate: Mapping[str, Any], told: str) -> RenderableType | None:
    if not gate:
        return None
    verdict, attempts = str(gate.get("verdict", "")), number(gate.get("attempts"))
    passed = verdict.lower() in ("passed", "pass", "committed", "accepted", "true", "ok")
    line = Text(verdict, style="green" if passed else "red")
    if attempts is not None:
        line.append(f" at attempt {attempts:.0f}" if passed else f" after {count(int(attempts), 'attempt')}", style="dim")
    lines: list[RenderableType] = [line]
    if gate.get("reason") and gate["reason"] != told:
        lines.append(Text(str(gate["reason"]), style="dim"))
    limits = [text for key in _LIMITS if (text := _limit(_part(gate, "limits"), key))]
    if limits:
        lines.append(Text(", ".join(limits), style="dim"))
    return Group(*lines)


def _cost(cost: Mapping[str, Any]) -> RenderableType | None:
    parts = [
        (duration(cost.get("seconds")), ""),
        (amount(cost.get("tokens")), " tokens"),
        (amount(cost.get("steps")), " steps"),
        (amount(cost.get("parameters")), " parameters"),
        (data_size(cost.get("bytes")), ""),
    ]
    shown = [value + unit for value, unit in parts if value != DASH]
    return Text(" · ".join(shown)) if shown else None


def _made(certificate: Mapping[str, Any]) -> RenderableType | None:
    rows: list[tuple[str, RenderableType]] = []
    for key in ("model", "fingerprint", "learner", "settings", "machine", "versions", "hash"):
        value = certificate.get(key)
        if value not in (None, "", {}, []):
            rows.append((key, Text(words(value), style="" if key in ("model", "learner") else "dim")))
    return facts(rows) if rows else None


def _perplexity(kept: Mapping[str, Any], limits: Mapping[str, Any]) -> Text:
    """ "18.71 → 18.74", coloured by whether the rise is within its limit."""
    shown = _perplexity_change(kept)
    rise, most = number(kept.get("perplexity_rise")), number(limits.get("max_perplexity_rise"))
    if rise is not None and most is not None and rise > most:
        shown.stylize("red")
    return shown


def _perplexity_change(kept: Mapping[str, Any]) -> Text:
    before, after = kept.get("control_perplexity_before"), kept.get("control_perplexity_after")
    return change(before, after, lambda value: DASH if value is None else f"{value:.2f}", better=0)


def _limit(limits: Mapping[str, Any], key: str) -> str:
    """A limit of the gate in words; empty when there is none."""
    value = number(limits.get(key))
    if value is None or (key == "min_recall_gain" and not value):
        return ""
    return f"{_LIMITS[key]} {percent(value, 0 if round(value * 100, 6).is_integer() else 1)}"


def _lines(rows: Iterable[tuple[str, RenderableType, RenderableType]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value, remark in rows:
        grid.add_row(name, value, Text(remark, style="dim") if isinstance(remark, str) else remark)
    return grid


def _part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _id_of(document: Any) -> str:
    return str(document.get("id", "")) if isinstance(document, Mapping) else str(getattr(document, "id", document))
