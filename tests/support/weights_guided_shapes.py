"""Names and shapes of guided-diffusion models for the tests."""

import numpy as np

# What files of this size leave out.
GIVEN = {"image_size": 16, "noise_schedule": "cosine", "num_head_channels": 64}


def residual(prefix, c_in, c_out, emb, skip):
    yield f"{prefix}.in_layers.0.weight", (c_in,)
    yield f"{prefix}.in_layers.0.bias", (c_in,)
    yield f"{prefix}.in_layers.2.weight", (c_out, c_in, 3, 3)
    yield f"{prefix}.in_layers.2.bias", (c_out,)
    yield f"{prefix}.emb_layers.1.weight", (2 * c_out, emb)
    yield f"{prefix}.emb_layers.1.bias", (2 * c_out,)
    yield f"{prefix}.out_layers.0.weight", (c_out,)
    yield f"{prefix}.out_layers.0.bias", (c_out,)
    yield f"{prefix}.out_layers.3.weight", (c_out, c_out, 3, 3)
    yield f"{prefix}.out_layers.3.bias", (c_out,)
    if skip:
        yield f"{prefix}.skip_connection.weight", (c_out, c_in, 1, 1)
        yield f"{prefix}.skip_connection.bias", (c_out,)


def attention(prefix, c):
    for name, shape in (
        ("norm.weight", (c,)),
        ("norm.bias", (c,)),
        ("qkv.weight", (3 * c, c, 1)),
        ("qkv.bias", (3 * c,)),
        ("proj_out.weight", (c, c, 1)),
        ("proj_out.bias", (c,)),
    ):
        yield f"{prefix}.{name}", shape


def released_shapes():
    """Names and shapes of the 64x64 model, spelled out from its block table."""
    shapes = {
        "time_embed.0.weight": (768, 192),
        "time_embed.0.bias": (768,),
        "time_embed.2.weight": (768, 768),
        "time_embed.2.bias": (768,),
        "label_emb.weight": (1000, 768),
        "input_blocks.0.0.weight": (192, 3, 3, 3),
        "input_blocks.0.0.bias": (192,),
    }
    widths, channels, skips, k = (192, 384, 576, 768), 192, [192], 0
    for level, width in enumerate(widths):
        for i in range(3 + (level > 0)):
            down = level > 0 and i == 0
            k += 1
            out = channels if down else width
            shapes |= residual(f"input_blocks.{k}.0", channels, out, 768, channels != out)
            if level and not down:
                shapes |= attention(f"input_blocks.{k}.1", out)
            channels = out
            skips.append(out)
    shapes |= residual("middle_block.0", 768, 768, 768, False)
    shapes |= attention("middle_block.1", 768)
    shapes |= residual("middle_block.2", 768, 768, 768, False)
    k = 0
    for level in (3, 2, 1, 0):
        for i in range(4):
            c_in = channels + skips.pop()
            channels = widths[level]
            shapes |= residual(f"output_blocks.{k}.0", c_in, channels, 768, True)
            if level:
                shapes |= attention(f"output_blocks.{k}.1", channels)
            if level and i == 3:
                shapes |= residual(f"output_blocks.{k}.2", channels, channels, 768, False)
            k += 1
    return shapes | {
        "out.0.weight": (192,),
        "out.0.bias": (192,),
        "out.2.weight": (6, 192, 3, 3),
        "out.2.bias": (6,),
    }


def hollow(shapes):
    """Arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def narrow_shapes():
    """A model of base width 128 with one level, to change."""
    shapes = {
        "time_embed.0.weight": (512, 128),
        "time_embed.0.bias": (512,),
        "time_embed.2.weight": (512, 512),
        "time_embed.2.bias": (512,),
        "input_blocks.0.0.weight": (128, 3, 3, 3),
        "input_blocks.0.0.bias": (128,),
        "out.0.weight": (128,),
        "out.0.bias": (128,),
        "out.2.weight": (6, 128, 3, 3),
        "out.2.bias": (6,),
    }
    shapes |= residual("input_blocks.1.0", 128, 128, 512, False)
    shapes |= residual("middle_block.0", 128, 128, 512, False)
    shapes |= attention("middle_block.1", 128)
    shapes |= residual("middle_block.2", 128, 128, 512, False)
    for k in (0, 1):
        shapes |= residual(f"output_blocks.{k}.0", 256, 128, 512, True)
    return shapes
