"""T3, flow, vocoder and voice encoder in MLX, Apple's array library, for device="mlx".

MLX arrays are lazy, and only the thread that made one may evaluate it, but any thread may drive the engine. So
everything that is kept or returned here has been evaluated.
"""

import os

# By default an M5 multiplies float32 with 10 bits of mantissa, which changes the tokens of a seed. MLX reads this
# variable at its first operation.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
