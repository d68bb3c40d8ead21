"""Slots whose tokens are drawn on the host, over buffers wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltart.runtime.backends.buffers import Range, SlotBuffers
from deltart.runtime.backends.inputs import media_inputs, text_inputs
from deltart.runtime.backends.match import draw
from deltart.runtime.backends.mtp_drafts import MtpDrafts
from deltart.runtime.backends.slots import Drawn, Limits, PromptMedia, Row, Snapshot
from deltart.runtime.backends.snapshots import SlotCopies


@dataclass(frozen=True)
class Feed:
    """What a row feeds in a step: its pending tokens, which are known to be right, then drafts.

    Attributes:
        sure: whether all drafts of the step before were right.
    """

    row: Row
    drafts: list[int]
    sure: bool

    @property
    def known(self) -> int:
        return len(self.row.pending)

    @property
    def tokens(self) -> list[int]:
        return [*self.row.pending, *self.drafts]

    @property
    def may_hold(self) -> bool:
        """Whether the state may go on over the drafts, to be kept if all are right.

        Where a draft is wrong, everything is fed again. So what was fed again once is not risked before a step
        has gone well: a row never has more pending tokens than two steps draw.
        """
        return bool(self.drafts) and (self.known == 1 or self.sure)


class HostSlots:
    """`Slots` whose tokens are drawn on the host; see there.

    Rows that feed one token share a call; so do all where the buffers serve ragged rows, and else each row that feeds
    several has one of its own. Where drafts are likely right, buffers that can hold a call's states do so until it is
    known whether all of them are, which saves feeding them again.

    Args:
        text: buffers of the text graph.
        mtp: drafts of the MTP head; None without one.
        limits: what the buffers were made for.
    """

    def __init__(self, text: SlotBuffers, mtp: MtpDrafts | None, limits: Limits) -> None:
        self.limits = limits
        self._text, self._mtp = text, mtp
        self._rows: dict[int, Row] = {}
        self._past = [0] * limits.slots
        self._sure = [False] * limits.slots  # whether all drafts of the last step were right
        self._hidden: list[np.ndarray | None] = [None] * limits.slots  # of the last token in the state
        self._copies = SlotCopies(text, mtp.buffers if mtp else None)

    def prefill(
        self, slot: int, ids: Sequence[int], past: int, logit_index: np.ndarray, media: PromptMedia | None = None
    ) -> np.ndarray:
        """See Slots."""
        if past == 0:
            self._copies.forget(slot)
            self._text.clear(slot)
            self._hidden[slot] = None
        before = self._hidden[slot]
        inputs = text_inputs(
            np.array([ids], np.int64), np.array([past], np.int32), logit_index=logit_index[None].astype(np.int64),
            positions=media.positions[:, None, past : past + len(ids)] if media else None,
        )  # fmt: skip
        if media:
            inputs |= media_inputs(media.embeds, media.index)
        logits, hidden = self._text.run((slot, slot + 1), inputs, ["logits", "hidden"])
        if self._mtp:
            self._mtp.read_prompt(slot, ids, past, before, hidden[0], media)
        self._past[slot], self._hidden[slot] = past + len(ids), hidden[0, -1].copy()
        rows: np.ndarray = logits[0]
        return rows

    def admit(self, slot: int, row: Row) -> None:
        """See Slots."""
        assert slot not in self._rows and row.past == self._past[slot] and row.pending
        hidden = self._hidden[slot]
        if self._mtp and hidden is not None:
            row.unread = row.unread or [(row.pending[0], hidden)]
            self._mtp.entries[slot] = row.past + len(row.pending) - 1 - len(row.unread)
        self._rows[slot], self._sure[slot] = row, False

    def retire(self, slot: int) -> Row:
        """See Slots."""
        return self._rows.pop(slot)

    def step(self) -> Mapping[int, Drawn]:
        """See Slots."""
        drafts = self._drafts()
        drawn: dict[int, Drawn] = {}
        for group in self._groups(drafts):
            drawn |= self._step_group(group, drafts)
        return drawn

    def settle(self, slot: int, leave: int = 0) -> None:
        """See Slots."""
        row = self._rows[slot]
        known = len(row.pending) - leave
        if known > 0:
            inputs = text_inputs(
                np.array([row.pending[:known]], np.int64), np.array([row.past], np.int32),
                rope_shift=np.array([row.rope_shift]),
            )  # fmt: skip
            _, hidden = self._text.run((slot, slot + 1), inputs, ["logits", "hidden"])
            self._advance(slot, row, known, hidden[0, -1])
            row.pending = row.pending[known:]
        if self._mtp:
            self._mtp.catch_up({slot: row})

    def save(self, slot: int) -> Snapshot:
        """See Slots."""
        past, hidden = self._past[slot], self._hidden[slot]
        assert hidden is not None, "an empty slot has no state to save"
        return self._copies.save(slot, past, hidden)

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """See Slots."""
        self._copies.load(slot, snapshot)
        self._past[slot], self._hidden[slot] = snapshot.past, snapshot.hidden
        if self._mtp:
            self._mtp.entries[slot] = snapshot.past - 1

    def free(self, slot: int) -> None:
        """See Slots."""
        self._copies.forget(slot)
        self._past[slot], self._hidden[slot] = 0, None
        for buffers in self._buffers():
            buffers.free(slot)

    def close(self) -> None:
        """See Slots."""
        self._rows.clear()
        for buffers in self._buffers():
            buffers.close()

    def _buffers(self) -> list[SlotBuffers]:
        return [self._text, self._mtp.buffers] if self._mtp else [self._text]

    def _drafts(self) -> dict[int, list[int]]:
        """What to feed after the drawn tokens, by slot; a constraint cuts what it would refuse."""
        found: dict[int, list[int]] = {slot: [] for slot in self._rows}
        if self._mtp is None:
            return found
        wanted = {slot: row.drafts for slot, row in self._rows.items() if row.drafts}
        for slot, drafts in self._mtp.draft(self._rows, wanted).items():
            constraint = self._rows[slot].constraint
            found[slot] = drafts if constraint is None else drafts[: constraint.permits(drafts)]
        return found

    def _groups(self, drafts: Mapping[int, list[int]]) -> list[list[int]]:
        """Which slots share a call."""
        if self._text.ragged:
            return [list(self._rows)] if self._rows else []
        single = [slot for slot, row in self._rows.items() if len(row.pending) == 1 and not drafts[slot]]
        return [*([single] if single else []), *([slot] for slot in self._rows if slot not in single)]

    def _step_group(self, slots: Sequence[int], drafts: Mapping[int, list[int]]) -> dict[int, Drawn]:
        """One call that feeds the pending tokens and drafts of `slots`; rows between them are idle in it."""
        feeds = {slot: Feed(self._rows[slot], drafts[slot], self._sure[slot]) for slot in slots}
        hold = self._text.holds and len(slots) == 1 and feeds[slots[0]].may_hold
        rows = (min(slots), max(slots) + 1)
        inputs = self._inputs(rows, feeds, hold)
        logits, hidden = self._text.run(rows, inputs, ["logits", "hidden"], hold)
        return {
            slot: self._take(slot, feed, logits[slot - rows[0]], hidden[slot - rows[0]], hold)
            for slot, feed in feeds.items()
        }

    def _inputs(self, rows: Range, feeds: Mapping[int, Feed], hold: bool) -> dict[str, np.ndarray]:
        first, count = rows[0], rows[1] - rows[0]
        ids = np.zeros((count, max(len(feed.tokens) for feed in feeds.values())), np.int64)
        index = np.zeros((count, max(len(feed.drafts) for feed in feeds.values()) + 1), np.int64)
        fed, committed = np.zeros(count, np.int32), np.zeros(count, np.int32)
        shift = np.zeros(count, np.int64)
        for slot, feed in feeds.items():
            at, tokens = slot - first, feed.tokens
            ids[at, : len(tokens)], fed[at] = tokens, len(tokens)
            committed[at] = len(tokens) if hold else feed.known
            index[at] = [min(feed.known - 1 + i, len(tokens) - 1) for i in range(index.shape[1])]
            shift[at] = feed.row.rope_shift
        past = np.array(self._past[rows[0] : rows[1]], np.int32)
        return text_inputs(ids, past, fed, index, committed, shift)

    def _take(self, slot: int, feed: Feed, logits: np.ndarray, hidden: np.ndarray, hold: bool) -> Drawn:
        """Draw from what a call gave for one row, and let the state count as far as it is that of drawn tokens."""
        row, known, drafts = feed.row, feed.known, feed.drafts
        drawn = self._draw(row, logits[: len(drafts) + 1], hidden[known - 1 :], drafts)
        self._sure[slot] = drawn.accepted == len(drafts)
        if hold and drawn.accepted < len(drafts):
            row.pending += drawn.tokens
            return drawn
        if hold:
            self._text.keep()
        committed = known + (len(drafts) if hold else 0)
        self._advance(slot, row, committed, hidden[committed - 1])
        row.pending = list(drawn.tokens[committed - known :])
        return drawn

    def _draw(self, row: Row, logits: np.ndarray, hidden: np.ndarray, drafts: Sequence[int]) -> Drawn:
        """Tokens drawn from logits [L, V], one after the other while drafts equal them.

        Pairs for the MTP head are noted: each token with the hidden state [L, H] before it.
        """
        drawn = draw(row, logits, drafts)
        if self._mtp:
            row.unread += [(token, hidden[i].copy()) for i, token in enumerate(drawn.tokens)]
        return drawn

    def _advance(self, slot: int, row: Row, tokens: int, hidden: np.ndarray) -> None:
        row.past += tokens
        self._past[slot], self._hidden[slot] = row.past, hidden.copy()
