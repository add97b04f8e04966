"""What a recipe says wrongly about PixelLLM is named before anything runs, and folders of others' weights fill it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SamConfig,
    SamModel,
    T5Config,
    T5ForConditionalGeneration,
)

from orchestrator.artifacts import Checkpoint, Report, Shards, Tokenizer
from orchestrator.errors import InputError
from orchestrator.training.config import OptimConfig, TrainConfig
from stages.evaluate.stage import Evaluate
from stages.pixelllm.begin import begin
from stages.pixelllm.config import Blueprint, LanguageConfig, LocalizationConfig, PixelLLMConfig, SemanticConfig
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.pretrained import fill_from_folders
from stages.pixelllm.speakers import T5Speaker
from stages.pixelllm.stages import (
    DenseCaptioning,
    JointTuning,
    PixelLLMStage,
    ReferringMasks,
    ReferringTuning,
    TraceTuning,
)
from stages.prediction.stage import Predict
from tests.stages.pixelllm_models import MASKS, pieces, tiny_blueprint, tiny_checkpoint, tiny_config
from tests.stages.scenes import scene, write_shards

TRAIN = TrainConfig(steps=2, global_batch=2, optim=OptimConfig(lr=1e-3))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return write_shards(tmp_path_factory.mktemp("shards") / "shards", [scene(number) for number in range(2)])


def stage_of(
    kind: type[PixelLLMStage],
    shards: Shards,
    folder: Path,
    *,
    begun: bool = False,
    tokenizer: bool = False,
    **config: Any,
) -> PixelLLMStage:
    inputs = kind.Inputs(
        shards={"some": shards},
        model=Checkpoint(folder / "before") if begun else None,
        tokenizer=Tokenizer(folder / "tokenizer") if tokenizer else None,
    )
    made: PixelLLMStage = kind(
        kind.Config(train=TRAIN, **config), inputs, kind.Outputs(model=Checkpoint(folder / "run" / "stage" / "model"))
    )
    return made


def test_a_model_must_begin_or_go_on_and_a_fresh_one_needs_a_tokenizer(shards: Shards, tmp_path: Path) -> None:
    neither = stage_of(TraceTuning, shards, tmp_path).faults()
    fresh = stage_of(TraceTuning, shards, tmp_path, model=tiny_config()).faults()
    both = stage_of(TraceTuning, shards, tmp_path, model=tiny_config(), begun=True).faults()

    assert neither == {"config.model": "exactly one of config.model and inputs.model is needed, neither given"}
    assert list(fresh) == ["inputs.tokenizer"]
    assert both["config.model"].endswith("both given")


def test_a_joint_source_must_say_its_task_and_a_strange_one_is_named(shards: Shards, tmp_path: Path) -> None:
    silent = stage_of(JointTuning, shards, tmp_path, begun=True).faults()
    strange = stage_of(JointTuning, shards, tmp_path, begun=True, tasks={"some": "refr", "other": "trace"}).faults()

    known = "caption, trace, refer, segment, region, dense"
    assert silent == {"config.tasks.some": f"must say what this source teaches; allowed: {known}"}
    assert strange == {
        "config.tasks.some": f"unknown kind 'refr'; allowed: {known}",
        "config.tasks.other": "no such entry under inputs.shards; allowed: some",
    }


def test_a_folder_of_another_model_is_named(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    model = PixelLLMConfig(
        language=LanguageConfig(path=tmp_path / "bert"), semantic=SemanticConfig(path=tmp_path / "nowhere")
    )

    found = stage_of(TraceTuning, shards, tmp_path, model=model).faults()

    assert found["config.model.language.path"] == f"{tmp_path / 'bert'} is a bert; allowed: t5"
    assert "has no config.json" in found["config.model.semantic.path"]


def test_what_learns_follows_from_adapters_and_proposals(shards: Shards, tmp_path: Path) -> None:
    plain = stage_of(DenseCaptioning, shards, tmp_path, tokenizer=True, model=tiny_config(detector=False))
    whole = stage_of(DenseCaptioning, shards, tmp_path, tokenizer=True, model=tiny_config(lora=True))

    assert plain.learning() == ("semantic", "extractor", "projection", "language")
    assert whole.learning() == ("semantic", "extractor", "projection", "language.*lora_*", "detector")


def test_masks_without_weights_to_begin_with_learn_whole_and_others_their_adapter_alone(
    shards: Shards, tmp_path: Path
) -> None:
    fresh = stage_of(ReferringMasks, shards, tmp_path, tokenizer=True, model=tiny_config(masks=True))
    filled = replace(tiny_config(), masks=replace(MASKS, path=tmp_path))
    known = stage_of(ReferringMasks, shards, tmp_path, tokenizer=True, model=filled)

    assert fresh.learning() == ("masks", "location")
    assert known.learning() == ("masks.adapter", "location")


def test_what_masks_lack_is_named(shards: Shards, tmp_path: Path) -> None:
    odd = replace(tiny_config(), masks=replace(MASKS, heads=3))
    fresh = stage_of(ReferringMasks, shards, tmp_path, tokenizer=True, model=odd, masks=MASKS).faults()
    later = stage_of(ReferringMasks, shards, tmp_path, begun=True, masks=replace(MASKS, path=tmp_path)).faults()

    assert fresh == {
        "config.model.masks.heads": "twice the heads (6) must divide SAM's 8 channels",
        "config.masks": "adds masks to inputs.model; say config.model.masks here",
    }
    assert list(later) == ["config.masks.path"]
    assert "has no config.json" in later["config.masks.path"]


def test_masks_are_added_to_a_model_that_goes_on_and_without_them_segments_are_refused(
    shards: Shards, tmp_path: Path
) -> None:
    before = tiny_checkpoint(tmp_path / "before")
    stage = stage_of(ReferringMasks, shards, tmp_path, begun=True, masks=MASKS)
    plain = stage_of(ReferringMasks, shards, tmp_path, begun=True)

    task = begin(stage.config, stage.kinds, tokenizer=None, model=before)
    model = task.build_model()
    task.load_weights(model)

    assert isinstance(model, PixelLLM)
    assert model.masks is not None
    assert float(model.masks.adapter.gate_1.detach()) == 0
    facts: Any = stage.foresee({"model": before.facts()})["model"]
    assert facts["model"] == task.describe()["model"]
    with pytest.raises(InputError, match=r"config\.masks: a source teaches segment, but the model draws no masks"):
        begin(plain.config, plain.kinds, tokenizer=None, model=before)


def test_dense_captions_without_proposals_are_refused_when_they_begin(shards: Shards, tmp_path: Path) -> None:
    stage = stage_of(DenseCaptioning, shards, tmp_path, tokenizer=True, model=tiny_config(detector=False))
    assert stage.inputs.tokenizer is not None
    stage.inputs.tokenizer.path.mkdir()
    for name, content in pieces().files().items():
        (stage.inputs.tokenizer.path / name).write_bytes(content)

    with pytest.raises(InputError, match=r"config\.detector: a source teaches dense, but the model proposes no boxes"):
        begin(stage.config, stage.kinds, tokenizer=stage.inputs.tokenizer, model=None)


def test_planning_knows_the_model_of_a_fresh_stage_and_of_one_that_goes_on(shards: Shards, tmp_path: Path) -> None:
    fresh = stage_of(TraceTuning, shards, tmp_path, tokenizer=True, model=tiny_config(detector=False))
    facts: Any = fresh.foresee({"tokenizer": {"tokens": 400}})["model"]
    later = stage_of(ReferringTuning, shards, tmp_path, begun=True).foresee({"model": facts})

    assert facts["family"] == "pixelllm"
    assert Blueprint.from_plain(facts["model"]).vocabulary_size == 400
    assert later["model"]["model"] == facts["model"]


def test_what_a_model_lacks_a_part_for_is_refused_when_planned(shards: Shards, tmp_path: Path) -> None:
    fresh = stage_of(TraceTuning, shards, tmp_path, tokenizer=True, model=tiny_config(detector=False))
    bare = fresh.foresee({"tokenizer": {"tokens": 400}})
    masks = stage_of(ReferringMasks, shards, tmp_path, begun=True, masks=MASKS)
    dense = stage_of(DenseCaptioning, shards, tmp_path, begun=True)
    score = Evaluate(
        Evaluate.Config(benchmarks=["refer_boxes", "refer", "dense_captions"]),
        Evaluate.Inputs(model=Checkpoint(tmp_path), shards={"a": shards}), Evaluate.Outputs(report=Report(tmp_path)),
    )  # fmt: skip
    ask = Predict(
        Predict.Config(task="refer"), Predict.Inputs(model=Checkpoint(tmp_path), shards={"a": shards}),
        Predict.Outputs(shards=shards),
    )  # fmt: skip
    told = "this pixelllm model has no masks: no stage that trains it has config.model.masks or config.masks"

    assert set(dense.faults_given(bare)) == {"config.detector"}
    assert set(stage_of(ReferringMasks, shards, tmp_path, begun=True).faults_given(bare)) == {"config.masks"}
    assert not masks.faults_given(bare)
    assert set(score.faults_given(bare)) == {"config.benchmarks[1]", "config.benchmarks[2]"}
    assert score.faults_given(bare)["config.benchmarks[1]"] == f"'refer' cannot be asked: {told}"
    assert set(score.faults_given(masks.foresee(bare))) == {"config.benchmarks[2]"}
    assert ask.faults_given(bare) == {"config.task": f"'refer' cannot be asked: {told}"}
    assert not score.faults_given({})
    assert not score.faults_given({"model": {"family": "glamm", "model": {}}})


def test_a_stage_goes_on_with_the_weights_before_it(shards: Shards, tmp_path: Path) -> None:
    before = tiny_checkpoint(tmp_path / "before")
    stage = stage_of(ReferringTuning, shards, tmp_path, begun=True)

    task = begin(stage.config, stage.kinds, tokenizer=None, model=before)
    model = task.build_model()
    task.load_weights(model)

    again = begin(stage.config, stage.kinds, tokenizer=None, model=before)
    other = again.build_model()
    torch.manual_seed(99)  # whatever chance says, nothing is drawn
    again.load_weights(other)
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_folders_of_t5_clip_and_sam_fill_it_with_positions_resized(tmp_path: Path) -> None:
    words = pieces()
    blueprint = tiny_blueprint(words, lora=True, detector=False)
    torch.manual_seed(3)
    t5 = T5Speaker(blueprint.language, None).model  # whose output layer is its own, as Flan-T5's is
    clip = CLIPVisionModel(CLIPVisionConfig(**{**blueprint.semantic, "image_size": 16}))  # 2 x 2 patches, wanted 4 x 4
    settings = {**blueprint.localization, "image_size": 64, "num_pos_feats": 4}  # 4 x 4, wanted 2 x 2
    sam = SamModel(
        SamConfig(
            vision_config=settings,
            prompt_encoder_config={"hidden_size": 8, "image_size": 64, "patch_size": 16},
            mask_decoder_config={"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 2, "iou_head_hidden_dim": 8},
        )
    )
    for name, part in (("t5", t5), ("clip", clip), ("sam", sam)):
        part.save_pretrained(tmp_path / name)
    config = PixelLLMConfig(
        language=LanguageConfig(path=tmp_path / "t5"),
        semantic=SemanticConfig(path=tmp_path / "clip"),
        localization=LocalizationConfig(path=tmp_path / "sam"),
    )
    model = PixelLLM(blueprint)

    loaded = fill_from_folders(model, config)

    ours = dict(model.named_parameters())
    fresh = {name.split(".")[0] for name in ours if name not in loaded and "lora_" not in name}
    assert fresh == {"extractor", "projection", "location"}
    assert torch.equal(ours["language.model.shared.weight"], t5.shared.weight)
    assert torch.equal(ours["prompts.point_embed.2.weight"], sam.prompt_encoder.point_embed[2].weight)
    table = clip.embeddings.position_embedding.weight
    resized = ours["semantic.embeddings.position_embedding.weight"]
    assert torch.equal(resized[0], table[0])  # the class token's
    torch.testing.assert_close(resized[1:].mean(0), table[1:].mean(0), atol=1e-3, rtol=0)
    assert ours["localization.vision_encoder.pos_embed"].shape == (1, 2, 2, 8)


def test_a_folder_that_lacks_weights_of_its_part_is_refused(tmp_path: Path) -> None:
    blueprint = tiny_blueprint(pieces(), detector=False)
    settings = {**blueprint.language, "num_layers": 1, "num_decoder_layers": 1}
    T5ForConditionalGeneration(T5Config(**settings)).save_pretrained(tmp_path / "t5")
    deeper = replace(blueprint, language={**settings, "num_decoder_layers": 2})

    with pytest.raises(InputError, match=r"it lacks .* weights of the part that it fills: language"):
        fill_from_folders(PixelLLM(deeper), PixelLLMConfig(language=LanguageConfig(path=tmp_path / "t5")))
