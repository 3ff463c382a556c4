"""T3, flow and vocoder by MLX, Apple's array library, for device="mlx". Nothing outside this folder imports it
before it is asked for.

Arrays are lazy and belong to the thread that made them until they are computed, while the engine is driven by any: what
a call leaves behind here has been computed by then.
"""

import os

# An M5 multiplies float32 with 10 bits unless this says otherwise before the first operation: tokens of a seed differ.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
