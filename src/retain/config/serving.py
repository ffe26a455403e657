"""The settings of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from retain.config.section import Count, Positive, Section, Whole


class ServeConfig(Section):
    """Answers over HTTP, and what may be sent."""

    host: str = Field("127.0.0.1", description="Address to listen on; one that others can reach needs serve.token_file")
    port: Count = Field(8080, le=65535, description="Port to listen on")
    token_file: Path | None = Field(None, description="File with a line for each token: its scope (read, learn or admin) and the token")
    slots: Count = Field(8, description="Answers that are written at a time; others wait")
    capacity: Count = Field(2048, description="Tokens of a conversation with its answer; more are left out, the oldest first")
    eight_bits: bool = Field(False, description="Answer with the base's matrices in eight bits, on a CPU")
    depth: Count = Field(100_000, description="Documents that may wait to be learned; then 429")
    source_depth: Count | None = Field(
        None, description="Documents of one source that may wait to be learned; then 429. null: serve.depth alone"
    )
    body_megabytes: Positive = Field(20.0, description="Largest body of a request")
    requests_per_minute: Count = Field(6000, description="Requests of one client in a minute; then 429")
    fetch: bool = Field(False, description="Web addresses may be sent, and the learner fetches them; never from this machine's own network")
    checkpoint_after: Whole = Field(100, description="Updates after which the learner makes a checkpoint by itself; 0 means never")
    checkpoints_kept: Count = Field(5, description="Checkpoints of the learner that stay; older ones are removed, those of others never")
    hold_suspects: bool = Field(True, description="Hold for review what contradicts what is learned, or repeats a phrase too often")
    log: Literal["auto", "all", "problems", "none"] = Field(
        "auto", description="Lines of JSON on standard output: all, problems, none; auto is all, and problems only on a terminal"
    )
