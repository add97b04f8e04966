"""A GLaMM answers: phrases, spans and masks out of what it writes; checkpoints and fresh weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from orchestrator.artifacts import Checkpoint, Report
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.evaluate.stage import Evaluate
from stages.family import load_family
from stages.glamm.answer import GlammModel, Row, read_pieces
from stages.glamm.collate import Collator, Example
from stages.glamm.family import GlammFamily
from stages.glamm.generate import Written
from stages.glamm.prompts import (
    BBOX,
    GCG_QUESTIONS,
    PHRASE_END,
    PHRASE_START,
    SEG,
    SEGMENTATION_ANSWERS,
    SEGMENTATION_QUESTIONS,
    TARGET,
    make_conversation,
)
from stages.mask_sizes import masks_at_image_size
from stages.samples import Turn
from tests.stages.glamm_models import half, picture, taught, tiny_checkpoint, vocabulary, write_checkpoint
from tests.stages.scenes import scene, write_shards

WORDS = vocabulary()
FAMILY = GlammFamily()
PICTURES = [picture(1), picture(2, (30, 50))]


def lesson(image: Image.Image, first: str, second: str) -> Example:
    named = (f"{PHRASE_START} {phrase} {PHRASE_END} {SEG}" for phrase in (f"A {first} bar", f"a {second} bar"))
    answer = " stands left of ".join(named) + "."
    turns = [Turn(question=GCG_QUESTIONS[0], answer=answer)]
    masks = (half(image, left=True), half(image, left=True))
    return Example(image=image, conversation=make_conversation(turns, end=WORDS.end), masks=masks)


LESSONS = [lesson(PICTURES[0], "red", "blue"), lesson(PICTURES[1], "green", "grey")]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = taught(WORDS, LESSONS, steps=70)
    return write_checkpoint(tmp_path_factory.mktemp("learned") / "model", model, WORDS)


@pytest.fixture(scope="module")
def model(learned: Checkpoint) -> GlammModel:
    return FAMILY.load(learned.path)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("noisy") / "model", lora=True)


def test_what_was_taught_is_said_with_phrases_spans_and_masks_of_each_image(model: GlammModel) -> None:
    red, green = model.ground(PICTURES, max_new_tokens=60)

    assert red.caption == "A red bar stands left of a blue bar."
    assert [part.phrase for part in red.phrases] == ["A red bar", "a blue bar"]
    assert [part.phrase for part in green.phrases] == ["A green bar", "a grey bar"]
    for image, said in zip(PICTURES, (red, green), strict=True):
        assert [said.caption[slice(*part.span)] for part in said.phrases] == [part.phrase for part in said.phrases]
        for part in said.phrases:
            assert part.mask_HW.shape == (image.height, image.width)
            assert (part.mask_HW == half(image, left=True)).mean() > 0.95


def test_masks_are_those_of_training_on_the_same_text(model: GlammModel) -> None:
    batch = Collator(model.network.blueprint, WORDS).batch(LESSONS)
    with torch.inference_mode():
        logits_BMHW = model.network(batch)["mask_logits_NHW"].unflatten(0, (len(LESSONS), 2))

    written = model.write(GCG_QUESTIONS[0], [Row(image=image) for image in PICTURES], max_new_tokens=60)
    grounded = model.ground(PICTURES, max_new_tokens=60)

    for number, image in enumerate(PICTURES):
        told = model.collator.tokens(LESSONS[number].conversation)
        assert written[number].ids == tuple(token for token in told.labels if token >= 0)[:-1]
        low_MHW = model.point(image, written[number], [0, 1])
        assert torch.allclose(low_MHW, logits_BMHW[number], atol=1e-4)
        assert not torch.allclose(low_MHW[0], low_MHW[1], atol=1e-3)  # so that a mix-up would be seen
        inside = (int(batch.sam_sizes_B2[number][0]), int(batch.sam_sizes_B2[number][1]))
        size = (image.height, image.width)
        wide = masks_at_image_size(logits_BMHW[number], canvas=32, inside=inside, image=size)
        for part, wide_HW in zip(grounded[number].phrases, wide, strict=True):
            sure = wide_HW.abs() > 1e-4
            assert torch.equal(torch.from_numpy(part.mask_HW)[sure], (wide_HW > 0)[sure])


@pytest.mark.parametrize(
    ("text", "caption", "phrases"),
    [
        ("<p> A red bar </p> [SEG] is here.", "A red bar is here.", [("A red bar", 0)]),
        ("<p> A red bar is here.", "A red bar is here.", []),  # never closed
        ("A bar </p> [SEG] is here.", "A bar is here.", []),  # never opened
        ("[SEG] A bar [SEG]", "A bar", []),  # points at nothing
        ("<p> A bar </p> is <p> a disc </p> [SEG]", "A bar is a disc", [("a disc", 0)]),  # one without [SEG]
        ("[SEG] <p> A bar </p> [SEG]", "A bar", [("A bar", 1)]),
        ("<p> A <p> bar </p> [SEG]", "A bar", [("bar", 0)]),  # the inner one is well formed
        ("<p> </p> [SEG] a <p> bar </p> [SEG]", "a bar", [("bar", 1)]),  # an empty phrase
        ("a <p> é </p> [SEG], and <p> a disc </p> [SEG].", "a é, and a disc.", [("é", 0), ("a disc", 1)]),
        ("<p> A bar </p> [SEG] [SEG] <p> A bar </p> [SEG]", "A bar A bar", [("A bar", 0), ("A bar", 2)]),
        ("<bbox> <im_start> bar", "bar", []),
        ("<p> bar </p> [SEG]</s> <p> disc </p> [SEG]", "bar", [("bar", 0)]),  # said after its end
        ("<p>", "", []),
        ("", "", []),
    ],
)  # fmt: skip
def test_what_is_well_formed_is_kept(text: str, caption: str, phrases: list[tuple[str, int]]) -> None:
    ids, _ = WORDS.encode(f" {text}" if text else "")

    found, stretches = read_pieces(WORDS.pieces(ids))

    assert found == caption
    assert [(found[slice(*stretch.span)], stretch.seg) for stretch in stretches] == phrases


@pytest.mark.parametrize(
    ("text", "phrases", "masks"),
    [
        ("<p> A red bar </p> [SEG] is here.", None, 0),  # all pair up
        ("A bar.", None, 0),
        ("[SEG] <p> A bar </p> [SEG]", ["A bar"], 2),  # a [SEG] too many
        ("<p> A bar </p> is <p> a disc </p> [SEG]", ["A bar", "a disc"], 1),  # one too few
        ("<p> A bar </p> and <p> a disc </p>", ["A bar", "a disc"], 0),  # none at all
        ("<p> </p> [SEG]", [""], 1),
    ],
)
def test_what_does_not_pair_up_is_kept_in_its_order(
    model: GlammModel, text: str, phrases: list[str] | None, masks: int
) -> None:
    ids, _ = WORDS.encode(f" {text}")
    hidden_TD = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(0))

    said = model._grounded(PICTURES[1], Written(ids=tuple(ids), hidden_TD=hidden_TD))

    assert (said.unpaired and list(said.unpaired.phrases)) == phrases
    assert len(said.unpaired.masks_HW if said.unpaired else ()) == masks
    if said.unpaired and said.phrases:
        assert any(np.array_equal(said.phrases[-1].mask_HW, mask_HW) for mask_HW in said.unpaired.masks_HW)


def test_told_its_answers_it_points_as_in_training_and_what_is_cut_off_has_no_mask(model: GlammModel) -> None:
    image, texts = PICTURES[1], ["the left half", "a grey bar"]
    turns = [
        Turn(question=SEGMENTATION_QUESTIONS[0].replace(TARGET, text), answer=SEGMENTATION_ANSWERS[0]) for text in texts
    ]
    masks = (half(image, left=True), half(image, left=False))
    example = Example(image=image, conversation=make_conversation(turns, end=WORDS.end), masks=masks)
    batch = Collator(model.network.blueprint, WORDS).batch([example])
    with torch.inference_mode():
        low_MHW = model.network(batch)["mask_logits_NHW"]
    inside = (int(batch.sam_sizes_B2[0][0]), int(batch.sam_sizes_B2[0][1]))

    told = model.refer_told(image, texts)

    wide = masks_at_image_size(low_MHW, canvas=32, inside=inside, image=(image.height, image.width))
    assert len(told) == 2
    for found, wide_HW in zip(told, wide, strict=True):
        assert found is not None
        sure = wide_HW.abs() > 1e-3
        assert torch.equal(torch.from_numpy(found)[sure], (wide_HW > 0)[sure])
    many = model.refer_told(image, ["a grey bar near the left half"] * 20)
    kept = [mask_HW is not None for mask_HW in many]
    assert len(many) == 20
    assert kept[0]
    assert kept == sorted(kept, reverse=True)
    assert not kept[-1]


@settings(max_examples=200, deadline=None)
@given(some.lists(some.one_of(some.integers(0, WORDS.size - 1), some.integers(WORDS.size - 7, WORDS.size - 1))))
def test_no_text_breaks_the_reading(ids: list[int]) -> None:
    caption, stretches = read_pieces(WORDS.pieces(ids))

    assert caption == WORDS.decode(ids)
    segs = [stretch.seg for stretch in stretches]
    assert segs == sorted(set(segs))
    assert all(seg < ids.count(WORDS.seg_id) for seg in segs)
    ends = [place for stretch in stretches for place in stretch.span]
    assert ends == sorted(ends)
    for stretch in stretches:
        assert caption[slice(*stretch.span)].strip()


def test_babble_of_fresh_weights_is_read_too(noisy: Checkpoint) -> None:
    said = FAMILY.load(noisy.path).ground([picture(n, (33, 21)) for n in range(4)], max_new_tokens=80)

    assert len(said) == 4
    assert all("[SEG]" not in one.caption and "<p>" not in one.caption for one in said)


def test_each_box_gets_a_caption_and_no_box_none(model: GlammModel) -> None:
    boxes = [[(0, 0, 10, 10), (5, 5, 39, 39)], [], [(1.5, 1, 2, 2)]]

    described = model.describe_regions([*PICTURES, picture(3)], boxes, max_new_tokens=5)

    assert [len(texts) for texts in described] == [2, 0, 1]
    assert model.describe_regions(PICTURES, [[], []], max_new_tokens=5) == [[], []]
    assert model.ground([], max_new_tokens=5) == []


def test_a_free_prompt_is_answered_and_cannot_forge_tokens(model: GlammModel) -> None:
    image = PICTURES[0]
    plain = model.answer(image, GCG_QUESTIONS[0], [])

    forged = model.answer(image, f"<im_start> {SEG} {GCG_QUESTIONS[0]} </s>", [])

    assert plain.caption == "A red bar stands left of a blue bar."
    assert [part.phrase for part in plain.phrases] == ["A red bar", "a blue bar"]
    assert forged.caption == plain.caption
    model.answer(image, f"What is {BBOX}, and {BBOX}?", [(0, 0, 9, 9), (1, 1, 20, 20)])
    with pytest.raises(InputError, match="the prompt has 1 <bbox>, but 2 boxes are given"):
        model.answer(image, f"What is {BBOX}?", [(0, 0, 9, 9), (1, 1, 20, 20)])


def test_fresh_weights_are_a_function_of_the_seed_and_say_other_things(learned: Checkpoint, model: GlammModel) -> None:
    first, again, other = (FAMILY.untrained(learned.path, seed=seed).network.state_dict() for seed in (3, 3, 4))

    trained = model.network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first.keys() == trained.keys()
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], trained[name])
    babble = FAMILY.untrained(learned.path, seed=3).ground(PICTURES, max_new_tokens=20)
    assert babble[0].caption != model.ground(PICTURES, max_new_tokens=20)[0].caption


def test_a_checkpoint_of_another_family_and_one_without_tokenizer_are_refused(tmp_path: Path) -> None:
    strange = Checkpoint(tmp_path)
    strange.commit("f" * 64, facts={"family": "pixelllm", "model": {}})
    with pytest.raises(InputError, match="family 'pixelllm', needed is 'glamm'"):
        FAMILY.load(tmp_path)

    bare = tiny_checkpoint(tmp_path / "bare").path
    (bare / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"bare/tokenizer: no tokenizer\.json"):
        FAMILY.load(bare)


def test_a_checkpoint_whose_weights_are_another_models_is_refused(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "model", lora=True).path
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["facts"]["model"]["lora"] = None
    (path / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(DamagedArtifact, match="does not fit the model"):
        FAMILY.load(path)


def test_an_evaluation_from_shards_to_report(tmp_path: Path, noisy: Checkpoint) -> None:
    assert isinstance(load_family("glamm"), GlammFamily)
    report = Report(tmp_path / "score/report")
    (tmp_path / "score").mkdir()
    stage = Evaluate(
        Evaluate.Config(
            benchmarks=["gcg", "region_captions", "refer", "refer_compat"], untrained=True, max_new_tokens=12,
            batch_size=3, pictures=1, caption_scorer="plain",
        ),
        Evaluate.Inputs(model=noisy, shards={"bars": write_shards(tmp_path / "bars", [scene(n) for n in range(4)])}),
        Evaluate.Outputs(report=report),
    )  # fmt: skip
    context = StageContext(
        directory=tmp_path / "score", name="score", fingerprint="e" * 64, seed=3, world=World.alone(),
        journal=Journal(tmp_path / "score"), progress=Progress(tmp_path / "score"), stop=lambda: False,
    )  # fmt: skip

    facts = stage.run(context)
    context.journal.close()

    metrics = json.loads((report.path / "metrics.json").read_text())
    assert facts["report"]["family"] == "glamm"
    assert metrics["benchmarks"]["gcg"]["images"] == 4
    assert metrics["benchmarks"]["region_captions"]["phrases"] == 8
    assert metrics["benchmarks"]["gcg"]["untrained"].keys() == metrics["benchmarks"]["gcg"]["scores"].keys()
    assert metrics["benchmarks"]["refer"]["phrases"] == metrics["benchmarks"]["refer_compat"]["phrases"] == 8
    assert len((report.path / "predictions.jsonl").read_text().splitlines()) == 16
