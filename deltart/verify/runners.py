"""Runners of a verification over the backends, and the prompts they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from deltart.errors import GenerationError
from deltart.json_files import parse_json, shown
from deltart.runtime.backends.base import Backend, ServingBackend
from deltart.runtime.backends.inputs import media_inputs, mtp_inputs, text_inputs
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.patches import patches
from deltart.runtime.vision.positions import positions
from deltart.runtime.vision.tower import grid_inputs
from deltart.text_files import lines, read_bytes
from deltart.verify.shown import Shown

LOGIT_ROWS = 16  # of the tokens fed together; as many as an engine returns in one call


def logit_index(prefill: int) -> np.ndarray:
    """Which of `prefill` tokens fed together are compared by their logits, int64 [n]: spread evenly, the last too."""
    return np.unique(np.linspace(0, prefill - 1, min(LOGIT_ROWS, prefill)).round().astype(np.int64))


def logit_positions(tokens: int, prefill: int) -> np.ndarray:
    """Which of `tokens` have logits in `backend_points`, int64 [n]."""
    return np.concatenate([logit_index(prefill), np.arange(prefill, tokens)])


def backend_points(
    backend: Backend, points: Sequence[str], prefill: int, graph: str = "model", mtp: bool | None = None
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """`Runner.points` that feeds `prefill` tokens in one call and the others one by one, as generation does.

    Where the artifact has an MTP head, the tokens go through it too, each with the hidden state before it:
    "mtp.hidden" and "mtp.logits".

    Args:
        points: outputs of `graph` to collect, "hidden" and "logits" besides.
        mtp: whether to run the MTP head; None where `graph` is "model".
    """
    through_mtp = graph == "model" if mtp is None else mtp

    def run(ids: np.ndarray) -> dict[str, np.ndarray]:
        found = _fed(backend, graph, ids, [*points, "hidden", "logits"], prefill)
        if not through_mtp or "mtp" not in backend.manifest.graphs or len(ids) < 2:
            return found
        drafted = _fed(backend, "mtp", ids[1:], ["hidden", "logits"], prefill, found["hidden"][:-1])
        return found | {f"mtp.{name}": array for name, array in drafted.items()}

    return run


def backend_sees(
    backend: Backend, tower: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
) -> Callable[[Shown], dict[str, np.ndarray]]:
    """`Runner.sees` of a backend whose artifact sees: the tower, then its rows in a prompt that is fed at once.

    Args:
        tower: inputs of the vision graph to arrays [F, patches or rows, ...] by point, "embeds" among them.
    """
    entry = backend.manifest.vision
    assert entry is not None

    def run(shown: Shown) -> dict[str, np.ndarray]:
        grid = grid_inputs(*shown.medium.grid[1:], entry)
        seen = tower({"patches": patches(shown.medium.frames, entry), **grid})
        flat = {point: array.reshape(-1, array.shape[-1]) for point, array in seen.items()}
        index, length = np.full(len(shown.ids), -1, np.int32), len(shown.ids)
        for number, span in enumerate(shown.spans):
            rows = span.medium.frame_tokens
            index[span.start : span.end] = number * rows + np.arange(rows)
        places = positions(length, shown.spans)
        inputs = text_inputs(
            shown.ids[None], np.zeros(1, np.int32), logit_index=logit_index(length)[None], positions=places[:, None]
        )
        inputs |= media_inputs(flat["embeds"], index)
        state, names = backend.new_state("model", 1, length), ["hidden", "logits"]
        hidden, logits = backend.run("model", state, inputs, names)
        return flat | {"positions": places.T.astype(np.float32), "hidden": hidden[0], "logits": logits[0]}

    return run


def _fed(
    backend: Backend,
    graph: str,
    ids: np.ndarray,
    names: Sequence[str],
    prefill: int,
    previous_hidden: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Outputs `names` of one graph over all of `ids`."""
    state, together = backend.new_state(graph, 1, len(ids)), min(prefill, len(ids))
    parts: list[list[np.ndarray]] = []
    for begin, end in [(0, together), *((i, i + 1) for i in range(together, len(ids)))]:
        part, past, index = ids[None, begin:end], np.array([begin], np.int32), logit_index(end - begin)[None]
        if previous_hidden is None:
            inputs = text_inputs(part, past, logit_index=index)
        else:
            inputs = mtp_inputs(part, previous_hidden[None, begin:end], past, logit_index=index)
        parts.append([array[0] for array in backend.run(graph, state, inputs, names)])
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}


def backend_reply(backend: ServingBackend, tokenizer: Tokenizer, limit: int) -> Callable[[Sequence[int]], list[int]]:
    """`Runner.reply` of at most `limit` tokens, by the engine that serves users; the end token is the last."""
    greedy = SamplingParams(temperature=0, max_new_tokens=limit)
    options = EngineOptions(slots=1, draft_tokens=0, cache_bytes=0)

    def reply(prompt: Sequence[int]) -> list[int]:
        with Engine(backend, tokenizer, None, options) as engine:
            return engine.generate(prompt, greedy).drawn

    return reply


def read_prompts(path: Path, artifact: Path, count: int) -> list[list[int]]:
    """The first `count` prompts of a file, as token ids: a JSON object a line.

    {"messages": [...], "tools": [...], "enable_thinking": bool} goes through the artifact's chat template (the latter
    two may be absent), {"prompt": "..."} does not. Other fields are ignored.

    Raises:
        GenerationError: the file can't be read, or a line is none of these.
    """
    chosen = list(islice(lines(read_bytes(path, GenerationError), str(path), GenerationError), count))
    tokenizer = Tokenizer.from_folder(artifact)
    prompts = [tokenizer.encode(_text(line, place, artifact)) for place, line in chosen]
    if not prompts or not all(prompts):
        raise GenerationError(f"--prompts {path} has an empty prompt or none", "at least one token each")
    return prompts


def _text(line: str, place: str, artifact: Path) -> str:
    asked = parse_json(line, place, GenerationError)
    fields = asked if isinstance(asked, dict) else {}
    if "messages" not in fields:
        if not isinstance(fields.get("prompt"), str):
            raise GenerationError(f"{place} is {shown(asked)}", 'an object with "messages" or a text as "prompt"')
        return str(fields["prompt"])
    options = {name: fields[name] for name in ("tools", "enable_thinking") if name in fields}
    return ChatTemplate.from_folder(artifact).render(fields["messages"], **options)
