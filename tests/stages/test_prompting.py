"""Boxes and points become the vectors that SAM makes of them; corners become plain sinusoids."""

import math

import pytest
import torch
from transformers import SamConfig, SamModel

from stages.prompting import INSIDE, OUTSIDE, PADDING, SamPrompts, sinusoidal_corners

SIDE_PX, CHANNELS = 32, 16


@pytest.fixture(scope="module")
def sam() -> SamModel:
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "image_size": SIDE_PX, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "mlp_dim": 8, "output_channels": CHANNELS, "num_pos_feats": CHANNELS // 2, "window_size": 0,
            "global_attn_indexes": [0],
        },
        prompt_encoder_config={"hidden_size": CHANNELS, "image_size": SIDE_PX, "patch_size": 4},
        mask_decoder_config={"hidden_size": CHANNELS, "mlp_dim": 8, "num_attention_heads": 2},
    )  # fmt: skip
    return SamModel(config).eval()


@pytest.fixture(scope="module")
def prompts(sam: SamModel) -> SamPrompts:
    ours = SamPrompts(CHANNELS)
    theirs = sam.prompt_encoder.state_dict()
    own = {name: theirs[name] for name in ours.state_dict() if name in theirs}
    ours.load_state_dict({**own, "positional_embedding": sam.shared_image_embedding.positional_embedding})
    return ours


def test_boxes_are_encoded_as_sam_does_which_means_the_middles_of_pixels(sam: SamModel, prompts: SamPrompts) -> None:
    boxes = torch.tensor([[3.0, 5.0, 20.0, 30.0], [0.0, 0.0, 32.0, 32.0]])

    with torch.no_grad():
        theirs, _ = sam.prompt_encoder(input_points=None, input_labels=None, input_boxes=boxes[None], input_masks=None)
        ours = prompts((boxes + 0.5) / SIDE_PX)

    torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=1e-4)


def test_points_are_encoded_as_sam_does_padding_too(sam: SamModel, prompts: SamPrompts) -> None:
    points = torch.tensor([[[3.0, 5.0], [20.0, 30.0], [0.0, 0.0]]])
    labels = torch.tensor([[INSIDE, OUTSIDE, PADDING]])

    with torch.no_grad():
        theirs, _ = sam.prompt_encoder(
            input_points=points[None], input_labels=labels[None], input_boxes=torch.zeros(1, 1, 4), input_masks=None
        )
        ours = prompts.points((points + 0.5) / SIDE_PX, labels)

    torch.testing.assert_close(ours[0], theirs[0, 0, :3], atol=1e-4, rtol=1e-4)


def test_the_grid_is_sams_own(sam: SamModel, prompts: SamPrompts) -> None:
    with torch.no_grad():
        theirs = sam.get_image_wide_positional_embeddings()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(prompts.grid(8, 8), theirs[0], atol=1e-4, rtol=1e-4)


def test_sinusoids_of_a_corner_are_those_of_its_two_places() -> None:
    encoded = sinusoidal_corners(torch.tensor([[0.25, 0.5, 1.0, 0.0]]), 8, temperature=100.0)

    assert encoded.shape == (1, 2, 8)
    slow = 2 * math.pi * 0.25 / 10  # the second of two frequencies: 100 ** -0.5
    first_x = [math.sin(2 * math.pi * 0.25), math.sin(slow), math.cos(2 * math.pi * 0.25), math.cos(slow)]
    torch.testing.assert_close(encoded[0, 0, :4], torch.tensor(first_x), atol=1e-6, rtol=0)
    torch.testing.assert_close(encoded[0, 1, 4:], torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-6, rtol=0)
