"""What a run with the objective `Classification` gets right."""

from collections.abc import Callable

from mim_jax.evals.confusion import confusion
from mim_jax.evals.data import LabelledData
from mim_jax.evals.views import answers, one_pass_of


def accuracy(objective, data: LabelledData, *, batch_size: int = 64, clips: int = 1, crops: int = 1) -> Callable:
    """`params -> {'eval/top1', 'eval/loss', 'confusion': uint8[H, W, 3]}` on the validation records.

    Args:
        objective: objectives.Classification.
        data: labelled batches.
        batch_size: rows at once, a multiple of `clips`.
        clips: of a video, spread over it; their logits are averaged.
        crops: of a clip, likewise.
    """

    def evaluate(params: dict) -> dict:
        batches = data.val(batch_size, one_pass_of({}, clips))
        found = answers(params, batches, batch_size, objective, data.augment, clips, crops)
        return {
            'eval/top1': found.top1,
            'eval/loss': found.loss,
            'confusion': confusion(found.confusion, data.class_names),
        }

    return evaluate
