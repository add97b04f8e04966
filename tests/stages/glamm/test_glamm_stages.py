"""The stages of GLaMM, as a recipe sees them: faults before anything runs, what learns, the tokenizer."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.fingerprint import roots, sources_of
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.world import World
from stages import FAMILIES, STAGES
from stages.adapters import LoraConfig
from stages.glamm.config import GlammConfig, LanguageConfig, VisionConfig
from stages.glamm.foresight import Asked, longest
from stages.glamm.stages import (
    FeatureAlignment,
    GcgTuning,
    GlammStage,
    GlammTokenizer,
    GlammTuning,
    GrandPretraining,
    Pix2CapSft,
    RegionPretraining,
)
from stages.glamm.tokenizer import Vocabulary
from tests.stages.glamm_models import tiny_blueprint, tiny_checkpoint, vocabulary
from tests.stages.scenes import scene, write_shards

TRAIN = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3))
MODEL = Path("model")


def tuning(model: Path = MODEL, *, tasks: dict[str, str] | None = None, lora: LoraConfig | None = None) -> GcgTuning:
    config = GcgTuning.Config(train=TRAIN, tasks=tasks or {}, lora=lora)
    shards = {"grounded": Shards(Path("a")), "regions": Shards(Path("b"))}
    inputs = GcgTuning.Inputs(model=Checkpoint(model), shards=shards)
    return GcgTuning(config, inputs, GcgTuning.Outputs(model=Checkpoint(Path("out"))))


def alignment(model: GlammConfig, tokenizer: Tokenizer | None) -> FeatureAlignment:
    inputs = FeatureAlignment.Inputs(shards={"captions": Shards(Path("a"))}, tokenizer=tokenizer)
    outputs = FeatureAlignment.Outputs(model=Checkpoint(Path("out")))
    return FeatureAlignment(FeatureAlignment.Config(train=TRAIN, model=model), inputs, outputs)


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, stages.glamm.stages; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_source_is_what_its_stage_is_for_unless_told_otherwise() -> None:
    stage = tuning(tasks={"regions": "region"})

    assert stage.kinds == {"grounded": "gcg", "regions": "region"}
    assert [one.kind for one in (FeatureAlignment, RegionPretraining, Pix2CapSft)] == [
        "caption",
        "region",
        "region_mask",
    ]


def test_an_unknown_task_and_a_task_of_no_input_are_faults_with_what_is_allowed() -> None:
    found = tuning(tasks={"regions": "boxes", "regoins": "region"}).faults()

    assert "'boxes'" in found["config.tasks.regions"]
    assert "region_mask" in found["config.tasks.regions"]
    assert "grounded, regions" in found["config.tasks.regoins"]
    assert tuning().faults() == {}


@pytest.mark.parametrize("cls", [GlammTuning, GrandPretraining])
def test_a_source_of_a_mixture_must_say_what_it_teaches(cls: type[GlammStage]) -> None:
    stage = cls(cls.Config(train=TRAIN, tasks={"grounded": "gcg"}), tuning().inputs, tuning().outputs)

    found = stage.faults()

    assert found.keys() == {"config.tasks.regions"}
    assert found["config.tasks.regions"].startswith("must say what this source teaches; allowed: caption, region,")
    assert stage.kinds == {"grounded": "gcg"}


@pytest.mark.parametrize("name", ["max_regions", "max_targets", "wordings"])
def test_a_conversation_about_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        GlammTuning.Config(**{"train": TRAIN, name: 0})


@pytest.mark.parametrize(
    ("kinds", "boxes", "masks"),
    [(["caption"], 0, 0), (["region", "referring"], 9, 2), (["semantic"], 0, 2), (["gcg", "referring"], 0, 9)],
)
def test_memory_is_foreseen_for_as_many_boxes_and_masks_as_may_be_asked_for(
    kinds: list[str], boxes: int, masks: int
) -> None:
    shape = longest(tiny_blueprint(vocabulary()), Asked(kinds=kinds, max_regions=9, max_targets=2))

    assert (shape.boxes, shape.masks) == (boxes, masks)


def test_a_language_model_that_ranks_cannot_share_is_a_fault_wherever_it_comes_from(tmp_path: Path) -> None:
    train = replace(TRAIN, engine=EngineConfig(tensor_parallel=4))
    begins = FeatureAlignment.Config(train=train, model=GlammConfig(language=LanguageConfig(heads=6, mlp_size=16)))
    goes_on = tuning(tiny_checkpoint(tmp_path / "model").path).inputs  # two heads
    outputs = GcgTuning.Outputs(model=Checkpoint(Path("out")))

    first = FeatureAlignment(begins, alignment(GlammConfig(), None).inputs, outputs).faults()
    later = GcgTuning(GcgTuning.Config(train=train), goes_on, outputs).faults()

    key = "config.train.engine.tensor_parallel"
    assert "num_attention_heads = 6" in first[key]
    assert first[key].endswith("cannot be shared evenly by 4 ranks; allowed: 1, 2")
    assert "num_attention_heads = 2" in later[key]


def test_every_missing_model_folder_is_a_fault_of_its_own(tmp_path: Path) -> None:
    model = GlammConfig(language=LanguageConfig(path=tmp_path / "llm"), vision=VisionConfig(path=tmp_path / "clip"))

    found = alignment(model, None).faults()

    assert set(found) == {"config.model.language.path", "config.model.vision.path"}
    assert str(tmp_path / "clip") in found["config.model.vision.path"]


@pytest.mark.parametrize("cls", [FeatureAlignment, RegionPretraining, GcgTuning, Pix2CapSft])
def test_a_stage_begins_a_model_or_goes_on_with_one_never_both_or_none(cls: type[GlammStage]) -> None:
    def faults(config: GlammStage.Config, inputs: GlammStage.Inputs) -> set[str]:
        return set(cls(config, inputs, cls.Outputs(model=Checkpoint(Path("out")))).faults())

    shards, model, tokenizer = {"captions": Shards(Path("a"))}, Checkpoint(MODEL), Tokenizer(Path("t"))
    begins = cls.Config(train=TRAIN, model=GlammConfig())
    goes_on = cls.Config(train=TRAIN)
    inputs = cls.Inputs

    assert faults(begins, inputs(shards=shards, tokenizer=tokenizer)) == set()
    assert faults(goes_on, inputs(shards=shards, model=model)) == set()
    assert faults(begins, inputs(shards=shards, model=model)) == {"config.model"}
    assert faults(goes_on, inputs(shards=shards, tokenizer=tokenizer)) == {"config.model"}
    assert faults(goes_on, inputs(shards=shards, tokenizer=tokenizer, model=model)) == {"inputs.tokenizer"}
    adapters = cls.Config(train=TRAIN, model=GlammConfig(), lora=LoraConfig())
    assert faults(adapters, inputs(shards=shards, tokenizer=tokenizer)) == {"config.lora"}


def test_a_model_without_any_tokenizer_is_a_fault() -> None:
    assert set(alignment(GlammConfig(), None).faults()) == {"inputs.tokenizer"}
    assert alignment(GlammConfig(), Tokenizer(Path("t"))).faults() == {}


@pytest.mark.parametrize("lora", [False, True])
def test_patterns_of_adapters_count_where_there_are_adapters(tmp_path: Path, *, lora: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", lora=lora)

    patterns = tuning(checkpoint.path).learning()

    assert ("language_model.*lora_*" in patterns) == lora
    assert "sam.mask_decoder" in patterns
    assert "language_model.*lora_*" in tuning(checkpoint.path, lora=LoraConfig()).learning()


def test_what_the_recipe_says_about_learning_is_taken_as_it_is(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    train = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3), trainable=("language_model.*lora_*",))
    inputs = GcgTuning.Inputs(model=checkpoint, shards={"grounded": Shards(Path("a"))})
    stage = GcgTuning(GcgTuning.Config(train=train), inputs, GcgTuning.Outputs(model=Checkpoint(Path("out"))))

    assert stage.learning() == ("language_model.*lora_*",)


@pytest.mark.parametrize(
    "stage", [FeatureAlignment, RegionPretraining, GrandPretraining, GlammTuning, GcgTuning, Pix2CapSft]
)
def test_image_encoders_are_frozen_unless_a_recipe_says_otherwise(stage: type[GlammStage]) -> None:
    assert not any(pattern.startswith(("vision_tower", "sam.vision_encoder", "*")) for pattern in stage.trainable)


def test_a_tokenizer_is_learnt_from_shards_and_knows_their_words(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [scene(number) for number in range(8)])
    config = GlammTokenizer.Config(vocabulary_size=500)
    outputs = GlammTokenizer.Outputs(tokenizer=Tokenizer(tmp_path / "tokenizer"))
    stage = GlammTokenizer(config, GlammTokenizer.Inputs(shards={"scenes": shards}), outputs)
    context = StageContext(
        directory=tmp_path, name="tokenizer", fingerprint="f" * 64, seed=1, world=World.alone(),
        journal=Journal(None), progress=Progress(None), stop=lambda: False,
    )  # fmt: skip

    facts = stage.run(context)["tokenizer"]

    words = Vocabulary.read(tmp_path / "tokenizer")
    assert facts == {"tokens": words.size, "inputs": ["scenes"]}
    assert len(words.encode(" stands left")[0]) == 2
    assert words.decode(words.encode(scene(0).caption)[0]) == scene(0).caption


@pytest.mark.parametrize("wrong", [{"vocabulary_size": 299}, {"samples": 0}])
def test_a_tokenizer_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GlammTokenizer.Config(**wrong)


def test_other_weights_under_the_same_path_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "vicuna"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"first")
    stage = alignment(GlammConfig(language=LanguageConfig(path=folder)), None)
    before = stage.outside()

    weights.write_bytes(b"others")

    assert set(before) == {str(folder / "config.json"), str(weights)}
    assert {path for path, seen in stage.outside().items() if seen != before[path]} == {str(weights)}


def test_a_fingerprint_follows_training_and_the_loss_but_not_what_only_plans() -> None:
    stages = [STAGES[name] for name in ("glamm_gcg_tuning", "glamm_word_pretraining")]
    first, second = (sources_of(stages).closure(roots(one, (), {"glamm": FAMILIES["glamm"]})) for one in stages)

    for code in (first, second):
        assert {"orchestrator.training.loop", "orchestrator.training.stage", "stages.glamm.task"} <= set(code)
        assert {"stages.glamm.model", "stages.glamm.decoder", "stages.mask_points"} <= set(code)
        assert not {"stages.glamm.foresight", "stages.glamm.sitting"} & set(code)
