"""DeepSpeed's checkpoints, saved by it on two ranks and as it used to save, give what its converter gives."""

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.foreign.mapping import fill_from, rules_of
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import Held
from orchestrator.world import World
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

CASES = {f"zero{stage}_{kind}": (stage, kind == "bf16") for stage in (1, 2, 3) for kind in ("fp32", "bf16")}


class Odd(nn.Module):
    """Has what makes checkpoints hard: odd sizes, frozen and shared weights, buffers, two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 7)
        self.register_buffer("mean", torch.rand(7))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("passing", torch.ones(1), persistent=False)
        self.frozen = nn.Linear(7, 3)
        self.scalar = nn.Parameter(torch.tensor([0.5]))
        self.leave = nn.Linear(7, 5)
        self.again = nn.Linear(5, 7, bias=False)
        self.again.weight = self.enter.weight
        self.frozen.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.enter(x) - self.get_buffer("mean").to(x.dtype)) * self.scalar
        loss: Tensor = self.leave(y + self.again(x)).sum() + self.frozen(y).sum()
        return loss


def _fill_partitioned() -> dict[str, list[float]]:
    """Fills a model that ZeRO-3 cuts as it is built; collective, as gathering is."""
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 2, "zero_optimization": {"stage": 3}}):
        model = Odd()
    torch.manual_seed(9)
    stored = {name: tensor.detach() for name, tensor in Odd().named_parameters()}
    stored["leave.weight"] = stored["leave.weight"][:3]
    wanted = dict(model.named_parameters())
    report = fill_from(wanted, Held("file", stored), rules_of((r"(.+)", r"\1")), growing={"leave.weight": 3})
    assert report.missing == ()
    found = {}
    for name, parameter in wanted.items():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().flatten().tolist()
    return found


def _save(world: World, directory: Path) -> dict[str, list[float]]:
    import deepspeed

    from orchestrator.training.deepspeed import _quiet

    _quiet(world)
    for name, (stage, half) in {**CASES, "zero0_fp32": (0, False)}.items():
        torch.manual_seed(3)
        model = Odd()
        matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        config = {
            "train_batch_size": 2 * world.size,
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "bf16": {"enabled": half},
            "zero_allow_untested_optimizer": True,
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        x = torch.randn(2, 5, generator=torch.Generator().manual_seed(world.rank))
        engine.backward(engine(x.bfloat16() if half else x))
        engine.step()
        engine.save_checkpoint(str(directory / name), tag="global_step1", client_state={"epoch": 1})
    return _fill_partitioned()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, list[float]]]]:
    """Saves with DeepSpeed, really, and fills a partitioned model."""
    directory = tmp_path_factory.mktemp("zero")
    return directory, run_ranks(2, _save, directory, directory=directory, timeout_s=240)


@pytest.fixture(scope="module")
def saved(on_two_ranks: tuple[Path, Any]) -> Path:
    return on_two_ranks[0]


def test_a_model_in_pieces_is_filled_on_every_rank(on_two_ranks: tuple[Path, list[dict[str, list[float]]]]) -> None:
    torch.manual_seed(9)
    wanted = {name: tensor.detach() for name, tensor in Odd().named_parameters()}
    rows = wanted["leave.weight"][:3]
    wanted["leave.weight"] = torch.cat([rows, rows.mean(0, keepdim=True).expand(2, -1)])

    first, second = on_two_ranks[1]

    assert first == second
    assert set(first) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(torch.tensor(first[name]), tensor.flatten())


def _converted(folder: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder)))


@pytest.mark.parametrize("name", CASES)
def test_every_stage_gives_the_weights_that_deepspeeds_own_converter_gives(saved: Path, name: str) -> None:
    source = open_source(saved / name)
    theirs = _converted(saved / name)

    # under ZeRO-1 the frozen weights are in the checkpoint, and its converter loses them
    assert set(source.entries) - set(theirs) == (
        {"frozen.weight", "frozen.bias"} if name.startswith("zero1") else set()
    )
    for key, tensor in theirs.items():
        mine = source.read(key)
        assert (tuple(mine.shape), mine.dtype) == (source.entries[key].shape, source.entries[key].dtype)
        assert torch.equal(mine.to(tensor.dtype), tensor), key
    torch.manual_seed(3)
    before = Odd()
    assert not torch.equal(source.read("enter.weight"), before.enter.weight)  # it has learned
    assert torch.equal(
        source.read("frozen.weight").float(), before.frozen.weight.to(source.entries["frozen.weight"].dtype).float()
    )
    assert torch.equal(source.read("again.weight"), source.read("enter.weight"))
    assert source.entries["count"].dtype == torch.int64
    assert source.entries["leave.weight"].dtype == torch.float32  # masters, not what it computed with


def test_without_zero_the_whole_weights_are_read(saved: Path) -> None:
    source, reference = open_source(saved / "zero0_fp32"), open_source(saved / "zero1_fp32")

    assert set(source.entries) == set(reference.entries)
    for key in source.entries:
        torch.testing.assert_close(source.read(key), reference.read(key))


def test_a_folder_may_be_named_itself_or_by_its_latest(saved: Path) -> None:
    outer, inner = (open_source(path) for path in (saved / "zero3_bf16", saved / "zero3_bf16" / "global_step1"))

    assert all(torch.equal(outer.read(key), inner.read(key)) for key in outer.entries)


@pytest.mark.parametrize("sharded", [False, True], ids=["before 0.15.3", "since"])
def test_what_the_converter_writes_is_read(saved: Path, tmp_path: Path, *, sharded: bool) -> None:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    theirs = _converted(saved / "zero2_fp32")
    if not sharded:
        torch.save(theirs, tmp_path / "pytorch_model.bin")
        source = open_source(tmp_path / "pytorch_model.bin")
    else:
        convert_zero_checkpoint_to_fp32_state_dict(str(saved / "zero2_fp32"), str(tmp_path / "out"), max_shard_size=200)
        assert len(list((tmp_path / "out").glob("*-of-*"))) > 1
        source = open_source(tmp_path / "out")

    assert all(torch.equal(source.read(key), theirs[key]) for key in source.entries)
    assert set(theirs) - set(source.entries) <= {"again.weight", "enter.weight"}  # a shared one may be written once


SHAPES = [OrderedDict(a=torch.Size([3, 3]), b=torch.Size([5])), OrderedDict(c=torch.Size([7]))]


def _old(folder: Path, stage: int, *, ranks: int = 3, lean: bool = False) -> dict[str, Tensor]:
    """Writes the files of DeepSpeed 0.12 as its converter read them: no paddings told, an int of partitions."""
    generator = torch.Generator().manual_seed(5)
    truth = {n: torch.randn(s, generator=generator) for group in SHAPES for n, s in group.items()}
    frozen = torch.randn(2, 5, generator=generator).bfloat16()
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text(folder.name)
    groups: list[list[Tensor]] = [[] for _ in range(ranks)]
    for shapes in SHAPES:
        if stage == 3:
            pieces = [_cut(truth[name], ranks) for name in shapes]
            parts = [torch.cat([piece[rank] for piece in pieces]) for rank in range(ranks)]
        else:
            flat = torch.cat([truth[name].flatten() for name in shapes])
            padded = torch.cat([flat, torch.full((-len(flat) % (2 * ranks),), float("nan"))])
            parts = list(padded.chunk(ranks))
            if lean:  # some versions dropped the padding again
                parts[-1] = parts[-1][: len(parts[-1]) - (len(padded) - len(flat))]
        for rank in range(ranks):
            groups[rank].append(parts[rank])
    fragments = _cut(frozen, ranks) if stage == 3 else [frozen] * ranks
    for rank in range(ranks):
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        inner = {"zero_stage": stage, "partition_count": ranks, key: groups[rank], "loss_scaler": None}
        optimizer = {"optimizer_state_dict": inner, "ds_version": "0.12.5"}
        torch.save(optimizer, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        model = {
            "module": {"mean": torch.ones(2).bfloat16(), **({} if stage == 3 else {"old": torch.ones(3)})},
            "buffer_names": ["mean"],
            "param_shapes": SHAPES,
            "frozen_param_shapes": {"frozen": frozen.shape},
            "frozen_param_fragments": {"frozen": fragments[rank].clone()},
            "shared_params": {"twin": "a"},
            "ds_version": "0.12.5",
        }
        if stage == 3:
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        elif rank == 0:
            torch.save(model, folder / "mp_rank_00_model_states.pt")
    return {**truth, "frozen": frozen, "twin": truth["a"], "mean": torch.ones(2).bfloat16()}


def _cut(tensor: Tensor, ranks: int) -> list[Tensor]:
    flat = tensor.flatten()
    padded = torch.cat([flat, torch.full((-len(flat) % ranks,), 9.0, dtype=flat.dtype)])
    return list(padded.chunk(ranks))


@pytest.mark.parametrize(("stage", "lean"), [(1, False), (2, False), (2, True), (3, False)])
@pytest.mark.parametrize("ranks", [1, 3, 11])
def test_checkpoints_of_old_versions_are_put_together(tmp_path: Path, stage: int, ranks: int, *, lean: bool) -> None:
    truth = _old(tmp_path / "global_step7", stage, ranks=ranks, lean=lean)

    source = open_source(tmp_path)

    assert set(source.entries) - set(truth) == (set() if stage == 3 else {"old"})  # which no list of shapes names
    for name, tensor in truth.items():
        assert torch.equal(source.read(name), tensor), name
        assert source.entries[name].dtype == tensor.dtype


def _lose(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def _rename(name: str, other: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.copy(folder / name, folder / other)


def _change(name: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        state = torch.load(folder / name)
        change(state)
        torch.save(state, folder / name)

    return edit


RANK1 = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
RANK0 = RANK1.replace("rank_1", "rank_0")


@pytest.mark.parametrize(
    ("stage", "damage", "message"),
    [
        (2, _lose(RANK1), r"was written by 3 ranks, but has 2 files"),
        (3, _lose("zero_pp_rank_1_mp_rank_00_model_states.pt"), "2 files .* for 3 ranks"),
        (2, _lose("mp_rank_00_model_states.pt"), r"lacks \*_model_states\.pt"),
        (2, _rename("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"), "tensor parallelism"),
        (2, _rename("mp_rank_00_model_states.pt", "layer_00-model_00-model_states.pt"), "pipeline parallelism"),
        (2, _rename(RANK0, "expert_0_mp_rank_00_optim_states.pt"), "experts over ranks"),
        (2, _change(RANK0, lambda s: s["optimizer_state_dict"].pop("zero_stage")), "lacks zero_stage"),
        (2, _change(RANK0, lambda s: s["optimizer_state_dict"].pop("single_partition_of_fp32_groups")), "lacks single"),
        (2, _change("mp_rank_00_model_states.pt", lambda s: s.pop("module")), "is no file of model states"),
        (2, _change("mp_rank_00_model_states.pt", lambda s: s["param_shapes"].pop()), "1 parameter groups"),
        (2, _change("mp_rank_00_model_states.pt", lambda s: s["param_shapes"][0].update(x=(99,))), "ends inside x"),
        (2, _change("mp_rank_00_model_states.pt", lambda s: s["param_shapes"][0].pop("a")), "needs 5 elements, 18 are"),
        (3, _change("zero_pp_rank_0_mp_rank_00_model_states.pt", lambda s: s["param_shapes"].pop()), "need 5 elements"),
        (2, lambda folder: (folder.parent / "latest").write_text("../../etc"), "is no folder beside it"),
        (2, lambda folder: (folder / RANK0).write_bytes((folder / RANK0).read_bytes()[:-200]), "cannot be read"),
    ],
)
def test_a_broken_or_otherwise_cut_checkpoint_is_refused_by_what_is_wrong(
    tmp_path: Path, stage: int, damage: Callable[[Path], Any], message: str
) -> None:
    _old(tmp_path / "global_step7", stage)
    damage(tmp_path / "global_step7")

    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path)

    assert isinstance(caught.value, DamagedArtifact) or "not undone" in str(caught.value)
