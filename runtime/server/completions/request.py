"""Fields of /v1/completions."""

from __future__ import annotations

from typing import Any

from deltart.runtime.server.ask import Ask
from deltart.runtime.server.chat.request import StreamOptions, alternatives, count, response_format
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.sampling import SamplingFields, output_of, sampling_of
from deltart.runtime.server.settings import Limits

_DEFAULT_MAX_TOKENS = 16  # OpenAI's

Prompt = str | list[int]


class CompletionRequest(SamplingFields, kw_only=True):
    """OpenAI's fields and those that vLLM added."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None

    def asks(self, limits: Limits) -> list[Ask]:
        """One ask for each prompt.

        Raises:
            RequestError: 400 that names the field at fault.
        """
        if self.suffix:
            raise RequestError("a suffix", "a prompt alone", "text can't be inserted before it", param="suffix")
        n = count(self.n, limits)
        if self.best_of not in (None, n):
            raise RequestError(f"best_of = {self.best_of}", f"n = {n}", "leave it out", param="best_of")
        prompts = _prompts(self.prompt)
        if len(prompts) * n > limits.choices:
            raise RequestError(
                f"{len(prompts)} prompts of {n} replies", f"{limits.choices} replies", "", param="prompt"
            )
        logprobs = None if self.logprobs is None else alternatives(self.logprobs, "logprobs", limits)
        return [self._ask(prompt, n, logprobs, limits) for prompt in prompts]

    def _ask(self, prompt: Prompt, n: int, logprobs: int | None, limits: Limits) -> Ask:
        return Ask(
            prompt=prompt,
            output=response_format(self.response_format) or output_of(self),
            sampling=sampling_of(self, limits),
            max_tokens=_DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            n=n,
            logprobs=logprobs,
            prompt_logprobs=logprobs if self.echo else None,
            cache_salt=self.cache_salt or "",
        )


def _prompts(prompt: str | list[Any]) -> list[Prompt]:
    """The prompts of a field that holds a text, token ids, or a list of either."""
    many: list[Any] = [prompt] if isinstance(prompt, str) or _are_ids(prompt) else prompt
    for i, one in enumerate(many):
        if not isinstance(one, str) and not _are_ids(one):
            raise RequestError(
                f"prompt {i} is neither text nor token ids",
                "a text, token ids, or a list of either",
                "",
                param="prompt",
            )
    if not many:
        raise RequestError("no prompt", "at least one", "send a prompt", param="prompt")
    return many


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
