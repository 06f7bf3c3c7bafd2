"""What is known of the laws that denoising-diffusion-pytorch breaks."""

from __future__ import annotations

from ddpm_core.testing.audits.found import Note

NOTES = {
    "few": Note(
        "defect",
        "The linear schedule of 20 timesteps or fewer has betas of 1 and more",
        "β_T = 0.02 * 1000 / T. Square roots of negative numbers make its tables NaN, without an "
        "error. The cosine and sigmoid schedules are clipped.",
        "50 timesteps or more, or the cosine schedule",
        "in another library of its author: lucidrains/imagen-pytorch #161 (closed)",
        "denoising-diffusion-pytorch-few-timesteps",
    ),
    "interpolate": Note(
        "defect",
        "`interpolate(t)` tells the network t - 1 first",
        "Both images get the noise of index t, and the first reverse step is at index t - 1: "
        "each step takes its input for one level cleaner than it is.",
        "noise to t, then `p_sample` at t, t - 1, .. 0 by hand",
        "another error of it was #159 (closed)",
        "denoising-diffusion-pytorch-interpolate",
    ),
    "immiscible": Note(
        "defect",
        "`immiscible=True` trains on the noise of another sample",
        "`q_sample` assigns the noises of a batch to its images inside, and `p_losses` compares "
        "the network with the noises as they were before. The target must be (x_t - α x_0) / σ; "
        "what it is has no correlation with it, as the root mean square difference of sqrt(2) "
        "says.",
        "`immiscible=False`, or assign before `p_losses`",
        report="denoising-diffusion-pytorch-immiscible",
    ),
    "repaint": Note(
        "defect",
        "RePaint's resampling jumps to time 3, wherever it is",
        "The loop sets `t = resample_jump` and never uses its counter: at time 50 the image gets "
        "the noise of one step at index 3, and is then denoised three times as if at time 3. "
        "Algorithm 1 goes one step up from the time that was reached, and down again.",
        "`resample=False`",
        "the loop is of PR #320 (merged), after #319 (closed); no thread about its time was seen",
        "denoising-diffusion-pytorch-repaint",
    ),
    "learned": Note(
        "defect",
        "`LearnedGaussianDiffusion` cannot sample by DDIM",
        "`model_predictions` names `partial` and `identity`, which its module does not import.",
        "`sampling_timesteps=None`",
        report="denoising-diffusion-pytorch-learned",
    ),
    "objective": Note(
        "difference",
        "`LearnedGaussianDiffusion` takes every output for eps",
        "Training and `p_sample` compute with eps, as in Nichol & Dhariwal 2021, whatever "
        '`objective` says, also with the default "pred_v". `model_predictions` reads it. '
        '`objective="pred_noise"` says what it does.',
    ),
    "weighted": Note(
        "defect",
        "`WeightedObjectiveGaussianDiffusion` cannot sample",
        "Its `p_mean_variance` has no `x_self_cond`, which `p_sample` passes, and returns three "
        "values where four are taken.",
        report="denoising-diffusion-pytorch-weighted",
    ),
    "scale-one": Note(
        "defect",
        "Classifier-free guidance of scale 1 takes the batch for a pair",
        "`forward_with_cond_scale` returns the output alone where `cond_scale == 1`, and "
        "(output, null output) otherwise; `model_predictions` always unpacks two. A batch of two "
        "is unpacked into its two samples, without an error; any other raises.",
        "a scale of 1.0001",
        report="denoising-diffusion-pytorch-scale-one",
    ),
    "parallel": Note(
        "difference",
        "Guidance removes the part of the update that is parallel to the output",
        "By default, as in adaptive projected guidance (Sadat et al. 2025).",
        "`remove_parallel_component=False` is Ho & Salimans 2022",
    ),
}
