"""The settings of the service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from retain.config.section import Count, Positive, Section


class ServeConfig(Section):
    """Answers over HTTP, and what may be sent."""

    host: str = Field("127.0.0.1", description="Address to listen on; one that others can reach needs serve.token_file")
    port: Count = Field(8080, description="Port to listen on")
    token_file: Path | None = Field(None, description="File with a line for each token: its scope (read, learn or admin) and the token")
    slots: Count = Field(8, description="Answers that are written at a time; others wait")
    capacity: Count = Field(2048, description="Tokens of a conversation with its answer; more are left out, the oldest first")
    eight_bits: bool = Field(False, description="Answer with the base's matrices in eight bits, on a CPU")
    depth: Count = Field(100_000, description="Documents that may wait to be learned; then 429")
    body_megabytes: Positive = Field(20.0, description="Largest body of a request")
    requests_per_minute: Count = Field(6000, description="Requests of one client in a minute; then 429")
    fetch: bool = Field(False, description="Web addresses may be sent, and the learner fetches them; never from this machine's own network")
    hold_suspects: bool = Field(True, description="Hold for review what contradicts what is learned, or repeats a phrase too often")
