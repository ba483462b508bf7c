"""Masks of layers with windows, by hand."""

import pytest
import torch
from transformers import AutoConfig

from recbole_multdpo.scoring import windows
from recbole_multdpo.scoring.cache import aligned
from recbole_multdpo.scoring.packed import block_mask
from recbole_multdpo.scoring.windows import LayerKinds

MIXED = ["sliding_attention", "full_attention"]
# a prompt of three, candidates of two and one fed tokens: positions 3, 4 and 3
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 3]])
FULL = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 0, 0],
    [1, 1, 1, 1, 1, 0],
    [1, 1, 1, 0, 0, 1],
]
WINDOW_OF_TWO = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 1, 1, 0, 0, 0],
    [0, 0, 1, 1, 0, 0],
    [0, 0, 0, 1, 1, 0],
    [0, 0, 1, 0, 0, 1],
]
CHUNKS_OF_TWO = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 0],
    [0, 0, 1, 1, 0, 0],
    [0, 0, 0, 0, 1, 0],
    [0, 0, 1, 0, 0, 1],
]


def masks(kinds, window=None, chunk=None):
    mask = block_mask(SEGMENTS, torch.float32)
    return mask, LayerKinds(tuple(kinds), window, chunk).masks(mask, POSITIONS, POSITIONS)


def visible(mask):
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.float32
    return (mask[0, 0] == 0).int().tolist()


def test_one_window_for_all_layers_is_one_mask():
    mask, found = masks(["sliding_attention"], window=2)
    assert visible(mask) == FULL
    assert visible(found) == WINDOW_OF_TWO


def test_mixed_layers_have_a_mask_each():
    _, found = masks(MIXED, window=2)
    assert {kind: visible(mask) for kind, mask in found.items()} == {
        "full_attention": FULL,
        "sliding_attention": WINDOW_OF_TWO,
    }


def test_chunks():
    _, found = masks(["chunked_attention", "full_attention"], chunk=2)
    assert visible(found["chunked_attention"]) == CHUNKS_OF_TWO
    assert visible(found["full_attention"]) == FULL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 6, 8, 13, 16])
def test_rows_of_masks_are_aligned_in_memory(monkeypatch, width, dtype):
    """On a GPU, where torch copies any other mask in every layer (aten's `preprocess_mask`)."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(windows, "aligned", lambda length, device: aligned(length, gpu))
    segments = torch.zeros(2, width, dtype=torch.long)
    positions = torch.arange(width).expand(2, -1)
    mask = block_mask(segments, dtype)
    found = LayerKinds(tuple(MIXED), 4, None).masks(mask, positions, positions)
    for each in (mask, *(found.values() if isinstance(found, dict) else [])):
        assert each.shape == (2, 1, width, width) and each.dtype == dtype
        *strides, last = each.expand(2, 3, -1, -1).stride()
        assert last == 1 and all(stride % 8 == 0 for stride in strides)
    assert mask.equal(mask.contiguous()) and (mask == 0).sum() == width * (width + 1)


def test_unrestricted_layers_get_the_mask_itself():
    """The mask itself is returned without windows, or if the window is as long as the sequence."""
    for kinds, window in ((["full_attention"], 2), (MIXED, None), (MIXED, 5)):
        mask, found = masks(kinds, window)
        assert found is mask
    _, found = masks(MIXED, 4)
    assert found["sliding_attention"] is not found["full_attention"]


def test_a_search_has_keys_that_its_queries_do_not_follow():
    """Two queries at positions 3 and 4 against five cached keys, the last two of them their own."""
    mask = torch.zeros(1, 1, 2, 5)
    keys, queries = torch.tensor([[0, 1, 2, 3, 4]]), torch.tensor([[3, 4]])
    found = LayerKinds(("sliding_attention",), 3, None).masks(mask, queries, keys)
    assert (found[0, 0] == 0).int().tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("llama", {}, LayerKinds(("full_attention",), None, None)),
        ("mistral", {"sliding_window": 7}, LayerKinds(("sliding_attention",), 7, None)),
        ("mistral", {"sliding_window": None}, LayerKinds(("full_attention",), None, None)),
        # a window that is switched off
        ("qwen2", {"sliding_window": 7}, LayerKinds(("full_attention",), None, None)),
        (
            "gemma3_text",
            {"num_hidden_layers": 2, "layer_types": MIXED, "sliding_window": 7},
            LayerKinds(("full_attention", "sliding_attention"), 7, None),
        ),
        (
            "gemma3",
            {
                "text_config": {
                    "num_hidden_layers": 2,
                    "layer_types": MIXED,
                    "sliding_window": 7,
                }
            },
            LayerKinds(("full_attention", "sliding_attention"), 7, None),
        ),
    ],
)
def test_kinds_of_a_configuration(kind, options, expected):
    assert LayerKinds.of(AutoConfig.for_model(kind, **options)) == expected
