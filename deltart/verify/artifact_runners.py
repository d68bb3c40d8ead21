"""Every runner that an artifact can be compared with: transformers, both ONNX Runtime targets, its engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from deltart.errors import ArtifactError, MissingDependencyError
from deltart.manifest import Manifest
from deltart.plugins.cpu_shim.host_cuda import HostLimits
from deltart.plugins.fp8_linear.activations import rounds
from deltart.plugins.loader import GpuDevice
from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.engine_manifest import Activations, EngineManifest, load_engine
from deltart.runtime.backends.ort import WeightMode
from deltart.runtime.backends.tensorrt.builder.precision import MODES
from deltart.runtime.backends.tensorrt.load import built_flavour
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify.compare import Runner
from deltart.verify.runners import backend_points, backend_reply, backend_sees, logit_index, logit_positions
from deltart.verify.shown import Marks, Shown, shown_media
from deltart.verify.tolerances import FP8_PREFILL, NATIVE_ON_SHIM

HOST = HostLimits.capability
SHIM_BYTES = 256 << 20  # of weights: beyond, the CPU shim takes minutes a token


class ArtifactRunners:
    """Makes the runners of an artifact, each when it is asked for.

    Args:
        artifact: folder written by `deltart export`.
        manifest: its manifest.
        prefill: tokens that go through in one call, the others one by one.
        weights: see WeightMode.
        activations: "fp8" adds a runner whose prefill rounds the activations of block-FP8 linears, "auto" where an
            engine's does.
        max_new_tokens: longest greedy reply; None where no replies are compared.
        cache: folder of built plans, for the engine's plans that return every block's state.
    """

    def __init__(
        self, artifact: Path, manifest: Manifest, prefill: int, weights: WeightMode, activations: Activations,
        max_new_tokens: int | None, cache: Path,
    ) -> None:  # fmt: skip
        self._artifact, self._manifest, self._prefill, self._weights = artifact, manifest, prefill, weights
        self._activations, self._max_new_tokens, self._cache = activations, max_new_tokens, cache

    def by_name(self) -> dict[str, Callable[[], Runner]]:
        """Every runner, the reference first."""
        return {
            "transformers": self._transformers,
            "portable": lambda: self._cpu("portable"),
            "ort": lambda: self._cpu("ort"),
            **({FP8_PREFILL: self._fp8_prefill} if self._shows_rounding else {}),
            NATIVE_ON_SHIM: self._native_on_shim,
            "engine": self._engine,
            "engine by block": self._engine_by_block,
        }

    @property
    def _shows_rounding(self) -> bool:
        return self._activations == "fp8" or (self._activations == "auto" and bool(self.rounding()))

    def rounding(self) -> list[str]:
        """The runners whose prefill rounds activations to E4M3, but for the twin."""
        return [name for name, engine, capability in self._engines() if _rounds(engine, capability)]

    def twins(self) -> dict[str, str]:
        """The twin of each engine that rounds."""
        return dict.fromkeys(self.rounding(), FP8_PREFILL) if self._shows_rounding else {}

    def fp8_heads(self) -> list[str]:
        """The runners whose engine has its LM head in E4M3."""
        return [name for name, engine, _ in self._engines() if engine.lm_head is not None]

    def _engines(self) -> list[tuple[str, EngineManifest, int]]:
        """Every runner that has an engine, and its device's compute capability, times ten."""
        engines = {NATIVE_ON_SHIM: "native"} | dict.fromkeys(
            ("engine", "engine by block"), built_flavour(self._artifact)
        )
        found = []
        for runner, flavour in engines.items():
            with suppress(ArtifactError, MissingDependencyError):
                engine = load_engine(self._artifact, flavour)
                found.append((runner, engine, HOST if runner == NATIVE_ON_SHIM else GpuDevice().capability))
        return found

    def shown(self, ids: np.ndarray) -> list[Shown]:
        """The media that runners which see are shown, between tokens of `ids`; none where the artifact sees none."""
        entry = self._manifest.vision
        if entry is None:
            return []
        known = "tokenizer.json" in self._manifest.text_files
        return shown_media(entry, self._tokenizer if known else Marks(entry.tokens), ids)

    def _transformers(self) -> Runner:
        from deltart.verify.reference import ReferenceModel

        model, prefill = ReferenceModel(self._manifest), self._prefill

        def points(ids: np.ndarray) -> dict[str, np.ndarray]:
            found = model.points(ids)
            return found | {"logits": found["logits"][logit_positions(len(ids), min(prefill, len(ids)))]}

        longest, entry = self._max_new_tokens, self._manifest.vision

        def sees(shown: Shown) -> dict[str, np.ndarray]:
            assert entry is not None
            found = model.sees(shown, entry)
            return found | {"logits": found["logits"][logit_index(len(shown.ids))]}

        reply = None
        if longest is not None:
            stops = self._tokenizer.eos_ids
            reply = lambda prompt: model.reply(prompt, stops, longest)  # noqa: E731
        return Runner(points, reply, sees if entry else None)

    def _cpu(self, target: str) -> Runner:
        from deltart.verify.exposed import ExposedBackend

        backend = ExposedBackend(self._artifact, target, self._weights)
        reply = self._reply(backend) if target == "ort" else None
        sees = backend_sees(backend, backend.tower) if self._manifest.vision else None
        return Runner(backend_points(backend, backend.points, self._prefill), reply, sees)

    def _fp8_prefill(self) -> Runner:
        from deltart.verify.fp8_prefill import Fp8PrefillBackend

        backend = Fp8PrefillBackend(self._artifact, weights=self._weights)
        return Runner(backend_points(backend, backend.points, self._prefill))

    def _native_on_shim(self) -> Runner:
        from deltart.plugins.cpu_shim.host_cuda import HostCuda
        from deltart.verify.tensorrt_exposed import GRAPH, build_exposed, points

        load_engine(self._artifact, "native")
        nbytes = sum(tensor.nbytes for tensor in self._manifest.tensors.values())
        if nbytes > SHIM_BYTES:
            found = f"{nbytes >> 20} MB of weights on the CPU shim, which runs every thread of a kernel in turn"
            raise ArtifactError(found, f"at most {SHIM_BYTES >> 20} MB", "verify the native engine on a GPU")
        build_exposed(self._artifact, "native", self._cache)
        backend = TensorRtBackend(self._artifact, "native", cuda=HostCuda())
        return Runner(backend_points(backend, points(backend.engine), self._prefill, GRAPH, mtp=True))

    def _engine(self) -> Runner:
        gpu = self._gpu
        sees = backend_sees(gpu, lambda inputs: {"embeds": gpu.see(inputs)}) if gpu.sees else None
        return Runner(backend_points(gpu, [], self._prefill), self._reply(gpu), sees)

    def _engine_by_block(self) -> Runner:
        from deltart.verify.tensorrt_exposed import GRAPH, points

        return Runner(backend_points(self._gpu, points(self._gpu.engine), self._prefill, GRAPH))

    def _reply(self, backend: ServingBackend) -> Callable[[Sequence[int]], list[int]] | None:
        if self._max_new_tokens is None:
            return None
        return backend_reply(backend, self._tokenizer, self._max_new_tokens)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self._artifact)

    @cached_property
    def _gpu(self) -> TensorRtBackend:
        return _open_engine(self._artifact, self._cache)


def _rounds(engine: EngineManifest, capability: int) -> bool:
    return rounds(MODES[engine.prefill_activations], capability)


def _open_engine(artifact: Path, cache: Path) -> TensorRtBackend:
    """The artifact's engine, with plans that return every block's state; they are built where they are missing."""
    from deltart.runtime.backends.gpu.cuda import CudaDriver
    from deltart.verify.tensorrt_exposed import build_exposed

    flavour = built_flavour(artifact)
    load_engine(artifact, flavour)
    cuda = CudaDriver()
    build_exposed(artifact, flavour, cache)
    return TensorRtBackend(artifact, flavour, cuda=cuda)
