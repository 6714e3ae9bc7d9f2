"""Images on their way to host memory arrive whole, each in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genray.views.generators.to_host import ToHost

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_micro_batches_arrive_in_their_places(device: str) -> None:
    images = torch.arange(10 * 3 * 4 * 4).remainder(251).to(torch.uint8).view(10, 3, 4, 4)
    host = ToHost((10, 3, 4, 4), torch.device(device))
    for start in (8, 0, 4):
        host.put(start, images[start : start + 4].to(device))
    array = host.array()
    np.testing.assert_array_equal(array, images.numpy())
    assert array.flags.c_contiguous


def test_on_a_cpu_there_is_one_copy_and_no_other_array() -> None:
    host = ToHost((4, 3, 2, 2), torch.device("cpu"))
    host.put(0, torch.ones(4, 3, 2, 2, dtype=torch.uint8).to(memory_format=torch.channels_last))
    assert host.array().ctypes.data == host.images.data_ptr()
    assert not host.images.is_pinned()
    assert host.array().min() == 1


@cuda
def test_a_gpu_need_not_be_waited_for() -> None:
    """Each copy sees what was in the memory when it was asked for, although that is used again at once."""
    host = ToHost((64, 3, 64, 64), torch.device("cuda"))
    assert host.images.is_pinned()
    for i in range(64):
        busy = torch.randn(2000, 2000, device="cuda")
        for _ in range(5):
            busy = busy @ busy / 2000
        host.put(i, torch.full((1, 3, 64, 64), i, dtype=torch.uint8, device="cuda"))
    found = host.array()
    assert [(int(image.min()), int(image.max())) for image in found] == [(i, i) for i in range(64)]
