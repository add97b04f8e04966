"""Checkpoints and exports answer alike, alone in a process, and masks decide what is seen."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import DamagedArtifact, InputError
from stages.family import Embeds, EmbedsWhole
from stages.pixclip.family import PixClipFamily
from stages.predict import Asked, answer_lines, predict
from stages.vision import decode_image
from tests.stages.pixclip_models import tiny_model, write_checkpoint
from tests.stages.scenes import SIDE_PX, scene

IMAGE = decode_image(scene(1).image)
BOXES = [(4.0, 5.0, 14.0, 35.0), (24.0, 5.0, 34.0, 35.0)]
FAMILY = PixClipFamily(device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", tiny_model(7))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    folder.mkdir()
    facts = FAMILY.export(checkpoint.path, folder, card="# A card")
    Export(folder).commit("e" * 64, facts={**facts, "family": "pixclip"})
    return folder


def left() -> np.ndarray:
    mask_HW = np.zeros((SIDE_PX, SIDE_PX), dtype=np.bool_)
    mask_HW[:, : SIDE_PX // 2] = True
    return mask_HW


def test_a_checkpoint_and_its_export_embed_alike(checkpoint: Checkpoint, export: Path) -> None:
    one, other = FAMILY.load(checkpoint.path), FAMILY.load_export(export)

    assert isinstance(other, Embeds)
    assert isinstance(other, EmbedsWhole)
    for ask in (
        lambda model: model.embed_images([IMAGE, IMAGE], [None, left()]),
        lambda model: model.embed_texts(["the red bar", "a longer text about a blue bar"]),
        lambda model: model.embed_regions([IMAGE], [BOXES], [[None, left()]])[0],
    ):
        np.testing.assert_allclose(ask(one), ask(other), atol=1e-6)
        np.testing.assert_allclose((ask(one) ** 2).sum(axis=1), 1.0, rtol=1e-5)
    untrained = FAMILY.untrained(checkpoint.path, seed=1)
    assert not np.allclose(untrained.embed_texts(["a"]), one.embed_texts(["a"]), atol=1e-3)


def test_an_export_embeds_in_a_process_without_the_engine_and_the_tracker(export: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.pixclip.family import PixClipFamily;"
        "model = PixClipFamily(device='cpu').load_export(Path(sys.argv[1]));"
        "print(model.embed_texts(['the red bar']).shape, [m for m in ('deepspeed', 'mlflow') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program, str(export)], text=True, capture_output=True, check=True)

    assert done.stdout.strip() == "(1, 12) []"
    assert {path.name for path in export.iterdir()} >= {
        "README.md", "config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors.index.json",
    }  # fmt: skip


def test_a_mask_decides_what_is_seen_and_a_box_stands_for_a_mask(checkpoint: Checkpoint) -> None:
    model = FAMILY.load(checkpoint.path)
    box_HW = np.zeros((SIDE_PX, SIDE_PX), dtype=np.bool_)
    box_HW[5:35, 4:14] = True

    whole, half, boxed = model.embed_images([IMAGE] * 3, [None, left(), box_HW])
    (regions_RD,) = model.embed_regions([IMAGE], [BOXES], [[None, box_HW]])

    assert not np.allclose(whole, half, atol=1e-3)
    np.testing.assert_allclose(regions_RD, [boxed, boxed], atol=1e-6)


def test_regions_come_back_to_their_images(checkpoint: Checkpoint) -> None:
    model = FAMILY.load(checkpoint.path)
    other = Image.new("RGB", (30, 20), "red")

    found = model.embed_regions([IMAGE, other, IMAGE], [BOXES, [], BOXES[:1]], [[None, None], [], [None]])

    assert [len(one) for one in found] == [2, 0, 1]
    np.testing.assert_allclose(found[0][0], found[2][0], atol=1e-6)
    assert model.embed_regions([], [], []) == []


def test_whole_images_as_the_release_has_them_are_squashed_under_a_plain_mask(checkpoint: Checkpoint) -> None:
    model = FAMILY.load(checkpoint.path)
    wide, side_px = IMAGE.crop((0, 5, 40, 30)), model.network.blueprint.side_px
    squares = model._collator.squares([wide.resize((side_px, side_px), Image.Resampling.BICUBIC)], [None])
    squares[:, 3] = 1.0

    seen = model.embed_whole_images([wide])

    expected = model.network.look((squares, torch.zeros(1, 4)))[0]
    np.testing.assert_allclose(seen, torch.nn.functional.normalize(expected, dim=-1).numpy(), atol=1e-6)
    assert not np.allclose(seen, model.embed_images([wide], [None]), atol=1e-3)


def test_texts_are_ranked_for_boxes_and_drawn(export: Path, tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(scene(1).image)
    asked = Asked(texts=("the green bar", "the blue bar"), boxes=tuple(BOXES))

    answer = predict(export, tmp_path / "scene.png", asked, output=tmp_path / "drawn.png")

    assert [place["box_xyxy_px"] for place in answer["ranked"]] == [list(box) for box in BOXES]
    for place in answer["ranked"]:
        cosines = [one["cosine"] for one in place["texts"]]
        assert cosines == sorted(cosines, reverse=True)
    assert len(list(answer_lines(answer))) == 2 * 3 + 1
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="say with --text what the image"):
        predict(export, tmp_path / "scene.png")


def test_what_is_no_whole_model_is_refused(checkpoint: Checkpoint, export: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.form: .adapter. cannot be had of a PixClip"):
        FAMILY.export(checkpoint.path, tmp_path, card="", form="adapter")
    with pytest.raises(InputError, match=r"is no whole export of a PixClip: there is no config\.json"):
        FAMILY.load_export(tmp_path)
    other = Checkpoint(tmp_path / "other")
    other.path.mkdir()
    other.commit("f" * 64, facts={"family": "glamm", "model": {}})
    with pytest.raises(InputError, match="is a checkpoint of the family 'glamm', needed is 'pixclip'"):
        FAMILY.load(other.path)
    (tmp_path / "damaged").mkdir()
    for path in export.iterdir():
        (tmp_path / "damaged" / path.name).write_bytes(path.read_bytes())
    weights = next((tmp_path / "damaged").glob("model-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(DamagedArtifact, match="cannot be read"):
        FAMILY.load_export(tmp_path / "damaged")
