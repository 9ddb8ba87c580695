r"""AFHQv2 at 64x64 as the paper trained it (EDM Table 2, configuration F).

    python experiments/main.py --config=configs/afhqv2_64.py --workdir=runs/afhqv2
    python experiments/main.py --config=configs/afhqv2_64.py:ncsnpp --workdir=runs/...

Variants: ``ddpmpp`` (default, the paper's "VP" column) or ``ncsnpp`` ("VE"); ``uncond`` is
the only choice of labels.  It is FFHQ's configuration with more dropout, as there are fewer
images.

In the paper: 8 V100 GPUs, about 4 days, 200 million images in float32.  FID to expect, 50,000
images against all training images, 40 steps (79 network calls), the best of three seed
ranges: ddpmpp 1.96, ncsnpp 2.16.

Data, from the root folder of AFHQ v2, all sub-folders included:

    python experiments/main.py --mode=dataset --source=afhqv2 \
        --dest=datasets/afhqv2-64x64.zip --resolution=64x64
"""

import ml_collections

from configs import ffhq64


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The published configuration of a variant."""
    config = ffhq64.get_config(variant)
    config.data.path = "datasets/afhqv2-64x64.zip"
    config.model.SongUNet.dropout = 0.25
    return config.lock()
