"""From images to numbers: feature extractors, accumulators, metrics, references.

    extractor = extractors.build("inception", weights="pt_inception-2015-12-05-6726825d.pth")
    accumulation = feature_metrics.Accumulation(("fid", "kid"), extractor, resolution=(32, 32))
    for first_index, images in batches:                   # uint8 (B, H, W, C)
        accumulation.update(extractor(images), first_index)
    reference = load_reference("cifar10.npz", extractor.name)
    results = accumulation.results(reference)             # {"fid": Result(value=...), ...}

A reference is made in the same way with ``more=("halves", "features")`` and
`feature_metrics.Accumulation.reference`.  An interrupted evaluation goes on from
``accumulation.state()``, and several hosts `merge` what each has: the numbers are the same,
as images are told by their index and not by when they come.

`registry` says how a metric is added: a file, and a line there.
"""
