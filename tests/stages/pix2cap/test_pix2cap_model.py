"""A Pix2Cap as a whole: it learns, answers, becomes a checkpoint and an export, and needs no other rank's samples."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import DamagedArtifact, InputError
from stages.family import SegmentsPanoptic, load_family
from stages.pix2cap.answer import Pix2CapModel
from stages.pix2cap.captioner import Captioner
from stages.pix2cap.family import Pix2CapFamily
from stages.vision import decode_image
from tests.stages.pix2cap_models import (
    TEXTS,
    bare,
    batch_of,
    sample,
    taught,
    tiny_model,
    tiny_task,
    vocabulary,
    write_checkpoint,
)

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]
WORDS = vocabulary()
FAMILY = Pix2CapFamily(device="cpu")
SAMPLES = [sample(0, size=(32, 32)), sample(1, size=(48, 32))]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = taught(WORDS, SAMPLES, steps=120)
    return write_checkpoint(tmp_path_factory.mktemp("learned") / "model", model, WORDS)


@pytest.fixture(scope="module")
def exported(learned: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    FAMILY.export(learned.path, directory, card="# a card\n")
    return directory


def test_what_was_learned_is_found_and_described(learned: Checkpoint) -> None:
    model = FAMILY.load(learned.path)
    assert isinstance(model, SegmentsPanoptic)

    for one, found in zip(
        SAMPLES, model.segment([decode_image(s.image) for s in SAMPLES], max_new_tokens=20), strict=True
    ):
        assert {segment.category: segment.caption for segment in found} == dict(
            zip(("bar", "post", "ground"), TEXTS, strict=True)
        )
        assert {segment.category: segment.is_thing for segment in found}["ground"] is False
        assert {segment.category_id for segment in found} == {1, 7, 9}
        assert all(segment.mask_HW.shape == (one.height_px, one.width_px) for segment in found)
        assert np.stack([segment.mask_HW for segment in found]).sum(0).max() == 1


def test_an_untrained_model_follows_from_the_seed(learned: Checkpoint) -> None:
    first, again, other = (FAMILY.untrained(learned.path, seed=seed).network.state_dict() for seed in (3, 3, 4))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_export_answers_as_its_checkpoint_does(learned: Checkpoint, exported: Path) -> None:
    images = [decode_image(one.image) for one in SAMPLES]
    told = [
        [(one.category, one.caption, one.mask_HW.tobytes()) for one in found]
        for model in (FAMILY.load(learned.path), load_family("pix2cap").load_export(exported))
        for found in as_segmenter(model).segment(images, max_new_tokens=20)
    ]

    assert told[:2] == told[2:]
    assert json.loads((exported / "config.json").read_text(encoding="utf-8"))["model_type"] == "pix2cap"


def as_segmenter(model: object) -> SegmentsPanoptic:
    assert isinstance(model, SegmentsPanoptic)
    return model


def test_an_export_loads_without_what_trains(exported: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.family import load_family;"
        f"load_family('pix2cap').load_export(Path({str(exported)!r}));"
        "print(sorted({'deepspeed', 'mlflow', 'submitit'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)

    assert done.stdout.strip() == "[]"


def test_an_export_that_is_not_whole_is_refused(exported: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())

    with pytest.raises((InputError, DamagedArtifact), match="no whole export of a Pix2Cap"):
        FAMILY.load_export(tmp_path)
    with pytest.raises(InputError, match=r"config\.form: .adapter. cannot be had of a Pix2Cap"):
        FAMILY.export(tmp_path, tmp_path, card="", form="adapter")


def test_captions_are_written_one_word_after_the_other_from_all_words_before(learned: Checkpoint) -> None:
    model = FAMILY.load(learned.path).network
    with torch.no_grad():
        seen = model.see(batch_of(WORDS, SAMPLES).pixels_BCHW)
    last, query_N = len(seen.mask_logits) - 1, torch.arange(5)
    objects = seen.objects(torch.full_like(query_N, last), torch.zeros_like(query_N), query_N)
    rows = model.captioner.write(objects, begin=WORDS.start_id, end=WORDS.end_id, max_tokens=12)

    for object_2D, said in zip(objects, rows, strict=True):
        ids = [WORDS.start_id]
        while len(ids) < 12 and (word := next_word(model.captioner, object_2D, ids)) != WORDS.end_id:
            ids.append(word)
        assert said == ids[1:]
    assert len({tuple(said) for said in rows}) >= len(TEXTS)


def next_word(captioner: Captioner, object_2D: torch.Tensor, ids: list[int]) -> int:
    row = torch.tensor([[*ids, 0]])
    wanted = torch.arange(len(ids) + 1)[None] == len(ids)
    with torch.no_grad():
        return int(captioner(object_2D[None], row, wanted)[0].argmax())


def test_a_batch_without_segments_runs_every_part_and_teaches_no_caption() -> None:
    model, task = tiny_model(WORDS), tiny_task(WORDS)
    ran: set[str] = set()
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, name=name: ran.add(name))  # type: ignore[misc]

    used = []
    for samples in ([sample()], [bare(sample())]):
        ran.clear()
        losses = task.loss(model, batch_of(WORDS, samples))
        losses.total.backward()
        used.append(set(ran))

    assert used[0] == used[1]
    assert losses.terms["captions"].item() == 0


def test_what_captions_teach_the_segmenter_is_scaled() -> None:
    words = batch_of(WORDS, [sample()])
    gradients = []
    for scale in (1.0, 0.5):
        model = tiny_model(WORDS)
        model.captioner.gradient_scale = scale
        _, logits, _ = model(words)
        logits.square().sum().backward()
        weight = model.captioner.object_projection.weight.grad
        assert weight is not None
        gradients.append(weight)

    torch.testing.assert_close(gradients[0] * 0.5, gradients[1])


def test_a_model_answers_about_a_picture_with_nothing_sure_in_it() -> None:
    model = Pix2CapModel(tiny_model(WORDS), WORDS)
    object.__setattr__(model.network.blueprint, "least_score", 0.999)

    assert model.segment([decode_image(SAMPLES[0].image)], max_new_tokens=5) == [()]
