"""Training a DDPM (Ho et al. 2020, Algorithm 1), with what the field has added to it.

Every random choice is a function of (seed, step, place in the batch): a run that is stopped and
resumed ends with the same bits as one that is not, and one that is spread over several processes
sees what one process sees, and sums it in another order. (Of more than two processes a resumed run
is the same to rounding: DDP orders its sums anew in each.)
"""

from ddpm_core_torch.training.execution import bfloat16_is_fast
from ddpm_core_torch.training.recipe import LEVELS, OBJECTIVES, PRECISIONS, Recipe
from ddpm_core_torch.training.state import OtherRunError
from ddpm_core_torch.training.trainer import OtherProcessError, Step, Trainer

__all__ = [
    "LEVELS",
    "OBJECTIVES",
    "OtherProcessError",
    "OtherRunError",
    "PRECISIONS",
    "Recipe",
    "Step",
    "Trainer",
    "bfloat16_is_fast",
]
