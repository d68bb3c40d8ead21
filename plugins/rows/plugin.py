"""Which kernel serves a call of each op that moves rows."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require
from deltart.plugins.rows.launch import Gather, concat, take

FOLDER, SOURCES = Path(__file__).resolve().parent, ("kernel.cu",)


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def embedding(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, stored = call.sizes, call.dtypes["table"]
    require(stored == "bf16", f"a table stored as {stored}", "bf16, as the activations are")
    shape = Gather(sizes["B"] * sizes["T"], 0, sizes["V"], sizes["H"])
    return SOURCES[0], [take(shape, call.at | {"source": call.at["table"], "index": call.at["ids"]})]


def take_rows(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes = call.sizes
    shape = Gather(sizes["B"] * sizes["L"], sizes["L"], sizes["T"], sizes["H"], call.dtypes["x"])
    return SOURCES[0], [take(shape, call.at | {"source": call.at["x"]})]


def concat_rows(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes = call.sizes
    widths = (sizes["H"], sizes["H2"])
    return SOURCES[0], [concat(sizes["B"] * sizes["T"], widths, call.dtypes["first"], call.at)]


KERNELS = {
    "Embedding": Kernel(FOLDER, SOURCES, workspace_bytes, embedding),
    "TakeRows": Kernel(FOLDER, SOURCES, workspace_bytes, take_rows),
    "ConcatRows": Kernel(FOLDER, SOURCES, workspace_bytes, concat_rows),
}
