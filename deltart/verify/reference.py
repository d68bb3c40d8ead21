"""transformers' own model of an exported checkpoint: the outside reference of `deltart verify`.

transformers reads the checkpoint's config.json and the safetensors library its weights; nothing of ours is between.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltart.errors import ArtifactError, DeltaRTError, MissingDependencyError
from deltart.manifest import Manifest, VisionEntry
from deltart.runtime.vision.patches import patches
from deltart.text_files import check_folder
from deltart.verify.shown import Shown

MAX_PARAMETERS = 2_000_000_000  # in float32 that is 8 GB
SCALE, BLOCK = "_scale_inv", 128  # the vendor's FP8: a scale for every 128 x 128 values, named after its weight
PACKED = ".weight_packed"  # compressed-tensors' int4: eight values a word, the first lowest, 8 for nothing
COMPRESSED = ".weight_scale"  # of its FP8, by blocks as the vendor's, or one for every row
PIXELS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
NEEDS = "pip install 'deltart[verify]'"


class ReferenceModel:
    """transformers' eager model of an exported checkpoint, in float32.

    Raises:
        MissingDependencyError: transformers is not installed.
        ArtifactError: the checkpoint is gone, transformers can't load all of it, or it is too large.
    """

    def __init__(self, manifest: Manifest) -> None:
        folder = Path(manifest.checkpoint)
        check_folder(folder, ArtifactError, "the checkpoint that was exported")
        count = _parameters(folder)
        if count > MAX_PARAMETERS:
            raise ArtifactError(
                f"{count / 1e9:.1f} billion parameters in float32", f"at most {MAX_PARAMETERS / 1e9:.0f}"
            )
        self._model = _load(folder, manifest)

    @torch.no_grad()
    def points(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Token ids [T] to every block's hidden state and the logits, f32 [T, ...] by point."""
        with _quietly():
            outputs = self._model(torch.from_numpy(ids[None]), output_hidden_states=True, use_cache=False)
        *states, hidden = (h[0].numpy() for h in outputs.hidden_states)
        # transformers norms the last layer's state before it lists it.
        points = {"embed.h": states[0]} | {f"layers.{n}.h": state for n, state in enumerate(states[1:])}
        return points | {"hidden": hidden, "logits": outputs.logits[0].numpy()}

    @torch.no_grad()
    def sees(self, shown: Shown, entry: VisionEntry) -> dict[str, np.ndarray]:
        """`Runner.sees`: transformers places the rows and counts the positions, over the same patches."""
        tower, states = self._model.model.visual, dict[str, torch.Tensor]()
        hooks = [tower.blocks[0].register_forward_pre_hook(lambda _, given: states.update({"embed.h": given[0]}))]
        for number, block in enumerate(tower.blocks):
            keep = lambda _, given, made, point=f"blocks.{number}.h": states.update({point: made})  # noqa: E731
            hooks.append(block.register_forward_hook(keep))
        hooks.append(tower.merger.register_forward_hook(lambda _, given, made: states.update(embeds=made)))
        rows = patches(shown.medium.frames, entry)
        kinds = np.zeros(len(shown.ids), np.int64)
        for span in shown.spans:
            kinds[span.start : span.end] = 1 if shown.medium.kind == "image" else 2
        pixels, grids = PIXELS[shown.medium.kind]
        prompt: dict[str, torch.Tensor] = {
            "input_ids": torch.from_numpy(shown.ids[None]), "mm_token_type_ids": torch.from_numpy(kinds)[None],
            grids: torch.tensor([shown.medium.grid]),
        }  # fmt: skip
        values = torch.from_numpy(rows.reshape(-1, rows.shape[-1]))
        try:
            with _quietly():
                places, _ = self._model.model.get_rope_index(**prompt)
                outputs = self._model(**prompt, **{pixels: values}, output_hidden_states=True, use_cache=False)
        except ValueError as error:  # as many placeholders as rows, and nothing else
            raise ArtifactError(f"transformers refuses the prompt with the {shown.name}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        states["positions"] = places[:, 0].T.float()
        found = {point: state.reshape(-1, state.shape[-1]).numpy() for point, state in states.items()}
        return found | {"hidden": outputs.hidden_states[-1][0].numpy(), "logits": outputs.logits[0].numpy()}

    @torch.no_grad()
    def reply(self, prompt: Sequence[int], stops: Collection[int], limit: int) -> list[int]:
        """At most `limit` greedy tokens after `prompt`, the stop token included."""
        tokens, cache, reply = torch.tensor([list(prompt)]), None, list[int]()
        while len(reply) < limit and not (reply and reply[-1] in stops):
            with _quietly():
                outputs = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = outputs.past_key_values, outputs.logits[:, -1].argmax(-1, keepdim=True)
            reply.append(int(tokens))
        return reply


def _files(folder: Path) -> Iterator[Any]:
    """The checkpoint's files, opened by the safetensors library."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise MissingDependencyError("safetensors is not installed", "what reads the reference", NEEDS) from None
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"the safetensors library can't read {path}: {error}") from None


def _parameters(folder: Path) -> int:
    """How many numbers the checkpoint's files hold."""
    return sum(
        math.prod(f.get_slice(name).get_shape()) * (8 if name.endswith(PACKED) else 1)
        for f in _files(folder)
        for name in f.keys()  # noqa: SIM118
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in float32: FP8 weights times their scales, each repeated over its block of 128 x 128 or its row,
    and packed weights unpacked, times those of their groups.

    transformers' own expansion of FP8 takes multiples of 128 only.
    """
    stored = {name: file.get_tensor(name) for file in _files(folder) for name in file.keys()}  # noqa: SIM118
    packed = [name.removesuffix(PACKED) for name in stored if name.endswith(PACKED)]
    stored |= {f"{module}.weight": _unpacked(module, stored) for module in packed}
    scales = {name: stored.pop(name).float() for name in list(stored) if name.endswith((SCALE, COMPRESSED))}
    weights = {name: value.float() for name, value in stored.items()}
    for name, scale in scales.items():
        weight = weights[name.removesuffix("_inv").removesuffix("_scale")]
        rows, columns = weight.shape
        if scale.shape != (rows, 1):
            scale = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        weight *= scale
    return weights


def _unpacked(module: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight [out, in] behind the three tensors of `module`, which are taken out of `stored`."""
    words, scale = stored.pop(f"{module}{PACKED}"), stored.pop(f"{module}.weight_scale").float()
    rows, columns = stored.pop(f"{module}.weight_shape").tolist()
    nibbles = (words[:, :, None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return (nibbles.reshape(rows, columns) - 8) * scale.repeat_interleave(columns // scale.shape[1], 1)


def _load(folder: Path, manifest: Manifest) -> Any:
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    except ImportError:
        raise MissingDependencyError("transformers is not installed", "transformers 5.23", NEEDS) from None
    try:
        with _quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            _stretch(config.get_text_config(), manifest)
            config.quantization_config = None  # the weights are expanded
            auto = AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM
            with torch.device("meta"):
                made = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
            model, found = type(made).from_pretrained(
                None, config=made.config, state_dict=_weights(folder), dtype=torch.float32, output_loading_info=True,
                attn_implementation="eager",
            )  # fmt: skip
    except DeltaRTError:
        raise
    except Exception as error:  # transformers raises whatever it meets
        raise ArtifactError(f"transformers can't load {folder}: {' '.join(str(error).split())}") from error
    lost = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lost:
        raise ArtifactError(f"transformers finds no '{lost[0]}' in {folder}", "every parameter of its own model")
    return model.eval()


def _stretch(text: Any, manifest: Manifest) -> None:
    """What the user asked of `deltart export --yarn`, written into transformers' config as model cards tell."""
    rope = dict(text.rope_parameters)
    ordered = manifest.spec["rope"]["yarn"]
    if ordered is not None and rope.get("rope_type") != "yarn":
        trained = text.max_position_embeddings
        text.rope_parameters = rope | {
            "rope_type": "yarn", "factor": ordered["factor"], "original_max_position_embeddings": trained
        }  # fmt: skip
        text.max_position_embeddings = int(trained * ordered["factor"])


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings and progress bars of transformers and what it calls."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
