"""What a sampler returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SampleStats:
    """Facts about one call; passes of a batch count once, however many rows they serve.

    Attributes:
        new_tokens: tokens returned, over all rows.
        core_passes: sequential applications of the core while decoding.
        prefill_passes: sequential applications of the core in the parallel pass over the prompts.
        token_passes: recurrences times lanes while decoding (the work that core passes did).
        readouts: lanes decoded to logits.
        recurrences_per_token: mean recurrences that a position had had when it was committed (its age).
        flips: drafts that changed.
        prefill_seconds, decode_seconds: wall-clock time; the first includes allocating buffers and drawing noise.
        tokens_per_second: new tokens over all of that time.
    """

    new_tokens: int = 0
    core_passes: int = 0
    prefill_passes: int = 0
    token_passes: int = 0
    readouts: int = 0
    recurrences_per_token: float = 0.0
    flips: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens_per_second: float = 0.0

    def add(self, other: SampleStats) -> SampleStats:
        """Sum over two calls, rates weighted by new tokens."""
        weight = self.new_tokens * self.recurrences_per_token + other.new_tokens * other.recurrences_per_token
        total = SampleStats(
            **{
                name: getattr(self, name) + getattr(other, name)
                for name in self.__dataclass_fields__
                if name not in ("recurrences_per_token", "tokens_per_second")
            }
        )
        total.recurrences_per_token = weight / max(total.new_tokens, 1)
        total.tokens_per_second = total.new_tokens / max(total.prefill_seconds + total.decode_seconds, 1e-9)
        return total


@dataclass
class SampleResult:
    """New tokens per prompt (a stop token is returned, last) and the statistics of the call."""

    tokens: list[list[int]]
    stats: SampleStats = field(default_factory=SampleStats)
