"""The tiny noisy classifier of golden file 11, and names and shapes of the published ones."""

import json

import numpy as np

from edm_jax.foreign import guided_classifier as gc
from tests.support.paths import GOLDEN
from tests.support.weights_guided_shapes import attention, residual

CONFIG = {"noise_schedule": "cosine", "num_head_channels": 32}


def arrays():
    with np.load(GOLDEN / "11_noisy_classifier.npz") as archive:
        return dict(archive)


def tensors(golden):
    return {str(name): golden[f"params/{name}"] for name in golden["names"]}


def network(golden):
    """Description of the golden network, written by hand from its recorded arguments."""
    c = json.loads(str(golden["config"]))
    return {
        "name": "NoisyClassifier",
        "img_resolution": c["image_size"],
        "in_channels": c["in_channels"],
        "num_classes": c["out_channels"],
        "model_channels": c["model_channels"],
        "channel_mult": c["channel_mult"],
        "num_blocks": c["num_res_blocks"],
        "attn_resolutions": [c["image_size"] // r for r in c["attention_resolutions"]],
        "channels_per_head": c["num_head_channels"],
    }


def variables(golden):
    return gc.to_variables(tensors(golden), network(golden), 1 << 30)


def published_shapes(size, depth, mult, rates, width=128, classes=1000):
    """Names and shapes of a published file, from its block table."""
    emb = 4 * width
    first = int(mult[0] * width)
    shapes = {
        "time_embed.0.weight": (emb, width),
        "time_embed.0.bias": (emb,),
        "time_embed.2.weight": (emb, emb),
        "time_embed.2.bias": (emb,),
        "input_blocks.0.0.weight": (first, 3, 3, 3),
        "input_blocks.0.0.bias": (first,),
    }
    channels, k = first, 0
    for level, m in enumerate(mult):
        for i in range(depth + (level > 0)):
            down, out = level > 0 and i == 0, int(m * width)
            out = channels if down else out
            k += 1
            shapes |= residual(f"input_blocks.{k}.0", channels, out, emb, channels != out)
            if 2**level in rates and not down:
                shapes |= attention(f"input_blocks.{k}.1", out)
            channels = out
    shapes |= residual("middle_block.0", channels, channels, emb, False)
    shapes |= attention("middle_block.1", channels)
    shapes |= residual("middle_block.2", channels, channels, emb, False)
    tokens = (size >> (len(mult) - 1)) ** 2 + 1
    shapes |= {
        "out.0.weight": (channels,),
        "out.0.bias": (channels,),
        "out.2.positional_embedding": (channels, tokens),
        "out.2.qkv_proj.weight": (3 * channels, channels, 1),
        "out.2.qkv_proj.bias": (3 * channels,),
        "out.2.c_proj.weight": (classes, channels, 1),
        "out.2.c_proj.bias": (classes,),
    }
    return shapes
