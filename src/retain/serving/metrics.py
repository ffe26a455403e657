"""Numbers in Prometheus' text format."""

from __future__ import annotations

from retain.serving.engine import Engine

QUANTILES = (0.5, 0.95, 0.99)


def metrics_text(engine: Engine) -> str:
    """Requests, tokens, times to the first token, and what waits to be learned."""
    counters, ledger = engine.counters, engine.lm.ledger
    lines: list[str] = []

    def metric(name: str, kind: str, what: str, *values: tuple[str, float]) -> None:
        lines.extend([f"# HELP retain_{name} {what}", f"# TYPE retain_{name} {kind}"])
        lines.extend(f"retain_{name}{labels} {value:g}" for labels, value in values)

    metric("answers_total", "counter", "Answers written to their end", ("", counters.answers))
    metric("answer_errors_total", "counter", "Answers that failed", ("", counters.errors))
    metric("prompt_tokens_total", "counter", "Tokens of prompts", ("", counters.prompt_tokens))
    metric("completion_tokens_total", "counter", "Tokens written", ("", counters.tokens))
    metric("answers_live", "gauge", "Answers that are being written", ("", engine.batch.live))
    metric("answers_waiting", "gauge", "Requests that wait for a slot", ("", engine.batch.waiting))
    times = sorted(counters.first_token)
    if times:
        found = [(f'{{quantile="{q}"}}', times[min(len(times) - 1, int(q * len(times)))]) for q in QUANTILES]
        metric("first_token_seconds", "summary", "From a request to its first token, the latest 1000", *found)
    arrivals = ledger.arrival_counts()
    metric(
        "arrivals", "gauge", "Documents sent, by status", *((f'{{status="{status}"}}', count) for status, count in sorted(arrivals.items()))
    )
    metric("documents", "gauge", "Documents by status", *((f'{{status="{status}"}}', count) for status, count in ledger.counts().items()))
    metric("adapters", "gauge", "Adapters in use", ("", len(engine.lm.state.adapters)))
    return "\n".join(lines) + "\n"
