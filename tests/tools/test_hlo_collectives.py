"""Who sends what to whom."""

import pytest

from mim_jax.tools import hlo
from mim_jax.tools.hlo_collectives import axes_of, groups_of, traffic

MESH = dict(data=2, fsdp=2, model=2)
TEXT = """
%reduced (p: f32[64]) -> f32[32] {
  %p = f32[64]{0} parameter(0)
  %all = f32[64]{0} all-reduce(%p), channel_id=4, replica_groups=[4,2]<=[2,2,2]T(0,2,1), to_apply=%add
  ROOT %mine = f32[32]{0} dynamic-slice(%all, %p), dynamic_slice_sizes={32}
}

%begins (p: bf16[16]) -> (bf16[16], bf16[32]) {
  %p = bf16[16]{0} parameter(0)
  %gathered = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, frontend_attributes={chain_id="0"}
  ROOT %s = (bf16[16]{0}, bf16[32]{0}) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}

%goes_on (p: bf16[16]) -> bf16[32] {
  %p = bf16[16]{0} parameter(0)
  ROOT %gathered = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, frontend_attributes={chain_id="0"}
}

%body (t: f32[128]) -> f32[128] {
  %t = f32[128]{0} parameter(0)
  %on = bf16[32]{0} fusion(%t), kind=kOutput, calls=%goes_on
  %sum = (f32[128]{0}, f32[128]{0}) all-reduce-start(%t), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %done = f32[128]{0} all-reduce-done(%sum)
}

ENTRY %main (a: f32[64], b: bf16[16]) -> f32[128] {
  %a = f32[64]{0} parameter(0)
  %b = bf16[16]{0} parameter(1)
  %x = f32[128]{0} parameter(2)
  %part = f32[32]{0} fusion(%a), kind=kCustom, calls=%reduced
  %first = (bf16[16]{0}, bf16[32]{0}) fusion(%b), kind=kCustom, calls=%begins
  %loop = f32[128]{0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %to = (f32[64]{0}, f32[64]{0}, u32[]) collective-permute-start(%a), channel_id=2, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %everyone = f32[64]{0} all-to-all(%a), channel_id=3, replica_groups={}
  ROOT %alone = f32[64]{0} all-reduce(%a), channel_id=9, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""


def test_bytes_by_kind_and_axes():
    found = {(t.kind, t.axes): (t.times, t.sent) for t in traffic(hlo.parse(TEXT), MESH)}
    assert found == {
        ('all-reduce', 'data'): (6, 6 * 512 * 2 * (1 / 2)),
        ('reduce-scatter', 'fsdp'): (1, 256 * (1 / 2)),
        ('all-gather', 'fsdp'): (1, 32),
        ('collective-permute', 'model'): (1, 256),
        ('all-to-all', 'data+fsdp+model'): (1, 256 * 7 / 8),
    }


SLICED = """
%body (t: f32[128]) -> f32[128] {
  %t = f32[128]{0} parameter(0)
  %before = token[] after-all()
  %out = (f32[128]{0}, u32[], token[]) send(%t, %before), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %sum = f32[128]{0} all-reduce(%t), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
}

ENTRY %main (a: f32[128], b: bf16[8]) -> f32[128] {
  %a = f32[128]{0} parameter(0)
  %b = bf16[8]{0} parameter(1)
  %before = token[] after-all()
  %mine = (bf16[8]{0}, u32[], token[]) send(%b, %before), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_GATHER"}
  %theirs = (bf16[8]{0}, u32[], token[]) recv(%before), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_GATHER"}
  %print = (f32[128]{0}, u32[], token[]) send(%a, %before), channel_id=7, is_host_transfer=true
  %everyone = f32[128]{0} all-to-all(%a), channel_id=8, replica_groups={}
  ROOT %loop = f32[128]{0} while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
}
"""


def test_what_goes_to_other_slices_is_apart_from_groups_of_one_slice():
    found = {(t.kind, t.axes): (t.times, t.sent) for t in traffic(hlo.parse(SLICED), dict(data=8, fsdp=2), slices=4)}
    assert found == {
        ('all-reduce', 'data'): (6, 6 * 512),
        ('all-to-all', 'data+fsdp'): (1, 512 * 3 / 4),
        ('between slices', 'data'): (7, 6 * 512 * 2 * (3 / 4) + 16 * 3),
    }


@pytest.mark.parametrize(('text', 'expected'), [
    ('replica_groups={{0,1},{2,3}}, x', [[0, 1], [2, 3]]),
    ('replica_groups={}, x', [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ('replica_groups=[4,2]<=[8], x', [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ('replica_groups=[4,2]<=[2,4]T(1,0), x', [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ('replica_groups=[2,4]<=[2,2,2]T(1,0,2)', [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, x", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}, x", [[0, 2], [1, 3]]),
    ('source_target_pairs={{0,1},{1,0}}, x', [[0, 1], [1, 0]]),
])  # fmt: skip
def test_groups_in_every_form(text, expected):
    assert groups_of(text, 8).tolist() == expected


def test_axes_along_which_a_group_differs():
    assert axes_of(groups_of('replica_groups=[2,4]<=[2,2,2]T(1,0,2)', 8), MESH) == 'data+model'
    assert axes_of(groups_of('replica_groups={{0},{1}}', 8), MESH) == ''
