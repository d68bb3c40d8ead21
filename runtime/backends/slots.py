"""The seam between the scheduler and a device: slots that come and go, their state, and the step over all of them.

One kind of step serves every row. A row feeds the tokens that were drawn and are not in its state yet, then drafts; the
state advances over drawn tokens only. So a slot's state is, at every border between steps, exactly the state after
`past` tokens, and saving, forking, preempting and reusing a prefix are one operation: the state at `past`, and the ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from deltart.errors import DeltaRTError
from deltart.runtime.sampling.constraint import Constraint
from deltart.runtime.sampling.sampler import Sampler


@dataclass(frozen=True)
class Limits:
    """What a device's slots can hold and do.

    Attributes:
        slots: sequences at once.
        capacity: tokens of one sequence, drafts included.
        prefill_tokens: most tokens of one prefill call.
        draft_tokens: most drafts of one row in a step; 0 without an MTP head.
        slot_bytes: recurrent state of a slot, whatever the length.
        token_bytes: K/V of a token.
    """

    slots: int
    capacity: int
    prefill_tokens: int
    draft_tokens: int
    slot_bytes: int
    token_bytes: int


@dataclass
class Row:
    """A sequence on a slot, as data: what was drawn and is not in the state, and how the next tokens are drawn.

    Attributes:
        past: tokens in the slot's state.
        pending: tokens after those, drawn and not in the state; at least one.
        sampler: parameters, seed, number of draws and counts of the sequence.
        ends: tokens after which nothing is drawn.
        constraint: which tokens may come; None for any.
        drafts: most drafts to feed in a step.
        logprobs: likeliest tokens to report with each drawn one; None for no report.
        rope_shift: what positions are ahead of the number of tokens (multimodal prompts), usually 0.
        unread: (token, hidden state before it) that the MTP head has not been fed, oldest first.
    """

    past: int
    pending: list[int]
    sampler: Sampler
    ends: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    drafts: int = 0
    logprobs: int | None = None
    rope_shift: int = 0
    unread: list[tuple[int, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class PromptMedia:
    """What a piece of a prompt with pictures takes besides its ids.

    Attributes:
        positions: int64 [3, prompt], time, row and column of all tokens of the prompt.
        embeds: f32 [M, H], rows that stand in the place of placeholders; at least one.
        index: int32 [T], which of them each token of the piece is; -1 for text.
    """

    positions: np.ndarray
    embeds: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's log-probability under the model itself, and those of the likeliest tokens, most likely first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Drawn:
    """What a step drew for one row, in order.

    `drafted` drafts were fed, of which the first `accepted` equalled the tokens drawn. `error` says why nothing
    could be drawn after `tokens`: the row's logits are not finite, or no token is allowed.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    drafted: int = 0
    accepted: int = 0
    error: DeltaRTError | None = None


@dataclass(frozen=True)
class Block:
    """K/V of some tokens, by cache, each [Hkv, tokens, D]. Never written again: snapshots share blocks.

    The MTP head's caches are one token behind the text's: their rows for tokens [a, b) are entries [a - 1, b - 1).
    """

    tokens: int
    caches: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.caches.values())


@dataclass(frozen=True)
class Snapshot:
    """The state of one slot after `past` tokens, apart from any slot: text and MTP state together.

    Attributes:
        past: tokens it holds.
        recurrent: S and convolution inputs by state, without the slot axis.
        blocks: K/V of the tokens, in order; all but the last hold equally many.
        hidden: f32 [H], the final normed hidden state of the last token; what the MTP head needs for the next.
    """

    past: int
    recurrent: Mapping[str, np.ndarray]
    blocks: tuple[Block, ...]
    hidden: np.ndarray

    @property
    def own_bytes(self) -> int:
        """Bytes that it shares with no other snapshot of a longer prefix: all but the full blocks."""
        return sum(array.nbytes for array in self.recurrent.values()) + self.hidden.nbytes


class Slots(Protocol):
    """The state of all slots of a device and the steps over it. One thread uses it at a time."""

    limits: Limits

    def prefill(
        self, slot: int, ids: Sequence[int], past: int, logit_index: np.ndarray, media: PromptMedia | None = None
    ) -> np.ndarray:
        """Feed the next `ids` of a prompt to a slot that holds `past` tokens (0 starts anew).

        Args:
            logit_index: int64 [L], which of `ids` logits are wanted of.
            media: of a prompt with pictures.

        Returns:
            f32 [L, V], which stand until the next call.
        """

    def admit(self, slot: int, row: Row) -> None:
        """Let the slot's sequence take part in the steps that follow. The row is the slots' own until `retire`."""

    def retire(self, slot: int) -> Row:
        """Take the slot's sequence out; its state stays until the slot is used again."""

    def step(self) -> Mapping[int, Drawn]:
        """One step of all admitted rows; none holds up another."""

    def settle(self, slot: int, leave: int = 0) -> None:
        """Bring the tokens that an admitted row has drawn into its state, so that `save` covers them.

        The last `leave` stay pending; a row without pending tokens can take part in no further step.
        """

    def save(self, slot: int) -> Snapshot:
        """Copy the slot's state. It shares blocks with the slot's earlier snapshots, and nothing with the slot."""

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """Set the slot's state, as if its `past` tokens had been fed."""

    def free(self, slot: int) -> None:
        """Give the slot's memory back as far as the device can."""

    def close(self) -> None:
        """Give everything back; the object is of no use afterwards."""
