"""The Python API: what is opened, what is asked, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.artifacts import Export, Shards
from orchestrator.errors import InputError
from stages.family import load_family
from stages.glamm import load
from stages.glamm.assistant import Assistant
from stages.glamm.config import SPECIAL_TOKENS, GroundingConfig, RegionConfig, VisionConfig, draw_blueprint
from stages.glamm.model import Glamm
from stages.glamm.tokenizer import Vocabulary
from stages.vision import MAX_PIXELS
from tests.stages.glamm_models import TINY, picture, talkative, tiny_checkpoint
from tests.stages.published_names import published_glamm, weights_of
from tests.stages.sentencepieces import pieces, tokenizer_model

IMAGE = picture(1)
BOX = (3, 3, 20, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def glamm(folder: Path) -> Assistant:
    checkpoint = tiny_checkpoint(folder / "checkpoint", lora=True)
    (folder / "export").mkdir()
    facts = load_family("glamm").export(checkpoint.path, folder / "export", card="# A tiny one\n")
    Export(folder / "export").commit("e" * 64, facts={**facts, "family": "glamm"})
    return load(folder / "export")


def test_an_export_and_its_checkpoint_say_the_same(glamm: Assistant, folder: Path) -> None:
    other = load(str(folder / "checkpoint"))

    for number in range(2):
        image = picture(number)
        said, again = (one.caption(image, max_new_tokens=40) for one in (glamm, other))
        assert said.caption == again.caption
        assert [(part.phrase, part.span) for part in said.phrases] == [(p.phrase, p.span) for p in again.phrases]
    ours, theirs = (one.describe_region(IMAGE, BOX, max_new_tokens=8) for one in (glamm, other))
    assert ours == theirs


def test_a_picture_is_an_image_or_a_path_of_any_mode(glamm: Assistant, tmp_path: Path) -> None:
    grey = IMAGE.convert("L")
    grey.save(tmp_path / "grey.png")

    pictures = (grey, tmp_path / "grey.png", str(tmp_path / "grey.png"))
    texts = {glamm.describe_region(one, BOX, max_new_tokens=8) for one in pictures}

    assert len(texts) == 1


def test_each_time_the_model_points_is_a_mask_and_none_is_none(glamm: Assistant) -> None:
    counts = set()
    for number in range(6):
        image = picture(number, (30, 20))
        written = glamm.refer(image, "the red bar", max_new_tokens=24)
        counts.add(len(written.masks_HW))
        assert all(mask_HW.shape == (20, 30) and mask_HW.dtype == np.bool_ for mask_HW in written.masks_HW)
        assert "[SEG]" not in written.text
        assert glamm.refer(image, "the red bar", max_new_tokens=1).masks_HW in ((), written.masks_HW[:1])

    assert max(counts) > 1  # one too many is shown, not dropped


def test_a_conversation_goes_on_from_what_was_said(glamm: Assistant) -> None:
    first, last = {"role": "user", "content": "What is it?"}, {"role": "user", "content": "And <bbox>?"}

    said = {
        glamm.chat(IMAGE, [first, {"role": "assistant", "content": answer}, last], boxes=[BOX]).caption
        for answer in ("A red bar.", "A grey disc.")
    }

    assert len(said) == 2


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must end with one of the user"),
        ([{"role": "assistant", "content": "Hi."}], r"messages\[0\]: role 'assistant' given, 'user'"),
        ([{"role": "user", "content": "Hi."}] * 2, r"messages\[1\]: role 'user' given, 'assistant'"),
        ([{"role": "user", "content": " "}], r"messages\[0\]: its content is empty"),
        ([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}], "must end with one of"),
        ("What is <bbox>?", "the prompt has 1 <bbox>, but 0 boxes"),
        ("why " * 400, "the prompt is too long"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(
    glamm: Assistant, messages: str | list[dict[str, str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        glamm.chat(IMAGE, messages)


def test_more_boxes_than_tokens_and_boxes_outside_are_refused(glamm: Assistant) -> None:
    with pytest.raises(InputError, match="the prompt has 1 <bbox>, but 2 boxes are given"):
        glamm.chat(IMAGE, "What is <bbox>?", boxes=[BOX, BOX])
    for box in ((0, 0, 41, 10), (5, 5, 5, 9), (1, 2, 3), (float("nan"), 0, 3, 3)):
        with pytest.raises(InputError, match="is no box x0,y0,x1,y1 inside the image of 40 x 40 pixels"):
            glamm.describe_region(IMAGE, box)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_a_picture_of_one_pixel_is_answered_like_any_other(glamm: Assistant, size: tuple[int, int]) -> None:
    image = picture(3, size)

    said = glamm.refer(image, "the red bar", max_new_tokens=40)

    assert all(mask_HW.shape == (size[1], size[0]) for mask_HW in said.masks_HW)
    assert isinstance(glamm.describe_region(image, (0, 0, *size), max_new_tokens=4), str)


def test_a_picture_of_20000_by_20000_pixels_is_refused_before_its_pixels_are_there(glamm: Assistant) -> None:
    class Huge(Image.Image):
        """Says its size; whoever decodes it fails."""

        def __init__(self) -> None:
            super().__init__()
            self._mode, self._size = "L", (20_000, 20_000)

        def convert(self, *_: object, **__: object) -> Image.Image:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(InputError, match=f"claims 20000 x 20000 px, 1 to {MAX_PIXELS} are allowed"):
        glamm.caption(Huge())


def test_half_precision_says_nearly_the_same(glamm: Assistant, folder: Path) -> None:
    half = load(folder / "export", dtype="bfloat16", device="cpu")

    words = torch.arange(50)[None]
    with torch.inference_mode():
        states = [one.model.network.language_model(words).logits.float() for one in (glamm, half)]
    assert {tensor.dtype for tensor in half.model.network.parameters()} == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(*states, dim=-1).min() > 0.99
    said = half.refer(IMAGE, "the red bar", max_new_tokens=30)
    assert all(mask_HW.shape == (40, 40) for mask_HW in said.masks_HW)


def test_what_cannot_be_opened_is_refused_with_what_is_needed(folder: Path, glamm: Assistant, tmp_path: Path) -> None:
    Shards(tmp_path).commit("a" * 64)
    for path, message in (
        (tmp_path / "nowhere", "is not a folder"),
        (tmp_path, "is a shards; needed is an export"),
        (folder, "neither an export nor a checkpoint.*vision="),
    ):
        with pytest.raises(InputError, match=message):
            load(path)
    with pytest.raises(InputError, match="dtype: 'int8' is unknown; allowed: float32, float16, bfloat16"):
        load(folder / "export", dtype="int8")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Glamm]:
    """Writes a tiny GLaMM in the files, names and layout of the published ones, and its CLIP beside it."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "glamm").mkdir()
    (folder / "glamm/tokenizer.model").write_bytes(tokenizer_model())
    base = len(pieces())
    added = {token: base + place for place, token in enumerate(SPECIAL_TOKENS)}
    (folder / "glamm/added_tokens.json").write_text(json.dumps(added))
    words = Vocabulary.read(folder / "glamm")
    config = replace(
        TINY,
        vision=VisionConfig(image_size=16, patch_size=4, hidden_size=16, layers=11, heads=2, mlp_size=24),
        grounding=GroundingConfig(
            image_size=32, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24, window_size=4,
            global_layers=(1,), channels=16, decoder_mlp_size=24, decoder_heads=8,
        ),
        region=RegionConfig(layers=(1, 4, 7, 10), channels=64, roi_size=2, position_size=8),
        centre_crop=True, roi_side_px=224,
    )  # fmt: skip
    blueprint = draw_blueprint(config, words.size)
    model = talkative(Glamm(blueprint), words, 5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.startswith("region_encoder.exchanges") and name.endswith(".0.bias"):
                tensor.zero_()
    torch.save(published_glamm(model), folder / "glamm/pytorch_model.bin")
    settings = {**blueprint.language, "model_type": "llava", "architectures": ["GLaMMForCausalLM"]}
    (folder / "glamm/config.json").write_text(json.dumps(settings))
    (folder / "clip").mkdir()
    clip = {f"vision_model.{name}": tensor for name, tensor in weights_of(model.vision_tower).items()}
    torch.save(clip, folder / "clip/pytorch_model.bin")
    (folder / "clip/config.json").write_text(json.dumps({"vision_config": blueprint.vision}))
    return folder, model


def test_a_published_glamm_is_opened_with_its_quirks_and_answers_as_it_did(published: tuple[Path, Glamm]) -> None:
    folder, model = published

    opened = load(folder / "glamm", vision=folder / "clip")

    blueprint = opened.model.network.blueprint
    assert (blueprint.roi_side_px, blueprint.centre_crop) == (224, True)
    assert blueprint.region == model.blueprint.region
    mine, theirs = weights_of(opened.model.network), weights_of(model)
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items() if ".exchanges." not in name)
    assert opened.caption(IMAGE, max_new_tokens=20).caption


def test_half_of_a_published_glamm_and_another_tokenizer_are_refused(
    published: tuple[Path, Glamm], tmp_path: Path
) -> None:
    folder, _ = published
    for part in (folder / "glamm").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    stored = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    gone = "model.layers.1.mlp.up_proj.weight"
    torch.save({name: tensor for name, tensor in stored.items() if name != gone}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=f"1 weights of parts .* lacking: language_model.{gone}"):
        load(tmp_path, vision=folder / "clip")

    torch.save({n: t for n, t in stored.items() if "text_hidden_fcs.0.0" not in n}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"lacking: prompt_projection\.hidden\.bias, prompt_projection\.hidden"):
        load(tmp_path, vision=folder / "clip")

    longer = {n: torch.cat([t, t[:1]]) if n.startswith(("model.embed", "lm_head")) else t for n, t in stored.items()}
    torch.save(longer, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"tokens, this tokenizer has .* not the one that belongs to these weights"):
        load(tmp_path, vision=folder / "clip")
