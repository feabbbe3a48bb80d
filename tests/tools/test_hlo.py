"""Programs as the compiler prints them, small enough to count by hand."""

import pytest

from mim_jax.tools import hlo

TABLES = """
FileNames
1 "/home/me/run.py"
2 "/x/mim_jax/step.py"
3 "/x/mim_jax/models/blocks.py"
4 "/site-packages/flax/linen/linear.py"
5 "/x/mim_jax/sharding.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=11 end_line=11 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=22 end_line=22 column=1 end_column=2}
4 {file_name_id=4 function_name_id=1 line=33 end_line=33 column=1 end_column=2}
5 {file_name_id=5 function_name_id=1 line=44 end_line=44 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=5 parent_frame_id=4}
5 {file_location_id=4 parent_frame_id=5}
"""

TEXT = f"""HloModule jit_train_step, is_scheduled=true
{TABLES}
%fused (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %inner = f32[8]{{0}} add(%p, %p), backend_config={{"estimated_cycles":"999"}}
}}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%t), index=1
  %product = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%fused, metadata={{op_name="jit(train_step)/transpose(jvp(M))/M.predict/encoder/blocks/while/body/block_3/mlp/fc1/dot_general" stack_frame_id=5}}, backend_config={{"window_config":{{"estimated_cycles":"100"}}}}
  %kernel = f32[262144]{{0:T(8)}} custom-call(%x), custom_call_target="tpu_custom_call", metadata={{op_name="jit(train_step)/attend" stack_frame_id=3}}
  ROOT %again = (s32[], f32[8]{{0}}) tuple(%x, %product)
}}

%condition (t: (s32[], f32[8])) -> pred[] {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  %three = s32[] constant(3)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %three), direction=LT
}}

%unknown (t: (s32[], f32[8])) -> pred[] {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  ROOT %less = pred[] get-tuple-element(%t), index=0
}}

%cheap (p: f32[8]) -> f32[8] {{
  ROOT %p = f32[8]{{0}} parameter(0)
}}

%dear (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %update = f32[8]{{0}} fusion(%p), kind=kLoop, calls=%fused, metadata={{op_name="jit(train_step)/cond/branch_1_fun/sub" stack_frame_id=2}}, backend_config={{"estimated_cycles":"7"}}
}}

%gathers (p: f32[65536]) -> f32[65536] {{
  %p = f32[65536]{{0}} parameter(0)
  ROOT %g = f32[65536]{{0}} gather(%p, %p)
}}

ENTRY %main (a: f32[8], big: f32[1048576]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %big = f32[1024,1024]{{1,0:T(8,128)}} parameter(1)
  %small = f32[8]{{0}} copy(%a)
  %moved = f32[1024,1024]{{0,1:T(8,128)}} copy(%big), metadata={{op_name="jit(train_step)/transpose" stack_frame_id=1}}
  %fetched = (f32[1024,1024]{{1,0}}, f32[1024,1024]{{1,0}}, u32[]) copy-start(%big)
  %done = f32[1024,1024]{{1,0}} copy-done(%fetched)
  %sorted = bf16[1024,1024]{{1,0:T(8,128)(2,1)}} sort(%big), dimensions={{1}}, to_apply=%less
  %picked = f32[65536]{{0}} fusion(%big), kind=kLoop, calls=%gathers
  %start = (s32[], f32[8]{{0}}) tuple(%a, /*index=1*/%a)
  %told = (s32[], f32[8]{{0}}) while(%start), condition=%unknown, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  %counted = (s32[], f32[8]{{0}}) while(%told), condition=%condition, body=%body
  %guessed = (s32[], f32[8]{{0}}) while(%counted), condition=%unknown, body=%body
  ROOT %out = f32[8]{{0}} conditional(%a, %a, %a), branch_computations={{%cheap, %dear}}
}}
"""


@pytest.fixture(scope='module')
def cost():
    return hlo.cost(hlo.parse(TEXT), moves=1024, hbm=2048, peak=10)


def test_loops_count_as_often_as_they_run_and_of_branches_the_dearest(cost):
    block = ('mim_jax/models/blocks.py:22', True, 'encoder/blocks/block/mlp/fc1')
    assert cost.lines[block] == 100 * (5 + 3 + 1)
    assert cost.guessed == 1
    assert cost.lines['mim_jax/step.py:11', False, ''] == 7
    assert not [key for key, cycles in cost.lines.items() if cycles == 999]


def test_moves_without_an_estimate_are_charged_by_their_bytes(cost):
    assert cost.charged == 2 * 4 * 1024 * 1024 / 1024
    assert cost.cycles == 900 + 7 + cost.charged + cost.kernels
    assert cost.prefetched == 4 * 1024 * 1024 + 2


def test_kernels_are_charged_what_they_take_at_least(cost):
    assert cost.kernels == 9 * (4 * 262144 + 32) / 2048 == cost.lines['mim_jax/models/blocks.py:22', False, '']
    told = TEXT.replace(
        '"tpu_custom_call"',
        '"tpu_custom_call", backend_config={"cost_estimate":{"flops":"50000","bytes_accessed":"1"}}',
    )
    assert hlo.cost(hlo.parse(told), 1024, 2048, peak=10).kernels == 9 * 5000


def test_what_has_no_estimate_is_listed_with_its_bytes(cost):
    assert cost.without_estimate == {
        'custom-call tpu_custom_call': (9, 9 * (4 * 262144 + 32)),
        'sort': (1, 6 * 1024 * 1024),
        'fusion of gather': (1, 4 * 65536 + 4 * 1024 * 1024),
    }


def test_a_line_is_the_innermost_of_the_package_that_does_more_than_pass_on():
    lines = hlo.source_lines(TABLES)
    assert lines == {'1': '', '2': 'mim_jax/step.py:11', **dict.fromkeys('345', 'mim_jax/models/blocks.py:22')}


def test_lines_in_the_older_form_of_metadata():
    text = 'ENTRY %main (a: f32[]) -> f32[] {\n  ROOT %x = f32[] add(%a, %a), metadata={op_name="x" source_file="/x/mim_jax/optim.py" source_line=8}\n}\n'
    program = hlo.parse(text)
    assert program.line(program.computations['main']['x']) == 'mim_jax/optim.py:8'


@pytest.mark.parametrize(('shape', 'expected'), [
    ('f32[2,3]{1,0:T(8,128)}', 24), ('bf16[]', 2), ('pred[7]', 7), ('(s4[3], u8[2]{0}, /*index=2*/f8e4m3fn[4])', 3 + 2 + 4), ('token[]', 1),
])  # fmt: skip
def test_bytes_of_shapes(shape, expected):
    assert hlo.size(shape) == expected
