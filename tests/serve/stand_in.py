"""The engine's interface of live requests, from generate_stream and threads; until the engine itself has it."""

from __future__ import annotations

import threading
import time
import types
from collections import deque


class Speech:
    def __init__(self, model, rows, text, first_chunk, how):
        self.model, self.rows = model, rows
        self.job = model._job(text, how.pop("voice"), how.pop("exaggeration", None), how.pop("seed"),
                              how.pop("language_id"), **{k: v for k, v in how.items()
                                                         if k not in ("n_cfm_timesteps", "max_chars")})
        self.steps, self.max_chars = how.get("n_cfm_timesteps"), how.get("max_chars", 280)
        self.first_chunk = first_chunk
        self.done = self.started = False
        self.tokens, self.stops = [], []
        self._chunks, self._callback, self._error = deque(), None, None
        self._cancel = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def is_set(self):
        return self._cancel.is_set()

    def _work(self):
        import torch

        from chatterbox_opt.streaming import Chunks

        with self.rows:
            self.started = True
            try:
                if self._cancel.is_set():
                    raise RuntimeError("cancelled")
                if self.first_chunk is None:
                    how = dict(n_cfm_timesteps=self.steps, max_chars=self.max_chars, cancel=self)
                    (speech,) = self.model.speak([self.job], **how)
                    self.tokens, self.stops = [torch.zeros(speech.wav.shape[1] // 960)], ["eos"]
                    self._give(speech.wav)
                else:
                    speak = self.model.pipeline.stream(
                        self.job, first=round(self.first_chunk * 25), max_chars=self.max_chars, steps=self.steps,
                        watermark=self.model._mark(),
                    )
                    n = 0
                    for chunk in Chunks(lambda emit, cancel: speak(emit, cancel, None), self):
                        n += chunk.shape[1]
                        self._give(chunk)
                    self.tokens, self.stops = [torch.zeros(n // 960)], ["eos"]
            except BaseException as error:
                self._error = error
            self.done = True
        self._tell()

    def _give(self, chunk):
        while len(self._chunks) > 4 and not self._cancel.is_set():
            time.sleep(0.005)
        self._chunks.append(chunk)
        self._tell()

    def _tell(self):
        if self._callback:
            self._callback()

    def notify(self, callback):
        self._callback = callback
        if self._chunks or self.done:
            callback()

    def take(self):
        done = self.done
        if self._chunks:
            return self._chunks.popleft()
        if not done:
            return None
        if self._error is not None:
            raise self._error
        raise StopIteration

    def cancel(self):
        self._cancel.set()

    close = cancel


def with_engine(model, rows=4):
    gate = threading.BoundedSemaphore(rows)
    live = []
    lock = threading.Lock()

    def submit(self, text, *, first_chunk=1.0, **how):
        self_how = {"voice": None, "language_id": None, "exaggeration": None, "seed": None, **how}
        with lock:
            speech = Speech(self, gate, text, first_chunk, self_how)
            live.append(speech)
        return speech

    def stats(self):
        now = [s for s in live if not s.done]
        shape = {"buckets": [0.1, 1.0], "counts": [0, 0, 0], "sum": 0.0, "count": 0}
        return {
            "live": len(now), "waiting": sum(not s.started for s in now), "rows": rows, "steps": 0, "tokens": 0,
            "tokens_per_second": 0.0, "first_sound": shape, "real_time_factor": shape, "underruns": 0,
            "cancelled": sum(s.is_set() for s in live), "failed": 0, "finished": len(live) - len(now),
        }

    model.submit, model.stats = types.MethodType(submit, model), types.MethodType(stats, model)
    model.close = lambda: [s.close() for s in live]
    return model
