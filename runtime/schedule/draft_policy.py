"""How many drafts pay: chosen by what was measured on this device, with as many rows as run now."""

from __future__ import annotations

from dataclasses import dataclass, field

WEIGHT = 0.1  # of a new measurement in its running average
EXPLORE_EVERY = 48  # steps between two tries of another number of drafts
ASSUMED_ACCEPTANCE = 0.7  # of a draft that was never tried


@dataclass
class _Bucket:
    """Seconds of a step by drafts, for one number of rows."""

    seconds: dict[int, float] = field(default_factory=dict)
    steps: int = 0


@dataclass
class DraftPolicy:
    """Picks the number of drafts with the most expected tokens a second.

    What it picks changes no token of any text, so it may try: now and then another number is measured.

    Args:
        largest: most drafts; 0 switches drafts off.
        fixed: always `largest`.
    """

    largest: int
    fixed: bool = False
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    _rate: list[float] = field(default_factory=list)
    _buckets: dict[int, _Bucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drafted = [0] * self.largest
        self.accepted = [0] * self.largest
        self._rate = [ASSUMED_ACCEPTANCE] * self.largest

    def choose(self, rows: int) -> int:
        """Drafts of each row in the next step."""
        if self.fixed or not self.largest:
            return self.largest
        bucket = self._buckets.setdefault(rows, _Bucket())
        bucket.steps += 1
        untried = next((k for k in range(self.largest + 1) if k not in bucket.seconds), None)
        if untried is not None:
            return untried
        if bucket.steps % EXPLORE_EVERY == 0:
            return bucket.steps // EXPLORE_EVERY % (self.largest + 1)
        return max(bucket.seconds, key=lambda k: self._tokens(k) / bucket.seconds[k])

    def measured(self, rows: int, drafts: int, seconds: float) -> None:
        """A step of `rows` rows of `drafts` drafts each took `seconds`."""
        bucket = self._buckets.setdefault(rows, _Bucket())
        last = bucket.seconds.get(drafts, seconds)
        bucket.seconds[drafts] = min(last + WEIGHT * (seconds - last), 2 * last)

    def outcome(self, drafted: int, accepted: int) -> None:
        """Of `drafted` drafts of a row the first `accepted` were right; those after the first wrong one say nothing."""
        for place in range(min(accepted + 1, drafted)):
            right = place < accepted
            self.drafted[place] += 1
            self.accepted[place] += right
            self._rate[place] += WEIGHT * (right - self._rate[place])

    def acceptance(self) -> list[float]:
        """Share of drafts that were right, by position, given that those before were."""
        return [a / d if d else 0.0 for a, d in zip(self.accepted, self.drafted, strict=True)]

    def _tokens(self, drafts: int) -> float:
        """Expected tokens of a row's step."""
        expected, chance = 1.0, 1.0
        for rate in self._rate[:drafts]:
            chance *= rate
            expected += chance
        return expected
