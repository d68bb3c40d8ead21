"""Usage data that dependencies would send: switched off before any is imported, for this process and its children.

ONNX Runtime 1.31 reads its variable when it is imported (docs/Privacy.md of its repository); its function
disable_telemetry_events comes too late for the events and the device id of that moment.
"""

from __future__ import annotations

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: an uploader of events, and a device id below the home's cache
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray, which vLLM brings
    "VLLM_NO_USAGE_STATS": "1",  # vLLM, a rival in the benchmarks
    "DO_NOT_TRACK": "1",  # whoever else keeps to https://consoledonottrack.com
}


def switch_off() -> None:
    """Set the variables, whatever they were."""
    os.environ.update(SWITCHES)
