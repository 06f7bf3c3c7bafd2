"""Objects of other libraries, as the checks take them; each module imports its library when used.

`diffusers`: a scheduler. `kdiffusion`: a loop `(model, x, sigmas)`. `azula`: a sampler.
`openai`: a Gaussian diffusion, its schedule, posterior and sampler. `betas`: betas and a step of
your own.
"""
