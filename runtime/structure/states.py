"""Places in a reply, each of which knows what may come next; and a constraint that walks from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from deltart.errors import GenerationError
from deltart.runtime.structure.vocabulary import Mask, Vocabulary


class State(Protocol):
    """A place in a reply. It never changes, so going back is to take an earlier one."""

    finished: bool
    """Whether nothing but an end-of-sequence token may follow."""

    def allowed(self) -> Mask | None:
        """The tokens that may come next; None for any. The array is not to be changed.

        Raises:
            GenerationError: they can't be found out within the limits.
        """

    def after(self, token: int) -> State | None:
        """The place after `token`; None where it may not come.

        Raises:
            GenerationError: as for `allowed`.
        """


Then = Callable[[], State]


class StateConstraint:
    """A `Constraint` that remembers every state it was in."""

    def __init__(self, start: State) -> None:
        self._states = [start]

    @property
    def finished(self) -> bool:
        """See Constraint."""
        return self._states[-1].finished

    def allowed(self) -> Mask | None:
        """See Constraint."""
        return self._states[-1].allowed()

    def accept(self, token: int) -> None:
        """See Constraint; a token that may not come is refused with GenerationError."""
        state = self._states[-1].after(token)
        if state is None:
            raise GenerationError(f"token {token}", "one that the reply's structure allows", "draw under its mask")
        self._states.append(state)

    def permits(self, tokens: Sequence[int]) -> int:
        """See Constraint."""
        state = self._states[-1]
        for count, token in enumerate(tokens):
            try:
                following = state.after(token)
            except GenerationError:
                following = None
            if following is None:
                return count
            state = following
        return len(tokens)

    def rollback(self, tokens: int) -> None:
        """See Constraint."""
        if not 0 <= tokens < len(self._states):
            raise GenerationError(f"a rollback of {tokens} tokens", f"at most the {len(self._states) - 1} accepted")
        del self._states[len(self._states) - tokens :]


class Ended:
    """The structure is complete."""

    finished = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def allowed(self) -> Mask | None:
        """See State."""
        return self._vocabulary.end_mask

    def after(self, token: int) -> State | None:
        """See State."""
        return self if token in self._vocabulary.end_ids else None


class Free:
    """Any text up to the token `trigger`.

    Args:
        may_end: the reply may end here, and no mask is needed at all.
    """

    finished = False

    def __init__(self, vocabulary: Vocabulary, trigger: int, then: Then, may_end: bool) -> None:
        self._vocabulary, self._trigger, self._then, self._may_end = vocabulary, trigger, then, may_end

    def allowed(self) -> Mask | None:
        """See State."""
        return None if self._may_end else self._vocabulary.going_mask

    def after(self, token: int) -> State | None:
        """See State."""
        if token == self._trigger:
            return self._then()
        if token in self._vocabulary.end_ids:
            return Ended(self._vocabulary) if self._may_end else None
        return self


class Literal:
    """One of several token sequences, none of which begins another.

    Args:
        choices: each sequence and what follows it.
        may_end: at the first token, the reply may end instead.
    """

    finished = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        choices: Sequence[tuple[Sequence[int], Then]],
        may_end: bool = False,
        depth: int = 0,
    ) -> None:
        self._vocabulary, self._choices, self._may_end, self._depth = vocabulary, choices, may_end, depth

    def allowed(self) -> Mask | None:
        """See State."""
        ids = {tokens[self._depth] for tokens, _ in self._choices}
        return self._vocabulary.mask(ids | self._vocabulary.end_ids if self._may_end else ids)

    def after(self, token: int) -> State | None:
        """See State."""
        if self._may_end and token in self._vocabulary.end_ids:
            return Ended(self._vocabulary)
        depth = self._depth + 1
        left = [choice for choice in self._choices if choice[0][self._depth] == token]
        for tokens, then in left:
            if len(tokens) == depth:
                return then()
        return Literal(self._vocabulary, left, depth=depth) if left else None


class Either:
    """The token `trigger` and what follows it, or what `other` allows."""

    finished = False

    def __init__(self, vocabulary: Vocabulary, trigger: int, then: Then, other: State) -> None:
        self._vocabulary, self._trigger, self._then, self._other = vocabulary, trigger, then, other

    def allowed(self) -> Mask | None:
        """See State."""
        mask = self._other.allowed()
        return None if mask is None else mask | self._vocabulary.mask({self._trigger})

    def after(self, token: int) -> State | None:
        """See State."""
        return self._then() if token == self._trigger else self._other.after(token)
