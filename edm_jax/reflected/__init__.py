"""Reflected diffusion on a box (Lou and Ermon 2023): no sample ever leaves it.

    box = Box()                                        # [-1, 1], like images
    x = box.corrupt(y, sigma, noise)                   # the forward process, exactly
    target = box.target(x, y, sigma)                   # what D(x; sigma) is regressed on
    images = sampling.run(samplers.get("heun"), denoise, noise, sigmas)

The domain and its kernel are `edm_jax.domains`, the loss is `edm_jax.train.reflected`, the
samplers that reflect are `edm_jax.samplers.reflected`.  Here, `sampling` runs any sampler on a
model, `sources` are data with exact answers; what `--mode=validate` measures of them is
`edm_jax.exact.reflected_promises`, and likelihoods are `edm_jax.likelihood`.
"""
