"""A model's networks as programs written for chatterbox-tts use them: `model.t3`, `model.s3gen` and `model.ve`, with
its methods, its shapes and its names of weights."""
