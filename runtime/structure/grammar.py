"""Text that a grammar decides: llguidance's matcher as states."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from deltart.errors import GenerationError
from deltart.runtime.structure.call_text import CallText
from deltart.runtime.structure.numbers import JsonNumbers, Place
from deltart.runtime.structure.states import Ended, State, Then
from deltart.runtime.structure.trial import Trial, limits
from deltart.runtime.structure.vocabulary import Mask, Vocabulary, load_llguidance

_WARM_TOKENS = 8
_SMALL, _KEPT = 2000, 256  # characters of a grammar that is kept, and how many are


class Grammar:
    """A compiled grammar, from which any number of replies begin. What one of them finds out speeds up the others.

    Attributes:
        warnings: what llguidance says it does not enforce.
        exhausted: a limit was met, after which it is of no further use.
        one_way: it can't go back (a rule with `max_tokens`), so that its replies are walked anew from their beginning.

    Args:
        matcher: at its beginning; never advanced.
        numbers: bounds those of a text that is JSON; None for any other.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any, numbers: JsonNumbers | None = None) -> None:
        self._vocabulary, self._matcher, self._numbers = vocabulary, matcher, numbers
        self.warnings = tuple(matcher.get_grammar_warnings())
        self.exhausted = self.one_way = False

    def reply(self) -> State:
        """The beginning of a reply that is nothing but this."""
        return _Reply(self._walk(), 0, JsonNumbers.start, ended=False)

    def value(self, text: CallText, then: Then) -> State:
        """The beginning of a parameter's value, whose closing tag is the grammar's end."""
        return _Value(self._walk(), 0, JsonNumbers.start, text, text.start, then)

    def _walk(self) -> _Walk:
        return _Walk(self, self._vocabulary, self._matcher, self._numbers)

    def warm(self) -> None:
        """Walk a little way and back, so that the first reply need not pay for it.

        Raises:
            GenerationError: a limit is met at once.
        """
        first = self.reply()
        state: State | None = first
        for _ in range(_WARM_TOKENS):
            assert state is not None
            mask = state.allowed()
            assert mask is not None
            going = self._vocabulary.members(mask & self._vocabulary.going_mask)
            if not going:
                break
            state = state.after(going[0])  # low numbers are single characters, which lead through the usual places
        first.allowed()


class _Walk:
    """A matcher on its way through one reply. States hold a place in it, and it goes back where one of them asks."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, start: Any, numbers: JsonNumbers | None) -> None:
        self.grammar, self.vocabulary, self._start, self._numbers = grammar, vocabulary, start, numbers
        self._matcher = start.deep_copy()
        self._tokens: list[int] = []

    @property
    def _depth(self) -> int:
        return len(self._tokens)

    def mask(self, depth: int, place: Place) -> Mask:
        """The tokens that may come after the first `depth`, with numbers at `place`, and the end where it may end."""
        self._seek(depth)
        mask = np.empty(-(-self.vocabulary.limit // 32), np.int32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        bound = None if self._numbers is None else self._numbers.mask(place)
        return mask if bound is None else mask & bound

    def place_after(self, place: Place, token: int) -> Place | None:
        """Where numbers are after `token`; None where it makes one too large."""
        return place if self._numbers is None else self._numbers.after(place, token)

    def take(self, depth: int, token: int) -> bool:
        """Whether `token` may come after the first `depth`; if so it has."""
        self._seek(depth)
        taken = int(self._matcher.try_consume_tokens([token]))
        self._check()
        if taken:
            self._tokens.append(token)
        return taken == 1

    def may_end(self, depth: int) -> bool:
        """Whether the first `depth` tokens are complete."""
        self._seek(depth)
        return bool(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        """Nothing more can follow what was taken."""
        return bool(self._matcher.is_stopped())

    def _seek(self, depth: int) -> None:
        if depth == self._depth:
            return
        if not self.grammar.one_way:
            self._matcher.rollback(self._depth - depth)
            self.grammar.one_way = self._matcher.is_error()
        del self._tokens[depth:]
        if self.grammar.one_way:
            self._matcher = self._start.deep_copy()
            self._matcher.try_consume_tokens(self._tokens)
        self._check()

    def _check(self) -> None:
        """llguidance takes a matcher that has failed for one that has ended."""
        if self._matcher.is_error():
            self.grammar.exhausted = True
            raise GenerationError(
                f"the reply's grammar failed: {first_line(self._matcher.get_error())}",
                "a grammar within the limits at every token",
                "make it smaller or less ambiguous",
            )


class _Reply:
    """In a reply that is nothing but the grammar's."""

    def __init__(self, walk: _Walk, depth: int, place: Place, ended: bool) -> None:
        self._walk, self._depth, self._place, self.finished = walk, depth, place, ended

    def allowed(self) -> Mask | None:
        """See State."""
        return self._walk.vocabulary.end_mask if self.finished else self._walk.mask(self._depth, self._place)

    def after(self, token: int) -> State | None:
        """See State."""
        if token in self._walk.vocabulary.end_ids:
            complete = self.finished or self._walk.may_end(self._depth)
            return Ended(self._walk.vocabulary) if complete else None
        place = None if self.finished else self._walk.place_after(self._place, token)
        if place is None or not self._walk.take(self._depth, token):
            return None
        return _Reply(self._walk, self._depth + 1, place, self._walk.ended)


class _Value:
    """In a parameter's value; the automaton of call texts keeps what a JSON string may hold from ending the value."""

    finished = False

    def __init__(self, walk: _Walk, depth: int, numbers: Place, text: CallText, place: int, then: Then) -> None:
        self._walk, self._depth, self._numbers = walk, depth, numbers
        self._text, self._place, self._then = text, place, then

    def allowed(self) -> Mask | None:
        """See State."""
        return self._walk.mask(self._depth, self._numbers) & self._text.mask(self._place)

    def after(self, token: int) -> State | None:
        """See State."""
        place, numbers = self._text.after(self._place, token), self._walk.place_after(self._numbers, token)
        if place is None or numbers is None or not self._walk.take(self._depth, token):
            return None
        if self._text.ended(place):
            return self._then()
        return _Value(self._walk, self._depth + 1, numbers, self._text, place, self._then)


class GrammarCompiler:
    """Compiles grammars for a vocabulary. Small ones are kept: parameters of tools are much the same everywhere.

    Args:
        seconds: what one grammar may take.
    """

    def __init__(self, vocabulary: Vocabulary, seconds: float) -> None:
        self._vocabulary, self._trial = vocabulary, Trial(seconds)
        self._small: OrderedDict[tuple[str, bool], Grammar] = OrderedDict()

    def compile(self, grammar: str, is_json: bool = False) -> Grammar:
        """Compile llguidance's Lark dialect or JSON form. One thread at a time.

        Args:
            is_json: its texts are JSON, whose numbers are to stay within bounds.

        Raises:
            GenerationError: it is malformed, or beyond the limits on size and time.
        """
        found = self._small.pop((grammar, is_json), None)
        if found is None or found.exhausted:
            found = self._compile(grammar, self._numbers if is_json else None)
        if len(grammar) <= _SMALL:
            self._small[grammar, is_json] = found
            if len(self._small) > _KEPT:
                self._small.popitem(last=False)
        return found

    @cached_property
    def _numbers(self) -> JsonNumbers:
        return JsonNumbers(self._vocabulary)

    def _compile(self, grammar: str, numbers: JsonNumbers | None) -> Grammar:
        refusal = self._trial.refusal(grammar)
        if refusal is not None:
            raise GenerationError(first_line(refusal), "a grammar that can be compiled", "correct it")
        llguidance = load_llguidance()
        matcher = llguidance.LLMatcher(
            self._vocabulary.matcher_tokenizer, grammar, log_level=0, limits=limits(llguidance)
        )
        if matcher.is_error():
            raise GenerationError(first_line(matcher.get_error()), "a grammar that can be compiled", "correct it")
        compiled = Grammar(self._vocabulary, matcher, numbers)
        compiled.warm()
        return compiled

    def close(self) -> None:
        """End the process of trials."""
        self._trial.close()


def first_line(message: str) -> str:
    """The part of llguidance's message that speaks of the grammar, at most 300 characters."""
    return " ".join(_told(message)).partition(". Enable ")[0][:300]  # what follows is about its own options


def _told(message: str) -> Iterator[str]:
    for line in message.splitlines():
        if line.startswith(("<state>", "<backtrace>", "<non-verbose")):
            return
        yield line.strip()
