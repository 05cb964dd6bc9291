"""Stand-in."""

from dataclasses import dataclass

import constriction
import numpy as np


@dataclass(frozen=True)
class ResidualTable:
    pass


def _model(pixels_shape, x0_hat, guard, scale):
    mean = np.round((x0_hat.reshape(-1) + 1) * 127.5 * 4) / 4
    return constriction.stream.model.QuantizedLaplace(0, 255), mean, np.full(mean.size, scale)


def encode(pixels, x0_hat, table, guard):
    err = np.abs(pixels - (x0_hat + 1) * 127.5).mean()
    byte = int(np.clip(round(np.log2(err + 1e-3) * 8) + 100, 0, 255))
    model, mean, scale = _model(pixels.shape, x0_hat, guard, 2 ** ((byte - 100) / 8))
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(pixels.reshape(-1).astype(np.int32), model, mean, scale)
    return bytes([byte]) + coder.get_compressed().astype("<u4").tobytes()


def decode(payload, x0_hat, table, guard, shape):
    model, mean, scale = _model(shape, x0_hat, guard, 2 ** ((payload[0] - 100) / 8))
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload[1:], "<u4").astype(np.uint32))
    return coder.decode(model, mean, scale).astype(np.uint8).reshape(shape)
