"""How many drafts pay: chosen by what was measured on this device, with as many rows as run now."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from deltart.errors import GenerationError

WEIGHT = 0.005  # of a new outcome in the running share of right drafts, once there are many
BURST = 4  # steps in a row with one number of drafts, before it is judged; the first also pays for the change
EXPLORE_EVERY = 250  # steps between two bursts of another number
MARGIN = 1.05  # by which drafts must beat none: what was measured is of other tokens than those to come
ASSUMED_ACCEPTANCE = 0.7  # of a draft that was never tried


@dataclass
class _Bucket:
    """The last seconds of a step by drafts, for one number of rows, and the burst that is going on."""

    seconds: dict[int, deque[float]] = field(default_factory=dict)
    steps: int = 0
    trying: int = 0
    left: int = 0

    def typical(self, drafts: int) -> float:
        """The lower quartile of the last steps: those that were held up count for nothing."""
        return sorted(self.seconds[drafts])[len(self.seconds[drafts]) // 4]


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

    @classmethod
    def for_option(cls, wanted: int | None, largest: int) -> DraftPolicy:
        """Always `wanted` drafts of the `largest` that the artifact can make; as many as pay where it is None.

        Raises:
            GenerationError: `wanted` is none of 0 to `largest`.
        """
        if wanted is None:
            return cls(largest)
        if not 0 <= wanted <= largest:
            raise GenerationError(
                f"{wanted} draft tokens",
                f"0 to {largest}" if largest else "0: the artifact has no MTP head",
                "export a checkpoint with its MTP head" if not largest else "use fewer",
            )
        return cls(wanted, fixed=True)

    def choose(self, rows: int) -> int:
        """Drafts of each row in the next step."""
        if self.fixed or not self.largest:
            return self.largest
        bucket = self._buckets.setdefault(rows, _Bucket())
        if not bucket.left:
            untried = next((k for k in range(self.largest, -1, -1) if k not in bucket.seconds), None)
            if untried is None and bucket.steps % EXPLORE_EVERY:
                bucket.steps += 1
                return self._fastest(bucket)
            bucket.trying = self._other(bucket) if untried is None else untried
            bucket.left = BURST
        bucket.left -= 1
        bucket.steps += not bucket.left
        return bucket.trying

    def _other(self, bucket: _Bucket) -> int:
        """What to measure again: each number in turn, and none, which all are compared with, between any two."""
        turn = bucket.steps // EXPLORE_EVERY
        return 0 if turn % 2 else turn // 2 % self.largest + 1

    def _fastest(self, bucket: _Bucket) -> int:
        rates = {k: self._tokens(k) / bucket.typical(k) for k in bucket.seconds}
        best = max(rates, key=lambda k: rates[k])
        return best if rates[best] > MARGIN * rates[0] else 0

    def measured(self, rows: int, drafts: int, seconds: float) -> None:
        """A step of `rows` rows of `drafts` drafts each took `seconds`."""
        bucket = self._buckets.setdefault(rows, _Bucket())
        bucket.seconds.setdefault(drafts, deque(maxlen=4 * BURST)).append(seconds)

    def outcome(self, drafted: int, accepted: int) -> None:
        """Of `drafted` drafts of a row the first `accepted` were right; those after the first wrong one say nothing."""
        for place in range(min(accepted + 1, drafted)):
            right = place < accepted
            self.drafted[place] += 1
            self.accepted[place] += right
            self._rate[place] += max(WEIGHT, 1 / (self.drafted[place] + 1)) * (right - self._rate[place])

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
