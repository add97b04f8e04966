"""A PixelLLM says words with places in one pass, the same when told, alone or together, from checkpoint or export."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import DamagedArtifact, InputError
from stages.family import DescribesDensely, DescribesRegions, LocatesWords, RefersByBox
from stages.pixelllm.answer import PixelLLMModel
from stages.pixelllm.collate import Example
from stages.pixelllm.family import PixelLLMFamily
from stages.pixelllm.tasks import caption_row, refer_row
from tests.stages.pixelllm_models import tiny_checkpoint

FAMILY = PixelLLMFamily(device="cpu")
TOLD = "a red bar stands left"


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


PICTURES = [picture(1), picture(2, (20, 50))]
BOXES = [[(0.0, 0.0, 20.0, 20.0)], [(3.0, 3.0, 9.0, 40.0), (0.0, 0.0, 20.0, 50.0)]]


@pytest.fixture(scope="module", params=["t5", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    kind: str = request.param
    return tiny_checkpoint(tmp_path_factory.mktemp(kind) / "model", kind=kind, lora=kind == "t5")


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> PixelLLMModel:
    return FAMILY.load(checkpoint.path)


def test_it_has_the_abilities_that_the_table_promises(model: PixelLLMModel) -> None:
    for ability in (LocatesWords, RefersByBox, DescribesRegions, DescribesDensely):
        assert isinstance(model, ability)


def test_what_is_written_has_the_places_that_the_same_words_have_when_they_are_told(model: PixelLLMModel) -> None:
    ((written,),) = model.write([Example(image=PICTURES[0], rows=(caption_row(detailed=True),))], max_new_tokens=6)
    text = model.pieces.decode(written.ids)
    told = model.collator.batch([Example(image=PICTURES[0], rows=(caption_row(text, detailed=True),))])
    told.ids_NL = torch.tensor([[model.pieces.start_id, *written.ids]])  # the very tokens, however the text is cut
    told.targets_NL = torch.full_like(told.ids_NL, -100)

    with torch.inference_mode():
        points = model.network(told)["points_NL22"][0, 1:]

    assert len(written.ids) > 0
    torch.testing.assert_close(written.points_LP2, points, atol=1e-4, rtol=1e-4)


def test_the_box_of_an_expression_is_read_one_token_before_its_end(model: PixelLLMModel) -> None:
    ((box,),) = model.refer_boxes(PICTURES[:1], [[TOLD]])

    row = refer_row(TOLD)
    ids = model.pieces.encode(row.text)
    batch = model.collator.batch([Example(image=PICTURES[0], rows=(row,))])
    assert batch.ids_NL[0].tolist() == [model.pieces.start_id, *ids]
    with torch.inference_mode():
        units = model.network(batch)["points_NL22"][0, len(ids)].clamp(0, 1)  # where the last word has been heard
    low, high = units.amin(0), units.amax(0)
    assert box == pytest.approx((float(low[0]) * 40, float(low[1]) * 30, float(high[0]) * 40, float(high[1]) * 30))


def test_answers_do_not_depend_on_what_is_asked_beside_them(model: PixelLLMModel) -> None:
    together = model.describe_regions(PICTURES, BOXES, max_new_tokens=5)
    expressions = [["a red bar", "the green bar, the grey bar"], []]
    boxes = model.refer_boxes(PICTURES, expressions)

    alone = [
        [model.describe_regions([image], [[box]], max_new_tokens=5)[0][0] for box in some]
        for image, some in zip(PICTURES, BOXES, strict=True)
    ]
    assert together == alone
    assert boxes[1] == []
    assert boxes[0][0] == pytest.approx(model.refer_boxes(PICTURES[:1], [["a red bar"]])[0][0], abs=1e-3)


def test_every_word_of_a_caption_has_a_place_inside_the_image(model: PixelLLMModel) -> None:
    (told,) = model.locate_told(PICTURES[1:], [TOLD])

    assert told.caption == TOLD
    assert [told.caption[slice(*word.span)] for word in told.words] == TOLD.split()
    for word in told.words:
        (x0, y0), (x1, y1) = word.points_xy_px
        assert 0 <= x0 <= x1 <= 20
        assert 0 <= y0 <= y1 <= 50


def test_proposals_lie_inside_the_image_the_surest_first_and_are_described(model: PixelLLMModel) -> None:
    found = model.describe_densely(PICTURES, max_new_tokens=3)

    for image, boxes in zip(PICTURES, found, strict=True):
        assert 0 < len(boxes) <= 5  # config.detector.most
        assert [one.score for one in boxes] == sorted((one.score for one in boxes), reverse=True)
        for x0, y0, x1, y1 in (one.box_xyxy_px for one in boxes):
            assert -1e-3 <= x0 < x1 <= image.width + 1e-3
            assert -1e-3 <= y0 < y1 <= image.height + 1e-3


def test_an_expression_without_words_is_refused(model: PixelLLMModel) -> None:
    with pytest.raises(InputError, match="' ' holds no words to look for"):
        model.refer_boxes(PICTURES[:1], [[" "]])


def test_an_export_says_what_its_checkpoint_says_without_deepspeed_or_mlflow(
    checkpoint: Checkpoint, model: PixelLLMModel, tmp_path: Path
) -> None:
    exported = tmp_path / "model"
    exported.mkdir()
    facts = FAMILY.export(checkpoint.path, exported, card="# A tiny one\n")
    Export(exported).commit("e" * 64, facts={**facts, "family": "pixelllm"})
    PICTURES[0].save(tmp_path / "photo.png")

    code = """
import json, sys
from pathlib import Path
from stages.predict import predict
said = predict(Path(sys.argv[1]), Path(sys.argv[2]), output=Path(sys.argv[3]))
print(json.dumps({"said": said, "heavy": sorted({"deepspeed", "mlflow"} & set(sys.modules))}))
"""
    command = [sys.executable, "-c", code, str(exported), str(tmp_path / "photo.png"), str(tmp_path / "drawn.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)

    told = json.loads(done.stdout.splitlines()[-1])
    (located,) = model.locate_words(PICTURES[:1], max_new_tokens=256)
    assert told["heavy"] == []
    assert told["said"]["words"][0]["caption"] == located.caption
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width > PICTURES[0].width  # the picture with its marks


def test_an_untrained_model_is_a_function_of_the_seed(checkpoint: Checkpoint) -> None:
    first, again, other = (FAMILY.untrained(checkpoint.path, seed=seed) for seed in (1, 1, 2))

    boxes = [one.network.prompts.get_buffer("positional_embedding") for one in (first, again, other)]
    assert torch.equal(boxes[0], boxes[1])
    assert not torch.equal(boxes[0], boxes[2])


def test_a_broken_export_is_refused_by_what_it_lacks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    FAMILY.export(checkpoint.path, tmp_path, card="# A tiny one\n")
    (tmp_path / "model-00001-of-00001.safetensors").unlink()

    with pytest.raises(InputError, match="is no whole export of a PixelLLM: there is no model-00001"):
        FAMILY.load_export(tmp_path)
    with pytest.raises(InputError, match=r"config\.form: .adapter. cannot be had of a PixelLLM"):
        FAMILY.export(checkpoint.path, tmp_path, card="", form="adapter")


def test_a_checkpoint_of_other_weights_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(checkpoint.path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["facts"]["model"]["extractor"]["layers"] = 2
    (copy / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(DamagedArtifact, match="does not fit the model that its manifest describes"):
        FAMILY.load(copy)
