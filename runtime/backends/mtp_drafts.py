"""Drafts of the MTP head, chained: each from the token before it and the hidden state before that.

Entry i of the head's K/V stands for (token i + 1, hidden state of token i). Entries of drawn tokens are made from the
text model's hidden states; those of a chain of drafts, made from the head's own, are overwritten by the next call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deltart.runtime.backends.buffers import SlotBuffers
from deltart.runtime.backends.inputs import media_inputs, mtp_inputs
from deltart.runtime.backends.slots import PromptMedia, Row

MAX_UNREAD = 64  # pairs that a row without drafts leaves unread before they are fed all the same


class MtpDrafts:
    """The MTP head over the slots of a device.

    Args:
        buffers: of the MTP graph.
        vocab_limit: ids from here on are never drafted.

    Attributes:
        entries: number of exact entries by slot.
    """

    def __init__(self, buffers: SlotBuffers, slots: int, vocab_limit: int) -> None:
        self.buffers = buffers
        self.entries = [0] * slots
        self._vocab_limit = vocab_limit

    def read_prompt(
        self, slot: int, ids: Sequence[int], past: int, before: np.ndarray | None, hidden: np.ndarray,
        media: PromptMedia | None = None,
    ) -> None:  # fmt: skip
        """Make the entries of prompt tokens `ids` at positions past, ...; `hidden` [T, H] are their hidden states.

        `before` is the hidden state of the token before them, None at the start of a sequence. An entry has the
        embedding of its token, be it a picture's, and the position of the token before.
        """
        if past == 0:
            self.entries[slot] = 0
        skipped = 1 if before is None else 0
        tokens = list(ids[skipped:])
        if tokens:
            previous = hidden[:-1] if before is None else np.concatenate([before[None], hidden[:-1]])
            inputs = self._inputs(slot, tokens, previous)
            if media:
                first = self.entries[slot]
                inputs["position_ids"] = np.ascontiguousarray(media.positions[:, None, first : first + len(tokens)])
                inputs |= media_inputs(media.embeds, media.index[skipped:])
            self._run(slot, inputs)
            self.entries[slot] += len(tokens)

    def draft(self, rows: Mapping[int, Row], wanted: Mapping[int, int]) -> dict[int, list[int]]:
        """Up to `wanted` drafts by slot. Rows that want none are read up only where much is unread."""
        self.catch_up({s: r for s, r in rows.items() if s not in wanted and len(r.unread) > MAX_UNREAD})
        heads = {slot: self._read(slot, rows[slot]) for slot in wanted}
        drafts: dict[int, list[int]] = {slot: [] for slot in wanted}
        for depth in range(max(wanted.values(), default=0)):
            going = {slot: head for slot, head in heads.items() if wanted[slot] > depth}
            for slot, (token, _) in going.items():
                drafts[slot].append(token)
            more = [slot for slot in going if wanted[slot] > depth + 1]
            for slot in more:
                hidden = heads[slot][1][None]
                inputs = self._inputs(slot, drafts[slot][-1:], hidden, depth, rows[slot].rope_shift)
                heads[slot] = self._run(slot, inputs)
        return drafts

    def catch_up(self, rows: Mapping[int, Row]) -> None:
        """Read what is unread of rows."""
        for slot, row in rows.items():
            if row.unread:
                self._read(slot, row)

    def _read(self, slot: int, row: Row) -> tuple[int, np.ndarray]:
        """Make the entries of what is unread; the likeliest token and the hidden state after the last."""
        tokens, hidden = [token for token, _ in row.unread], np.stack([h for _, h in row.unread])
        result = self._run(slot, self._inputs(slot, tokens, hidden, rope_shift=row.rope_shift))
        self.entries[slot] += len(tokens)
        row.unread = []
        return result

    def _inputs(
        self, slot: int, tokens: Sequence[int], hidden: np.ndarray, ahead: int = 0, rope_shift: int = 0
    ) -> dict[str, np.ndarray]:
        """Of a call after the exact entries and `ahead` more."""
        past = np.array([self.entries[slot] + ahead], np.int32)
        return mtp_inputs(np.array([tokens], np.int64), hidden[None], past, rope_shift=np.array([rope_shift]))

    def _run(self, slot: int, inputs: Mapping[str, np.ndarray]) -> tuple[int, np.ndarray]:
        """One call: the likeliest token and the hidden state [H] after the last token."""
        logits, after = self.buffers.run((slot, slot + 1), inputs, ["logits", "hidden"])
        return int(logits[0, -1, : self._vocab_limit].argmax()), after[0, -1].copy()
