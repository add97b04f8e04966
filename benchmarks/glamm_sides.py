"""What takes turns in `benchmarks.glamm_step`: data on disk, one model with its optimizer, and ways to take a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from benchmarks.glamm_data import KINDS, Size, drawn_up, write_scenes
from orchestrator.data.lengths import join_parts, measure_part
from orchestrator.data.packing import PackingPlan, make_plan
from orchestrator.data.reader import ShardSet
from orchestrator.data.rules import OrderRules, PackRule
from orchestrator.data.stream import SampleStream
from orchestrator.records import record
from orchestrator.training.engine import checkpoint_activations
from orchestrator.training.optim import freeze
from stages.glamm.batches import GlammBatch, Seen
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.stages import GcgTuning
from stages.glamm.task import GlammTask, Start, Weights
from stages.point_rule import PointRule

SCENES = 24

Loss = Callable[[Glamm, GlammBatch], Tensor]


@record
class Side:
    """One way to take a step."""

    name: str
    batches: Sequence[GlammBatch]
    micro_batches: int  # a step
    loss: Loss


class Data:
    """Scenes on disk, for models of one size."""

    def __init__(self, folder: Path, size: Size) -> None:
        """Draws and writes them."""
        self.folder, self.size = folder, size
        texts = write_scenes(folder / "shards", SCENES, image_px=size.image_px)
        self.blueprint, self.vocabulary = drawn_up(size, texts)

    def task(self, *, mask_side_px: int | None = None, mask_points: PointRule | None = None) -> GlammTask:
        """Makes the task of training on them."""
        weights = Weights(mask_side_px=mask_side_px, mask_points=mask_points)
        return GlammTask(self.blueprint, self.vocabulary, KINDS, start=Start(), weights=weights, max_regions=5)

    def stream(self, task: GlammTask, micro_batch: int, *, packs: bool = False, workers: int = 0) -> SampleStream:
        """Streams them, each source in its turn."""
        rule = PackRule(budget=self.size.budget) if packs else None
        return SampleStream(
            dict.fromkeys(KINDS, self.folder / "shards"), weights={}, rules=OrderRules(pack=rule),
            plans={name: self._plan(task, name, rule) for name in KINDS} if rule else None, seed=1,
            global_batch=micro_batch, micro_batch=micro_batch, world_rank=0, world_size=1, workers=workers,
        )  # fmt: skip

    def _plan(self, task: GlammTask, name: str, rule: PackRule) -> PackingPlan:
        folder, samples = self.folder / "units" / name, ShardSet(self.folder / "shards")
        measure_part(folder, samples, partial(task.length_of, name), name, rank=0, size=1)
        lengths = join_parts(folder, len(samples), name)
        samples.close()
        return make_plan(folder, lengths, rule)


class Learner:
    """The model and its optimizer, which all sides share: what it learns is of no interest here."""

    def __init__(self, data: Data) -> None:
        """Builds it on the GPU, in bf16, where there is one; else on the CPU in fp32."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(self.device):
            self.model = Glamm(data.blueprint)
        if self.device == "cpu":
            draw_weights(self.model, 1)
        else:
            self.model.bfloat16()
            checkpoint_activations(self.model.language_model)
        freeze(self.model, GcgTuning.trainable)
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self.learning, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, side: Side, batches: Iterator[GlammBatch]) -> int:
        """Takes one step; returns how many samples it saw."""
        samples = 0
        for batch in islice(batches, side.micro_batches):
            (side.loss(self.model, batch) / side.micro_batches).backward()  # type: ignore[no-untyped-call]  # torch's
            samples += len(batch.clip_pixels_BCHW)
        clip_grad_norm_(self.learning, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return samples

    def gradients(self, loss: Loss, batch: GlammBatch) -> tuple[float, Tensor]:
        """Returns the loss of a batch and all its gradients in a row."""
        found = loss(self.model, batch)
        found.backward()  # type: ignore[no-untyped-call]  # torch's
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.learning])
        self._optimizer.zero_grad()
        return float(found.detach()), flat.float()

    def wait(self) -> None:
        """Waits for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Runs `work`; returns the most bytes that tensors took at a time, weights and moments included on a GPU."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            work()
            return torch.cuda.max_memory_allocated()
        from tests.allocations import allocated

        return allocated(work)[1]


@torch.no_grad()
def featured(model: Glamm, batch: GlammBatch) -> GlammBatch:
    """Puts what the image encoders make of its images in the place of their pixels, as `glamm_features` keeps it."""
    weight = next(model.sam.parameters())
    images_PCHW = model.sam.vision_encoder(batch.sam_pixels_PCHW.to(weight.dtype)).last_hidden_state
    seen = Seen(patches_KBNC=torch.stack(model.encode(batch.clip_pixels_BCHW)), images_PCHW=images_PCHW)
    nothing = torch.empty(len(batch.clip_pixels_BCHW), 3, 0, 0, device=weight.device)
    return replace(batch, seen=seen, clip_pixels_BCHW=nothing, sam_pixels_PCHW=nothing[: len(images_PCHW)])
