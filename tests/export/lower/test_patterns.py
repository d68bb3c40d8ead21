"""The walk that finds patterns, on graphs of a few nodes, and the checks after a lowering."""

from __future__ import annotations

import onnx
import pytest

from deltart.errors import ExportError
from deltart.export.check import check_inlined
from deltart.export.lower.patterns import Constant, Op, Value, match


def producers(body: str) -> dict[str, onnx.NodeProto]:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g () => () {{ {body} }}')
    return {output: node for node in model.graph.node for output in node.output}


SQUARE = Op("Mul", (Value("x"), Value("x")))
PAIR = Op("Add", (Op("Neg", (Value("x"),), "negation"), Op("Exp", (Value("y"),))), any_order=True)


def test_a_name_is_one_value_wherever_it_stands() -> None:
    found = match(SQUARE, "y", producers("y = Mul (a, a)"))
    assert found is not None and found.values == {"x": "a"}
    assert match(SQUARE, "y", producers("y = Mul (a, b)")) is None


@pytest.mark.parametrize("sum_of", ["n, e", "e, n"])
def test_inputs_in_any_order(sum_of: str) -> None:
    nodes = producers(f"n = Neg (a) e = Exp (b) y = Add ({sum_of})")
    found = match(PAIR, "y", nodes)
    assert found is not None and found.values == {"x": "a", "y": "b"} and found.nodes["negation"] is nodes["n"]


def test_a_choice_that_fails_later_is_taken_back() -> None:
    twice = Op("Mul", (Op("Add", (Value("x"), Value("y")), any_order=True), Value("x")))
    found = match(twice, "z", producers("s = Add (a, b) z = Mul (s, b)"))
    assert found is not None and found.values == {"x": "b", "y": "a"}


def test_a_node_captured_twice_is_one_node() -> None:
    gate = Op("Neg", (Value("x"),), "gate")
    pattern = Op("Mul", (gate, Op("Exp", (gate,))))
    assert match(pattern, "y", producers("g = Neg (a) e = Exp (g) y = Mul (g, e)")) is not None
    assert match(pattern, "y", producers("g = Neg (a) h = Neg (a) e = Exp (h) y = Mul (g, e)")) is None


def test_casts_constants_and_stored_values() -> None:
    nodes = producers("""
        w = Cast <to = 1> (stored)
        n = Neg (x)
        c = Cast <to = 1> (n)
        start = Constant <value = int64[2] {3, 4}> ()
        y = Slice (c, start)
        z = MatMul (c, w)
    """)
    sliced = Op("Slice", (Op("Neg", (Value("x"),)), Constant("start")))
    assert match(sliced, "y", nodes) is None
    found = match(sliced, "y", nodes, through_casts=True)
    assert found is not None and found.constants == {"start": [3, 4]}
    product = match(Op("MatMul", (Value("a", uncast=True), Value("w"))), "z", nodes)
    assert product is not None and product.values == {"a": "n", "w": "w"}
    assert match(Op("MatMul", (Value("a"), Value("w", stored=True))), "z", nodes) is None
    assert match(Op("MatMul", (Value("a"), Value("w", stored=True, uncast=True))), "z", nodes) is not None


def model(body: str) -> onnx.ModelProto:
    """A graph with state s; `s_next` in the text, which takes no dots, is its output s.next."""
    made = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 24, "deltart" : 1, "other" : 1]>
        g (float[1, 2, 8] x, float[8, 1, 4] w, float[1, 3, 8] s, int32[1] n)
          => (float[1, 2, 8] y, float[1, 3, 8] s_next) {{ {body} }}"""
    )
    for node in made.graph.node:
        node.output[:] = ["s.next" if name == "s_next" else name for name in node.output]
    made.graph.output[1].name = "s.next"
    return made


def test_a_state_needs_an_op_that_writes_it() -> None:
    check_inlined(model("y, s_next = deltart.CausalConv1d (x, w, s, n)"))
    for body in ("y, other = deltart.CausalConv1d (x, w, s, n) s_next = Neg (s)", "y = Neg (x) s_next = Neg (s)"):
        with pytest.raises(ExportError, match=r"no op writes 's\.next' over 's'"):
            check_inlined(model(body))


@pytest.mark.parametrize("node", ["deltart.NoOp (x)", "other.Neg (x)", "NoSuchOp (x)"])
def test_a_node_that_nobody_serves_is_named(node: str) -> None:
    with pytest.raises(ExportError, match=r"is .*(NoOp|other::Neg|NoSuchOp)"):
        check_inlined(model(f"y = {node} z, s_next = deltart.CausalConv1d (x, w, s, n)"))
