"""A whole tiny GLaMM learns real pictures by heart: from raw files over shards to what `predict` says of them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from orchestrator.data.reader import ShardSet
from stages.samples import Sample
from stages.vision import mask_from_rle
from tests.recipes.crops import write_crops
from tests.recipes.one_process import run_here

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

MODEL = {
    "language": {"hidden_size": 96, "layers": 2, "heads": 4, "mlp_size": 256},
    "vision": {"image_size": 64, "patch_size": 16, "hidden_size": 64, "layers": 2, "heads": 4, "mlp_size": 128},
    "grounding": {
        "image_size": 96, "patch_size": 8, "hidden_size": 64, "layers": 2, "heads": 4, "mlp_size": 128,
        "window_size": 6, "global_layers": [1], "channels": 64, "decoder_mlp_size": 128, "decoder_heads": 4,
    },
    "region": {
        "layers": [1, 2], "upsample": [2, 1], "channels": 16, "rounds": 1, "groups": 4, "roi_size": 2,
        "position_size": 16,
    },
    "max_tokens": 200,
}  # fmt: skip


def recipe_of(pictures: Path, count: int, steps: int) -> dict[str, object]:
    """Converts the pictures, learns them by heart and lets `predict` say what they show."""
    optim = {"lr": 2e-3, "warmup_steps": 20, "schedule": "cosine", "betas": [0.9, 0.99]}
    train = {
        "steps": steps, "global_batch": count, "trainable": ["*"], "workers": 0, "optim": optim,
        "engine": {"name": "torch", "precision": "fp32"}, "save": {"every_steps": 10_000},
    }  # fmt: skip
    gcg = {"model": MODEL, "train": train, "mask_side_px": 96, "wordings": 1}
    read = {"pictures": "pictures.shards"}
    return {
        "name": "overfit", "seed": 17, "tracking": {"uri": None},
        "stages": {
            "pictures": {
                "stage": "convert_shards", "config": {"source": "jsonl", "root": str(pictures), "file": "data.jsonl"},
            },
            "tokenizer": {"stage": "glamm_tokenizer", "inputs": {"shards": read}, "config": {"vocabulary_size": 600}},
            "gcg": {
                "stage": "glamm_gcg_tuning", "inputs": {"tokenizer": "tokenizer.tokenizer", "shards": read},
                "config": gcg,
            },
            "said": {
                "stage": "predict", "inputs": {"model": "gcg.model", "shards": read},
                "config": {"max_new_tokens": 120},
            },
        },
    }  # fmt: skip


def samples(shards: Path) -> list[Sample]:
    with ShardSet(shards) as found:
        return [Sample.from_members(*found.read(number)) for number in range(len(found))]


def overlaps(said: Sample, truth: Sample) -> list[float]:
    """Returns of every region the intersection over union with what was said in its words; 0 if nothing was."""
    found = {region.spans: mask_from_rle(region.mask) for region in said.regions if region.mask is not None}
    shares = []
    for region in truth.regions:
        assert region.mask is not None
        true_HW = mask_from_rle(region.mask)
        mine_HW = found.get(region.spans, np.zeros_like(true_HW))
        shares.append(float((mine_HW & true_HW).sum() / (mine_HW | true_HW).sum()))
    return shares


def learnt_by_heart(folder: Path, *, each: int, steps: int) -> tuple[list[Sample], list[Sample]]:
    """Runs the recipe; returns what was said, and the truth."""
    count = write_crops(folder / "raw", each=each)
    recipe = folder / "overfit.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(folder / "raw", count, steps)), encoding="utf-8")
    run_here(recipe, folder / "run", {})
    said, truth = samples(folder / "run/said/shards"), samples(folder / "run/pictures/shards")
    assert (len(said), [one.key for one in said]) == (count, [one.key for one in truth])
    return said, truth


def test_two_real_pictures_are_said_word_by_word(tmp_path: Path) -> None:
    said, truth = learnt_by_heart(tmp_path, each=1, steps=60)

    assert [one.caption for one in said] == [one.caption for one in truth]
    assert float(np.mean([overlaps(mine, true) for mine, true in zip(said, truth, strict=True)])) > 0.5


@pytest.mark.long
def test_eight_real_pictures_are_said_word_by_word_with_masks_that_fit(tmp_path: Path) -> None:
    said, truth = learnt_by_heart(tmp_path, each=4, steps=300)

    assert len(truth) == 8
    assert [one.caption for one in said] == [one.caption for one in truth]
    shares = [share for mine, true in zip(said, truth, strict=True) for share in overlaps(mine, true)]
    assert len(shares) == 16
    assert float(np.mean(shares)) >= 0.9
