"""What a sampler returns."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class SampleStats:
    """Facts about one call; passes of a batch count once, however many rows they serve.

    Attributes:
        new_tokens: tokens returned, over all rows.
        core_passes: sequential applications of the core while decoding.
        prefill_passes: sequential applications of the core in the parallel pass over the prompts.
        token_passes: recurrences times lanes while decoding (the work that core passes did).
        readouts: lanes decoded to logits.
        committed: positions committed while decoding (the prefill gives each row's first token).
        widest: most lanes that a row had at once.
        recurrences_per_token: mean recurrences that these positions had had when they were committed (their ages).
        flips: drafts that changed.
        flips_withdrawn: changes proposed once and taken back by the next read-out (``confirm_flips``).
        discarded_passes: recurrences times lanes thrown away because a flip reset the lanes (``on_flip=reset``).
        prefill_seconds, decode_seconds: wall-clock time; the first includes allocating buffers and drawing noise.
        tokens_per_second: new tokens over all of that time.
    """

    new_tokens: int = 0
    core_passes: int = 0
    prefill_passes: int = 0
    token_passes: int = 0
    readouts: int = 0
    committed: int = 0
    widest: int = 0
    recurrences_per_token: float = 0.0
    flips: int = 0
    flips_withdrawn: int = 0
    discarded_passes: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens_per_second: float = 0.0

    def add(self, other: SampleStats) -> SampleStats:
        """The sum over two calls, with the rates over both."""
        total = SampleStats(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})
        total.widest = max(self.widest, other.widest)
        recurrences = self.committed * self.recurrences_per_token + other.committed * other.recurrences_per_token
        total.recurrences_per_token = recurrences / max(total.committed, 1)
        total.tokens_per_second = total.new_tokens / max(total.prefill_seconds + total.decode_seconds, 1e-9)
        return total


@dataclass
class SampleResult:
    """New tokens per prompt (a stop token is returned, last) and the statistics of the call."""

    tokens: list[list[int]]
    stats: SampleStats = field(default_factory=SampleStats)
