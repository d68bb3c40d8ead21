"""Contracts of the ops that move rows: out of the embedding table, out of a sequence, and two behind each other."""

from deltart.plugins.rows.reference import concat_rows, embedding, take_rows
from deltart.plugins.spec import ACT, I64, STORED, OpSpec, TensorSpec

EMBEDDING = OpSpec(
    name="Embedding",
    doc="y = table[ids].",
    inputs=(TensorSpec("ids", I64, ("B", "T")), TensorSpec("table", STORED, ("V", "H"))),
    outputs=(TensorSpec("y", ACT, ("B", "T", "H")),),
    reference=embedding,
)

TAKE_ROWS = OpSpec(
    name="TakeRows",
    doc="y[b, l] = x[b, index[b, l]].",
    inputs=(TensorSpec("x", ACT, ("B", "T", "H")), TensorSpec("index", I64, ("B", "L"))),
    outputs=(TensorSpec("y", ACT, ("B", "L", "H")),),
    reference=take_rows,
)

CONCAT_ROWS = OpSpec(
    name="ConcatRows",
    doc="y = [first, second] along the last axis.",
    inputs=(TensorSpec("first", ACT, ("B", "T", "H")), TensorSpec("second", ACT, ("B", "T", "H2"))),
    outputs=(TensorSpec("y", ACT, ("B", "T", "H+H2")),),
    reference=concat_rows,
)
