"""Instructions, types and trip counts, on HLO written by hand."""

import pytest

from flamingo_jax.planning import hlo

STATE = "(s32[]{:T(128)}, s32[]{:T(128)}, /*index=2*/f32[8]{0:T(1024)})"
LOOPS = """HloModule jit_f, is_scheduled=true

%inner_cond (p.1: (s32[], s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[8]{0:T(1024)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound = s32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

%inner_body (p.2: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %p.2 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[8]{0:T(1024)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %two = s32[]{:T(128)} constant(2)
  %next.2 = s32[]{:T(128)} add(%i.2, %two)
  %same = s32[]{:T(128)} get-tuple-element(%p.2), index=1
  %x.2 = f32[8]{0:T(1024)} get-tuple-element(%p.2), index=2
  ROOT %t.2 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[8]{0:T(1024)}) tuple(%next.2, %same, %x.2)
}

%outer_cond (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[]{:T(128)}, f32[8]{0:T(1024)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %ten = s32[]{:T(128)} constant(10)
  ROOT %lt.3 = pred[]{:T(512)} compare(%i.3, %ten), direction=LT
}

%outer_body (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.4 = (s32[]{:T(128)}, f32[8]{0:T(1024)}) parameter(0)
  %i.4 = s32[]{:T(128)} get-tuple-element(%p.4), index=0
  %one = s32[]{:T(128)} constant(1)
  %next.4 = s32[]{:T(128)} add(%i.4, %one)
  %x.4 = f32[8]{0:T(1024)} get-tuple-element(%p.4), index=1
  %zero.4 = s32[]{:T(128)} constant(0)
  %start.4 = s32[]{:T(128)} copy(%zero.4)
  %seven = s32[]{:T(128)} constant(7)
  %init.4 = STATE tuple(%start.4, %seven, %x.4)
  %loop.4 = STATE while(%init.4), condition=%inner_cond, body=%inner_body
  %y.4 = f32[8]{0:T(1024)} get-tuple-element(%loop.4), index=2
  ROOT %t.4 = (s32[]{:T(128)}, f32[8]{0:T(1024)}) tuple(%next.4, %y.4)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(1024)} parameter(0), metadata={op_name="a"}
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, f32[8]{0:T(1024)}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(1024)}) while(%init), LOOP, ATTRIBUTES
  ROOT %out = f32[8]{0:T(1024)} get-tuple-element(%loop), index=1
}
""".replace("STATE", STATE).replace("LOOP", "condition=%outer_cond, body=%outer_body")


ATTRIBUTES = (
    'metadata={op_name="jit(f)/while" id=2}, '
    'backend_config={KNOWN"window_config":{"estimated_cycles":"12"}}'
)


def module(known=""):
    return hlo.parse(LOOPS.replace("ATTRIBUTES", ATTRIBUTES.replace("KNOWN", known)))


def test_instructions():
    loop = module().computations["main"].instructions["loop"]
    assert (loop.opcode, loop.operands) == ("while", ("init",))
    assert (loop.op_name, loop.cycles) == ("jit(f)/while", 12)
    assert loop.called == ("outer_cond", "outer_body")
    assert loop.num_bytes == 4 + 8 * 4
    assert loop.attribute("body") == "%outer_body"
    assert module().computations["main"].root.name == "out"


def test_trip_counts_of_nested_loops():
    parsed = module()
    (outer,) = [i for i in parsed.computations["main"] if i.opcode == "while"]
    (inner,) = [i for i in parsed.computations["outer_body"] if i.opcode == "while"]
    assert [(c.name, n) for c, n in parsed.branches(outer)] == [("outer_body", 10)]
    # 0, 2, 4, 6: the bound is an element of the tuple.
    assert [(c.name, n) for c, n in parsed.branches(inner)] == [("inner_body", 4)]


def test_bound_that_is_passed_through_both_loops():
    text = LOOPS.replace("ATTRIBUTES", "").replace(
        "(s32[]{:T(128)}, f32[8]{0:T(1024)})", "(s32[]{:T(128)}, f32[8]{0:T(1024)}, s32[]{:T(128)})"
    )
    text = text.replace("tuple(%zero, %a)", "tuple(%zero, %a, %nine)").replace(
        "  %zero = ", "  %nine = s32[]{:T(128)} constant(9)\n  %zero = "
    )
    text = text.replace(
        "%seven = s32[]{:T(128)} constant(7)",
        "%seven = s32[]{:T(128)} get-tuple-element(%p.4), index=2",
    )
    text = text.replace("tuple(%next.4, %y.4)", "tuple(%next.4, %y.4, %seven)")
    parsed = hlo.parse(text)
    loop = parsed.computations["outer_body"].instructions["loop.4"]
    assert [n for _, n in parsed.branches(loop)] == [5]  # 0, 2, 4, 6, 8


def test_known_trip_count_is_used():
    parsed = module('"known_trip_count":{"n":"3"},')
    loop = parsed.computations["main"].instructions["loop"]
    assert [n for _, n in parsed.branches(loop)] == [3]


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(hlo.HloError, match="no ENTRY"):
        hlo.parse("HloModule nothing")
    with pytest.raises(hlo.HloError, match="does not compare"):
        parsed = hlo.parse(LOOPS.replace("compare(%i.3, %ten), direction=LT", "not(%i.3)"))
        parsed.branches(parsed.computations["main"].instructions["loop"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bf16[8,512,4096]{2,1,0:T(8,128)(2,1)S(3)}", [("bf16", (8, 512, 4096))]),
        ("(s32[]{:T(128)}, /*index=1*/f8e4m3fn[2,3]{1,0})", [("s32", ()), ("f8e4m3fn", (2, 3))]),
        ("pred[]{:T(512)S(6)}", [("pred", ())]),
    ],
)
def test_leaves(text, expected):
    assert hlo.leaves(text) == expected
