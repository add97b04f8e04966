"""A CLOC answers alike from its checkpoint and from its export, which needs nothing of training, and can be drawn."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import DamagedArtifact, InputError
from stages.cloc.answer import in_image
from stages.cloc.config import ClocConfig, draw_blueprint
from stages.cloc.family import ClocFamily
from stages.cloc.initial import draw_weights, fill_from_clip
from stages.cloc.model import Cloc
from stages.family import ADAPTER, Embeds, RefersByBox
from stages.glamm.config import VisionConfig
from stages.glamm.config import draw_blueprint as draw_glamm
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.predict import Asked, predict
from stages.prompter import unit
from stages.vision import read_image
from tests.stages.cloc_models import tiny_checkpoint, word_pieces
from tests.stages.glamm_models import TINY as GLAMM
from tests.stages.glamm_models import half, picture, vocabulary

pytestmark = pytest.mark.needs("torch")

FAMILY = ClocFamily(device="cpu")
PICTURES = [picture(1), picture(2, (30, 50)), picture(3, (64, 20))]
BOXES = [[(0.0, 0.0, 20.0, 20.0)], [(3.0, 3.0, 9.0, 40.0), (0.0, 0.0, 30.0, 50.0)], []]
TEXTS = ["a red bar", "the green disc", "nothing of the kind"]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "model"
    directory.mkdir()
    facts = FAMILY.export(checkpoint.path, directory, card="# A tiny one\n")
    Export(directory).commit("e" * 64, facts={**facts, "family": "cloc"})
    return directory


def test_an_export_says_what_its_checkpoint_says(checkpoint: Checkpoint, exported: Path) -> None:
    before, after = FAMILY.load(checkpoint.path), FAMILY.load_export(exported)
    nothing = [[None] * len(boxes) for boxes in BOXES]

    assert np.array_equal(before.embed_images(PICTURES, [None] * 3), after.embed_images(PICTURES, [None] * 3))
    assert np.array_equal(before.embed_texts(TEXTS), after.embed_texts(TEXTS))
    regions, again = (model.embed_regions(PICTURES, BOXES, nothing) for model in (before, after))
    assert [one.shape for one in regions] == [(1, 8), (2, 8), (0, 8)]
    assert all(np.array_equal(one, other) for one, other in zip(regions, again, strict=True))
    assert before.refer_boxes(PICTURES, [TEXTS, [], TEXTS[:1]]) == after.refer_boxes(PICTURES, [TEXTS, [], TEXTS[:1]])


def test_a_model_has_the_abilities_that_its_family_names(checkpoint: Checkpoint) -> None:
    model = FAMILY.load(checkpoint.path)

    assert isinstance(model, Embeds)
    assert isinstance(model, RefersByBox)


def test_embeddings_have_unit_length_and_depend_on_the_box(checkpoint: Checkpoint) -> None:
    model = FAMILY.load(checkpoint.path)

    (first, second) = model.embed_regions([PICTURES[1]], [BOXES[1]], [[None, None]])[0]

    assert np.linalg.norm([first, second], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert not np.allclose(first, second, atol=1e-4)


def test_a_mask_is_asked_about_by_the_box_around_it(checkpoint: Checkpoint) -> None:
    model, image = FAMILY.load(checkpoint.path), PICTURES[0]

    masked = model.embed_images([image, image], [half(image, left=True), None])

    (boxed,) = model.embed_regions([image], [[(0.0, 0.0, 20.0, 40.0)]], [[None]])
    assert np.allclose(masked[0], boxed[0], atol=1e-6)
    assert np.allclose(masked[1], model.embed_images([image], [None])[0], atol=1e-6)


def test_a_box_is_brought_into_its_image() -> None:
    image = Image.new("RGB", (40, 20))

    assert in_image((0.25, 0.1, 0.5, 0.4), image) == (10, 4, 20, 16)
    assert in_image((1.4, 0.9, 1.2, 0.8), image) == (39, 19, 40, 20)  # outside: the nearest pixel
    assert in_image((0.5, 0.4, 0.25, 0.1), image) == (10, 4, 20, 16)  # corners the wrong way round


def test_untrained_weights_follow_from_the_seed(checkpoint: Checkpoint) -> None:
    one, same, other = (FAMILY.untrained(checkpoint.path, seed=seed).embed_texts(TEXTS) for seed in (7, 7, 8))

    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


def test_an_adapter_alone_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.form.*allowed: merged"):
        FAMILY.export(checkpoint.path, tmp_path, card="", form=ADAPTER)


def test_an_export_that_lost_a_weight_is_refused_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    FAMILY.export(checkpoint.path, directory, card="")
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("prompter.norm.bias", "prompter.norm.bia"), "utf-8")

    with pytest.raises(DamagedArtifact, match=r"prompter\.norm\.bias"):
        FAMILY.load_export(directory)


PROGRAM = """
import sys
from pathlib import Path
from PIL import Image
from stages.cloc.family import ClocFamily
model = ClocFamily(device="cpu").load_export(Path(sys.argv[1]))
print(model.embed_images([Image.new("RGB", (20, 30), "red")], [None]).shape)
strangers = {"deepspeed", "mlflow", "webdataset"} & {name.partition(".")[0] for name in sys.modules}
print(sorted(strangers))
"""


def test_an_export_loads_without_what_only_training_needs(exported: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(exported)], capture_output=True, text=True, env=environment, check=False
    )

    assert done.stdout.splitlines() == ["(1, 8)", "[]"], done.stderr


def test_predictions_are_drawn(exported: Path, tmp_path: Path) -> None:
    image, box = tmp_path / "image.png", (2.0, 2.0, 30.0, 30.0)
    PICTURES[0].save(image)

    texts = predict(exported, image, Asked(texts=tuple(TEXTS), boxes=(box,)), tmp_path / "texts.png")
    boxes = predict(exported, image, Asked(refer=("a red bar",)), tmp_path / "boxes.png")

    assert {one["text"] for one in texts["ranked"][0]["texts"]} == set(TEXTS)
    x0, y0, x1, y1 = boxes["referred"][0]["box_xyxy_px"]
    assert 0 <= x0 < x1 <= 40
    assert 0 <= y0 < y1 <= 40
    assert all(read_image(tmp_path / name).width > 40 for name in ("texts.png", "boxes.png"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a tiny CLIP as transformers does."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    text = {**sizes, "hidden_size": 12, "vocab_size": 400, "max_position_embeddings": 16}
    vision = {**sizes, "hidden_size": 16, "image_size": 16, "patch_size": 4}
    torch.manual_seed(3)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


def test_a_clip_begins_as_what_it_was(clip: Path) -> None:
    model = Cloc(draw_blueprint(ClocConfig(path=clip, pooling="class"), word_pieces().size)).eval()

    report = fill_from_clip(model, clip)
    draw_weights(model, 1, keep=report.loaded)

    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    theirs = CLIPModel.from_pretrained(clip).eval().get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(model.embed_images(model.encode(pixels)), unit(theirs), atol=1e-5)
    assert report.unexpected == ()
    assert {name.split(".")[0] for name in report.missing} == {"prompter", "box_head", "region_logit_scale"}


def test_what_is_exported_reads_as_a_clips_image_encoder(exported: Path, checkpoint: Checkpoint) -> None:
    """GLaMM, and everybody else who looks for `vision_config` and `vision_model.`, finds both."""
    ours = FAMILY.load(checkpoint.path).network
    weights = {name: t for path in exported.glob("*.safetensors") for name, t in load_file(path).items()}
    encoder = CLIPVisionModel(CLIPVisionConfig.from_pretrained(exported)).eval()

    encoder.load_state_dict(
        {name.removeprefix("vision_model."): t for name, t in weights.items() if name.startswith("vision_model.")}
    )

    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(encoder(pixels).last_hidden_state, ours.encode(pixels), atol=1e-6)


def test_a_glamm_takes_the_export_as_its_image_encoder(exported: Path, checkpoint: Checkpoint) -> None:
    words = vocabulary()
    config = replace(GLAMM, vision=VisionConfig(path=exported))
    glamm = Glamm(draw_glamm(config, words.size))

    filled = fill_from_published(glamm, config)

    ours = FAMILY.load(checkpoint.path).network.vision_model
    theirs = dict(glamm.vision_tower.named_parameters())
    assert {name.split(".")[0] for name in filled.report.loaded} == {"vision_tower"}
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.named_parameters())
