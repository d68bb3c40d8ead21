"""Slots whose tokens are drawn on the host: ONNX Runtime's, or any whose graphs run over buffers in host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.match import draw
from deltart.runtime.backends.mtp_drafts import MtpDrafts
from deltart.runtime.backends.ort_buffers import OrtBuffers
from deltart.runtime.backends.slots import Drawn, Limits, Row, Snapshot
from deltart.runtime.backends.snapshots import SlotCopies


class HostSlots:
    """`Slots` over host memory; see there.

    A row that feeds one token shares its call with all others that do. A row that feeds several has a call of its own:
    ONNX Runtime's attention serves one row of many tokens fast, and many rows of one, but not many of many. Where
    nothing but the last drawn token is pending the drafts' states are kept apart until it is known that all are right,
    which saves feeding them again.

    Args:
        text: buffers of the text graph.
        mtp: drafts of the MTP head; None without one.
        limits: what the buffers were made for.
    """

    def __init__(self, text: OrtBuffers, mtp: MtpDrafts | None, limits: Limits) -> None:
        self.limits = limits
        self._text, self._mtp = text, mtp
        self._rows: dict[int, Row] = {}
        self._past = [0] * limits.slots
        self._hidden: list[np.ndarray | None] = [None] * limits.slots  # of the last token in the state
        self._copies = SlotCopies(text, mtp.buffers if mtp else None)

    def prefill(self, slot: int, ids: Sequence[int], past: int, logit_index: np.ndarray) -> np.ndarray:
        """See Slots."""
        if past == 0:
            self._copies.forget(slot)
            self._text.clear(slot)
            self._hidden[slot] = None
        before = self._hidden[slot]
        inputs = text_inputs(
            np.array([ids], np.int64), np.array([past], np.int32), logit_index=logit_index[None].astype(np.int64)
        )
        logits, hidden = self._text.run((slot, slot + 1), inputs, ["logits", "hidden"])
        if self._mtp:
            self._mtp.read_prompt(slot, ids, past, before, hidden[0])
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
        self._rows[slot] = row

    def retire(self, slot: int) -> Row:
        """See Slots."""
        return self._rows.pop(slot)

    def step(self) -> Mapping[int, Drawn]:
        """See Slots."""
        drafts = self._drafts()
        single = [slot for slot, row in self._rows.items() if len(row.pending) == 1 and not drafts[slot]]
        drawn = self._step_together(single) if single else {}
        for slot in self._rows:
            if slot not in drawn:
                drawn[slot] = self._step_alone(slot, drafts[slot])
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

    def _buffers(self) -> list[OrtBuffers]:
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

    def _step_together(self, slots: Sequence[int]) -> dict[int, Drawn]:
        """One call that feeds one token to each of `slots`; rows between them are idle in it."""
        first, last = min(slots), max(slots) + 1
        ids, counts = np.zeros((last - first, 1), np.int64), np.zeros(last - first, np.int32)
        shift = np.zeros(last - first, np.int64)
        for slot in slots:
            row = self._rows[slot]
            ids[slot - first], counts[slot - first], shift[slot - first] = row.pending[0], 1, row.rope_shift
        past = np.array(self._past[first:last], np.int32)
        inputs = text_inputs(ids, past, counts, rope_shift=shift)
        logits, hidden = self._text.run((first, last), inputs, ["logits", "hidden"])
        drawn = {}
        for slot in slots:
            row, place = self._rows[slot], slot - first
            self._advance(slot, row, 1, hidden[place, 0])
            drawn[slot] = self._draw(row, logits[place], hidden[place], [])
            row.pending = list(drawn[slot].tokens)
        return drawn

    def _step_alone(self, slot: int, drafts: list[int]) -> Drawn:
        """A call of one row's own: its pending tokens, then drafts."""
        row = self._rows[slot]
        known, fed = len(row.pending), [*row.pending, *drafts]
        hold = known == 1 and bool(drafts)
        commit = len(fed) if hold else known
        wanted = np.arange(known - 1, len(fed))
        inputs = text_inputs(
            np.array([fed], np.int64), np.array([row.past], np.int32), logit_index=wanted[None],
            n_commit=np.array([commit], np.int32), rope_shift=np.array([row.rope_shift]),
        )  # fmt: skip
        logits, hidden = self._text.run((slot, slot + 1), inputs, ["logits", "hidden"], hold)
        drawn = self._draw(row, logits[0], hidden[0, known - 1 :], drafts)
        if not hold or drawn.accepted == len(drafts):
            if hold:
                self._text.keep()
            self._advance(slot, row, commit, hidden[0, commit - 1])
            row.pending = list(drawn.tokens[commit - known :])
        else:
            row.pending += drawn.tokens
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
