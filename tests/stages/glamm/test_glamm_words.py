"""Words read straight off image tokens: which count, where they are looked for, what learns from them."""

from pathlib import Path

import pytest
import torch

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from stages.glamm.batches import WordsBatch
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.stages import WordPretraining
from stages.glamm.task import GlammTask, Start, Weights
from stages.glamm.words import POINTS, WordsTask, rarities
from stages.roi import at_points
from stages.samples import Sample
from tests.stages.glamm_models import tiny_blueprint, vocabulary
from tests.stages.scenes import scene, write_shards

WORDS = vocabulary()


def task_over(shards: Path) -> WordsTask:
    glamm = GlammTask(tiny_blueprint(WORDS), WORDS, {}, start=Start(), weights=Weights(), max_regions=4)
    return WordsTask(glamm, rarities(WORDS, [shards]), max_regions=4)


def drawn(sample: Sample, seed: int = 1) -> Drawn:
    return Drawn(source="regions", key=sample.key, members=sample.to_members(), seed=seed, place=0)


@pytest.fixture
def task(tmp_path: Path) -> WordsTask:
    return task_over(write_shards(tmp_path / "shards", [scene(number) for number in range(6)]).path)


@pytest.fixture
def batch(task: WordsTask) -> WordsBatch:
    return task.collate([drawn(scene(number)) for number in range(4)])


def test_a_word_that_every_description_has_weighs_nothing_and_a_rarer_one_more(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [scene(number) for number in range(6)])

    weights = rarities(WORDS, [shards.path])

    said = [set(WORDS.encode(f" {region.phrase}")[0]) for number in range(6) for region in scene(number).regions]
    everywhere = set.intersection(*said)
    assert everywhere
    assert all(weights[word] == 0 for word in everywhere)
    counts = {word: sum(word in words for words in said) for word in set.union(*said)}
    rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    assert weights[rare] > weights[common]
    assert weights[[word for word in range(WORDS.size) if word not in counts]].sum() == 0


def test_each_region_spreads_one_over_the_words_that_are_said_of_it(batch: WordsBatch) -> None:
    assert torch.allclose(batch.words_RV.sum(1), torch.ones(len(batch.boxes_R4)))
    assert len(batch.boxes_R4) == sum(len(scene(number).regions) for number in range(4))
    region = scene(0).regions
    for row in range(len(region)):
        words = set(batch.words_RV[row].nonzero().flatten().tolist())
        assert any(words <= set(WORDS.encode(f" {one.phrase}")[0]) for one in region)


def test_points_lie_in_their_box_and_depend_on_the_samples_seed_alone(task: WordsTask, batch: WordsBatch) -> None:
    low, high = batch.boxes_R4[:, None, :2], batch.boxes_R4[:, None, 2:]
    assert batch.points_RK2.shape[1] == POINTS
    assert bool(((batch.points_RK2 > low) & (batch.points_RK2 < high)).all())

    alone = task.collate([drawn(scene(2))])
    first = int((batch.box_image_R < 2).sum())
    assert torch.equal(alone.points_RK2, batch.points_RK2[first : first + len(alone.points_RK2)])
    assert not torch.equal(alone.points_RK2, task.collate([drawn(scene(2), seed=2)]).points_RK2)


def test_a_point_in_the_middle_of_a_patch_reads_that_patch() -> None:
    tokens_BND = torch.arange(2 * 16 * 3, dtype=torch.float32).reshape(2, 16, 3)
    points_RK2 = torch.tensor([[[0.875, 0.125], [0.125, 0.625]]])

    read = at_points(tokens_BND, points_RK2, torch.tensor([1]))

    assert torch.allclose(read[0], tokens_BND[1, [3, 8]])


def test_samples_without_described_regions_are_refused_by_name(task: WordsTask) -> None:
    bare = Sample(key="bare", image=scene(0).image, width_px=scene(0).width_px, height_px=scene(0).height_px)

    with pytest.raises(InputError, match="no region with a description in bare"):
        task.collate([drawn(bare)])


def test_only_what_sees_and_names_gets_gradients_and_it_learns(task: WordsTask, batch: WordsBatch) -> None:
    model = task.build_model()
    assert isinstance(model, Glamm)
    draw_weights(model, 1)
    losses = task.loss(model, batch)
    losses.total.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    tops = {pattern for pattern in WordPretraining.trainable if any(name.startswith(pattern) for name in reached)}

    assert tops == set(WordPretraining.trainable)
    assert all(name.startswith(WordPretraining.trainable) for name in reached)
    assert set(losses.terms) == {"patch_words", "region_words"}

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.grad is not None], lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, batch).total.backward()
        optimizer.step()
    assert task.loss(model, batch).total.item() < 0.7 * losses.total.item()
