"""What is known of the laws that diffusers breaks."""

from __future__ import annotations

from ddpm_core.testing.audits.found import Note

NOTES = {
    "trailing": Note(
        "defect",
        "`trailing` has one timestep too many for some step counts",
        "`np.arange(T, 0, -T / S)` on floats has S + 1 elements where T / S rounds down, and the "
        "last timestep is then -1. Schedulers that look ᾱ up in a table find ᾱ_T at that index: "
        "`DDIMScheduler`'s last step divides the network's error by sqrt(ᾱ_T), and draws almost "
        "no variance. Those that interpolate sigmas make one call more.",
        "check `len(scheduler.timesteps) == S`, or take a step count that divides T",
        report="diffusers-trailing",
    ),
    "previous": Note(
        "defect",
        "DDIM steps to t - T // S, and not to the next timestep",
        "`step` of `DDIMScheduler`, `DDIMParallelScheduler`, `DDIMInverseScheduler`, "
        "`CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`, and `step_plms` of "
        "`PNDMScheduler` have it. With `linspace`, and with `trailing` where S does not "
        "divide T, the network is told another time next. In Song et al. 2021, Eq. 12, α_{t-1} "
        "is of the next time. `DDPMScheduler` looks into the list, and is right.",
        "`leading`, or `trailing` with a step count that divides T",
        "huggingface/diffusers #12633, #11347 (open), #9261 (closed), PR #14357 (open)",
        "diffusers-previous-timestep",
    ),
    "third-order": Note(
        "defect",
        "Multistep DPM-Solver of order 3 is of order 2",
        "`multistep_dpm_solver_third_order_update`: `D2` is the second divided difference times "
        "h², which is half of h² times the second derivative, and its coefficient is that of the "
        "whole: the integral of e^λ (λ - λ_t)² / 2. The solver with the factor 2, here "
        "`dpmpp_3m` and `dpm_solver_3m`, measures order 3. diffusers' single-step solver has the "
        "factor.",
        "`solver_order=2` loses no order; `DPMSolverSinglestepScheduler`, `UniPC` and `DEIS` of "
        "order 3 have it",
        report="diffusers-third-order",
    ),
    "sde-third-order": Note(
        "defect",
        "sde-dpmsolver++ of order 3 has a wrong sign",
        "`D2` is multiplied by (1 - e^(-2h) - 2h) / (2h)² - 0.5. As h goes to 0 this goes to -1, "
        "and the integral that it stands for to 0: it must be + 0.5, and twice that. Order 3 "
        "then converges at order 1, with more error than order 2. The single-step solver with "
        '`solver_type="heun"` has the same sign, and does not converge at all.',
        "`solver_order=2`",
        "huggingface/diffusers PR #9104 (merged) added both; no thread about the sign was seen",
        "diffusers-sde-third-order",
    ),
    "single-step-sde": Note(
        "defect",
        "Single-step sde-dpmsolver++ of order 2 and 3 has more error than of order 1",
        "`DPMSolverSinglestepScheduler.step` draws new noise at each call, so that the points "
        "inside a step and its end are on different paths of the SDE, and differences of "
        "readings hold noise that the step does not know of. On one path, as in "
        "`DPMSolverSDEScheduler`, the same step is of order 2. The errors are of as many calls.",
        "`DPMSolverMultistepScheduler` with `sde-dpmsolver++` and order 2, or "
        "`DPMSolverSDEScheduler`",
        "huggingface/diffusers PR #8269 (merged, after #4251) and PR #9104 (merged) added them; no "
        "thread about their noise was seen",
        "diffusers-single-step-sde",
    ),
    "unbound": Note(
        "defect",
        "Order 3 of two SDE solvers does not run",
        "The third step of `multistep_dpm_solver_third_order_update` has no branch for "
        "`EDMDPMSolverMultistepScheduler` with `sde-dpmsolver++`, nor for "
        "`DPMSolverMultistepScheduler` with `sde-dpmsolver`.",
        "`solver_order=2`",
        "the second: huggingface/diffusers PR #13778 (closed)",
        "diffusers-unbound",
    ),
    "last-noise": Note(
        "defect",
        "DDPM adds noise to the final sample",
        "`DDPMScheduler.step` adds noise if t > 0, and not if there is a next timestep. With "
        "`trailing`, or with `steps_offset`, no timestep is 0, and with `fixed_large` the sample "
        "itself gets noise. Ho et al. 2020, Algorithm 2, has z = 0 in the last step.",
        "`fixed_small`, whose variance there is 0, or take the last step's `pred_original_sample`",
        report="diffusers-last-noise",
    ),
    "variances": Note(
        "defect",
        '`variance_type="fixed_large_log"` gives NaN',
        "`_get_variance` returns log β, and `step` takes the square root of it.",
        "`fixed_large`",
        "huggingface/diffusers #14569, PR #14571 (open)",
        "diffusers-learned-variance",
    ),
    "churn": Note(
        "defect",
        "`s_churn` adds noise of which the network is not told",
        "`EulerDiscreteScheduler.step` and `EDMEulerScheduler.step`: in Karras et al. 2022, "
        "Algorithm 2, noise is added and then the network is called. Here `step` adds it after "
        "the call, and goes on with the output for the sample without it. What is added at the "
        "last step stays.",
        "`s_churn=0`, the default",
        report="diffusers-churn",
    ),
    "undo": Note(
        "defect",
        "`RePaintScheduler.undo_step` adds the noise of other steps",
        "The pipeline calls it where x is at the level before t, and it multiplies by "
        "β_t .. β_(t + T/S - 1). From the level before t to that of t it is β_(t - T/S + 1) .. "
        "β_t. With as many steps as training timesteps it is right.",
        "`num_inference_steps=1000`, or `jump_n_sample=1`, which never goes back",
        report="diffusers-undo-step",
    ),
    "half-precision": Note(
        "defect",
        "`add_noise` and `get_velocity` lose the noise of clean timesteps in half precision",
        "ᾱ is cast to the sample's dtype before 1 - ᾱ is taken, which is 0 where ᾱ rounds to 1.",
        "call them in float32",
        "huggingface/diffusers PR #9004 (merged) names it, and is about the examples",
        "diffusers-half-precision",
    ),
    "laplace": Note(
        "defect",
        '`beta_schedule="laplace"` takes sqrt(ᾱ) for ᾱ',
        "`betas_for_alpha_bar` expects ᾱ(t), and gets sqrt(SNR / (1 + SNR)). Halfway the log-SNR "
        "of Hang et al. 2024 is 0, so that ᾱ = 1/2.",
        "square it: `trained_betas` of 1 - ᾱ_t / ᾱ_{t-1} with ᾱ = SNR / (1 + SNR)",
        report="diffusers-laplace",
    ),
    "learned-variance": Note(
        "difference",
        '`variance_type="learned"` takes the output for a variance',
        "OpenAI's `LEARNED` networks say its logarithm, of which the square root is NaN. The "
        "documentation does not say which is meant.",
        "the exponential of the output's second half; `learned_range` is as in Nichol & Dhariwal "
        "2021",
    ),
    "no-effect": Note(
        "difference",
        "Network calls without effect",
        "A step from ᾱ_0 to ᾱ_0, where the last timestep is 0 and the sampler ends there; or "
        "from sigma_min to sigma_min, where the end repeats the grid's; or from alpha = 0, where "
        "`IPNDMScheduler` takes x_0 for 0. The image is right, and a call is lost.",
        '`steps_offset=1` or `set_alpha_to_one=True`; `final_sigmas_type="zero"`; for IPNDM '
        "`trained_betas`, which are its sigmas, from below 1",
    ),
    "residual": Note(
        "difference",
        "DEIS and SASolver cannot end at clean data",
        "Their last sigma is that of timestep 0, without `final_sigmas_type`: samples keep that "
        "noise, as in the papers, whose grids end at a small time.",
        "call the network once more at timestep 0 and take its x_0",
        "huggingface/diffusers #5689 is of another scheduler",
    ),
    "inversion": Note(
        "difference",
        "DDIM inversion tells the network where the step ends",
        "The timesteps that a pipeline gives to the network are those of the levels that the "
        "steps go to, while its input is at the level before. Inversions in the literature "
        "approximate in this way; Song et al. 2021, Eq. 13, evaluates at the level of the input. "
        "The update itself is right.",
        "tell the network `timestep - T // S`, and start from a level with noise",
    ),
    "labels": Note(
        "difference",
        "With `use_karras_sigmas`, some schedulers round timesteps and not levels",
        "The network is told an integer, and the solver computes with the level itself. "
        "`EulerDiscreteScheduler` keeps the fraction, interpolated.",
    ),
    "zero-snr": Note(
        "difference",
        "`rescale_betas_zero_snr` means two things",
        "Some schedulers end at ᾱ_T = 0, where x_0 from eps is a division by 0; others at 2^-24.",
        "a network that predicts v",
        "huggingface/diffusers #3851 (closed) is of the first kind",
    ),
    "thresholding": Note(
        "difference",
        "`thresholding=True` is clipping by default",
        "`sample_max_value` is 1 by default, and bounds the threshold from above.",
        "a larger `sample_max_value`",
    ),
    "stage": Note(
        "difference",
        "The inner stage of single-step DPM-Solver of order 3",
        'With `solver_type="midpoint"`, the stage at two thirds takes h / 2 for a mean of the '
        "exponential weight, which is exact in Lu et al. 2022a, Eq. 4.7. The order is the same.",
    ),
    "first-moment": Note(
        "difference",
        "SASolver combines two readings as UniPC's bh1 does",
        "Where two readings are combined it takes h² / 2 for the first moment; `sa_solver` takes "
        "the moment. At tau = 0 it equals `unipc_3` with bh1.",
    ),
    "extrapolates": Note(
        "difference",
        "The last step of LMS into clean data",
        "It extrapolates eps from four readings; here `lms` takes x_0 as it is read.",
    ),
}
