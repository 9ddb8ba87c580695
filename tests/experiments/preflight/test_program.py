"""Reading of compiled programs, against sums by hand of a stored one and of small ones."""

import pytest

from experiments.preflight import program
from tests.support.paths import ROOT

STORED = ROOT / "tests" / "golden" / "tpu_program.txt"


def test_cycles_of_a_stored_program():
    # By hand, from the nine operations of the text that have cycles: seven turns of the forward
    # loop (a copy, a store, a convolution) and of the backward loop (a copy, two convolutions),
    # then a copy, a product and the update of the weights.
    found = program.read(STORED.read_text())
    assert found.cycles == {
        program.CONVOLUTIONS: 7 * (10691 + 7863 + 8292),
        program.COPIES: 7 * (4076 + 4076) + 5654,
        program.REST: 7 * 5206 + 5270 + 4958,
    }
    assert found.total == sum(found.cycles.values()) and found.open_loops == 0


def test_collectives_of_a_stored_program():
    # The gradient, bfloat16 of 3x3x128x128, is summed over a slice (a quarter stays on each of
    # four chips), that quarter between the slices, and then gathered.
    whole = 2 * 3 * 3 * 128 * 128
    assert program.read(STORED.read_text()).collectives == {
        "reduce-scatter": program.Collective(1, whole // 4),
        program.BETWEEN_SLICES: program.Collective(1, whole // 4),
        "all-gather": program.Collective(1, whole),
    }


def test_outside_the_network_is_what_does_not_name_it():
    found = program.read(STORED.read_text(), network="while/body")
    # Without the three operations after the loops, and the two copies that have no name.
    outside = 5654 + 5270 + 4958 + 7 * 2 * 4076
    assert found.cycles[program.OUTSIDE] == outside
    assert found.total == program.read(STORED.read_text()).total


def line(name, opcode, path="", cycles=0, result="f32[8]{0}", more=""):
    metadata = f', metadata={{op_name="{path}"}}' if path else ""
    config = f', backend_config={{"estimated_cycles":"{cycles}"}}' if cycles else ""
    return f"  %{name} = {result} {opcode}(%x){more}{metadata}{config}"


def text(*lines, others=()):
    return "\n".join(
        ["HloModule m", "", *others, "ENTRY %main (x: f32[8]) -> f32[8] {", *lines, "}"]
    )


@pytest.mark.parametrize(
    ("opcode", "path", "kind"),
    [
        ("fusion", "jit(f)/Net/enc_32x32_block0/norm0/mul", program.NORMS),
        ("fusion", "jit(f)/Net/out_norm/mul", program.NORMS),
        ("fusion", "jit(f)/Net/enc_16x16_block0/qkv/add", program.ATTENTION),
        ("fusion", "jit(f)/Net/jit(dot_product_attention)/exp", program.ATTENTION),
        ("fusion", "jit(f)/Net/a/a._attend/vmap()/sub", program.ATTENTION),
        ("convolution", "jit(f)/Net/conv0/conv_general_dilated", program.CONVOLUTIONS),
        ("convolution", "jit(f)/Net/affine/dot_general", program.PRODUCTS),
        ("copy", "jit(f)/Net/conv0/add", program.COPIES),
        ("add", "jit(f)/Net/conv0/add", program.REST),
        ("add", "jit(f)/adam/add", program.OUTSIDE),
    ],
)
def test_kinds(opcode, path, kind):
    found = program.read(text(line("a", opcode, path, 5)), network="Net")
    assert found.cycles == {kind: 5}


def test_a_fusion_is_what_its_products_are():
    inside = [
        "%fused (p: f32[8]) -> f32[8] {",
        line("c", "convolution", "jit(f)/Net/conv0/conv_general_dilated"),
        "}",
    ]
    fused = line("a", "fusion", "jit(f)/Net/norm1/reduce_sum", 5, more=", calls=%fused")
    assert program.read(text(fused, others=inside), "Net").cycles == {program.CONVOLUTIONS: 5}


def test_of_branches_the_longest_counts_and_an_unknown_loop_once():
    others = [
        *("%short (p: f32[8]) -> f32[8] {", line("a", "add", "f", 3), "}"),
        *(
            "%long (p: f32[8]) -> f32[8] {",
            line("b", "add", "f", 10),
            line("c", "add", "f", 1),
            "}",
        ),
        *("%test (p: f32[8]) -> pred[] {", line("d", "compare", result="pred[]"), "}"),
    ]
    branch = line("e", "conditional", more=", branch_computations={%short, %long}")
    loop = line("g", "while", more=", condition=%test, body=%short")
    found = program.read(text(branch, loop, others=others))
    assert found.total == 11 + 3 and found.open_loops == 1


def test_bytes_of_a_tuple_and_of_a_started_collective():
    assert (
        program.array_bytes("(f32[3,5]{1,0:T(8,128)}, pred[7]{0}, bf16[]{:T(128)})") == 60 + 7 + 2
    )
    pair = "(f32[2]{0}, f32[8]{0}, u32[])"
    lines = [
        line("a", "all-gather-start", result=pair),
        line("b", "all-gather-done", result="f32[8]{0}"),
        line("c", "all-reduce", result="(f32[4]{0}, f32[2]{0})"),
    ]
    assert program.read(text(*lines)).collectives == {
        "all-gather": program.Collective(1, 32),
        "all-reduce": program.Collective(1, 24),
    }


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        program.read("nothing")


def kernel_line(name, dtype="bf16", cycles=0):
    shapes = f"{dtype}[16,6,3,64,1024]{{4,3,2,1,0}}, f32[16,6,1,1024]{{3,2,1,0}}"
    more = (
        ', custom_call_target="tpu_custom_call", '
        f"operand_layout_constraints={{{shapes}}}, frontend_attributes={{kernel_metadata={{}}}}"
    )
    path = f"jit(f)/Net/enc_32x32_block0/qkv/cond/{name}/pallas_call"
    return line(name, "custom-call", path, cycles, more=more)


def test_kernels_have_the_cycles_that_they_are_said_to_have():
    operands = (("bf16", (16, 6, 3, 64, 1024)), ("f32", (16, 6, 1, 1024)))
    known, other = program.Kernel("known", operands), program.Kernel("other", operands)
    given = text(
        kernel_line("known"), kernel_line("other"), kernel_line("told", cycles=7),
        line("sort", "custom-call", "jit(f)/Net/sort", more=', custom_call_target="Sort"'),
    )  # fmt: skip
    assert program.kernels(given) == {known, other}  # one has them already
    alone = program.read(given)
    assert alone.cycles == {program.ATTENTION: 7} and alone.uncounted == 2
    found = program.read(given, "Net", {known: 100, program.Kernel("more", operands): 1})
    assert found.cycles == {program.ATTENTION: 107} and found.uncounted == 1
