"""Which neurons of a made-up model fire: rows of gate and predictor whose signs follow a wanted distribution.

No file is written here. The residual stream that the rows read is made of three groups of channels, in this order:

| channels | what they hold |
|---|---|
| constant | the same value for every token, through all layers: attention output and down rows are zero there |
| feature | the token's embedding (plus a little that layers add) |
| rest | the same, but gate rows weigh it so little that it carries `REST_SHARE` of their variance |

The row of neuron j weighs the constant channels by an offset o_j and the features by a random a_j, so over tokens its
score is normal with mean o_j and a known deviation s_j, and it fires with probability p_j = Phi(o_j / s_j). The p_j
fall as a power of the neuron's rank, which makes a hot set; their mean is the share asked for. RMSNorm multiplies all
of a score by one positive number and leaves its sign alone.

The predictor reads the residual stream before the norm. Its hidden units pass the constant (always positive) and each
feature twice, as f and -f, so that after ReLU `a * relu(f) - a * relu(-f) = a * f`: it sees all of the gate's score
but the rest, and misses only what that decides. What normality, LayerNorm's mean and the rounding of weights leave over
is removed by one shift of all offsets of a layer, found by computing the scores of sampled tokens with the rows as
encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from synthetic_blocks import SMALLEST_GROUP, Bytes, Floats, Places, Pool, constant_groups, encode, group_size

from powerinfer_py.errors import OptionError
from powerinfer_py.gguf import GGMLType

# Rank to the power -0.75: 43 % of the neurons then hold 81 % of the firing, as PowerInfer measured on LLaMA(ReGLU)-70B.
POWER = 0.75
# No neuron fires for nearly every token unless nearly every neuron shall.
HIGHEST = 0.98
REST_SHARE = 0.01
# In deviations; a neuron with this offset always fires.
ALWAYS = 6.0
# Neurons and tokens that the shift of a layer is computed from: the share it gives is good to 0.1 % absolute.
SAMPLED_NEURONS = 1024
SAMPLED_TOKENS = 256


@dataclass(frozen=True)
class Channels:
    """How the residual stream is divided. amplitude: standard deviation of embeddings, and the constant's value."""

    n_embd: int
    n_constant: int
    n_feature: int
    amplitude: float = 8.0

    @property
    def n_rest(self) -> int:
        """Channels that are neither constant nor feature."""
        return self.n_embd - self.n_constant - self.n_feature

    @property
    def feature_scale(self) -> float:
        """Deviation of a gate row's weights on features: scores then have a variance of about 1."""
        return float(((1 - REST_SHARE) / self.n_feature) ** 0.5)

    @property
    def rest_scale(self) -> float:
        """Deviation of a gate row's weights on the rest."""
        return float((REST_SHARE / max(1, self.n_rest)) ** 0.5)

    @classmethod
    def fitting(cls, n_embd: int, rank: int, ggml_type: GGMLType) -> Channels:
        """The most features that a predictor of this rank can pass. Raises OptionError where there is room for none."""
        group = group_size(ggml_type)
        room = min((rank - SMALLEST_GROUP) // 2, n_embd - 2 * group)
        n_feature = room // group * group
        if n_feature < 1 or n_embd % group or rank % SMALLEST_GROUP:
            raise OptionError(
                f"embedding length {n_embd} and rank {rank} do not suit {ggml_type.name}: they must be multiples of "
                f"{group} and {SMALLEST_GROUP}, at least {3 * group} and {2 * group + SMALLEST_GROUP}"
            )
        return cls(n_embd, group, n_feature)


@dataclass(frozen=True, eq=False)
class Hotness:
    """Firing of the neurons of a layer, hottest first. deviations: Phi^-1 of `probabilities` (n_ff)."""

    probabilities: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]

    @classmethod
    def power_law(cls, n_ff: int, share: float) -> Hotness:
        """Probabilities min(highest, c / rank^POWER) whose mean is `share`, from 0 (exclusive) to 1."""
        falling = np.arange(1, n_ff + 1, dtype=np.float64) ** -POWER
        highest = max(HIGHEST, 1 - (1 - share) ** 2)
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            too_many = np.minimum(highest, middle * falling).mean() > share
            low, high = (low, middle) if too_many else (middle, high)
        probabilities = np.minimum(highest, high * falling)
        inverse = NormalDist().inv_cdf
        deviations = [ALWAYS if p >= 1 else min(ALWAYS, inverse(p)) for p in probabilities.tolist()]
        return cls(probabilities, np.array(deviations))


@dataclass(frozen=True, eq=False)
class Firing:
    """One layer's neurons: where their rows are cut from the pool, and their offsets in gate and predictor, float32."""

    feature_places: Places
    rest_places: Places
    gate_offsets: Floats
    predictor_offsets: Floats


@dataclass(frozen=True, eq=False)
class FiringRows:
    """Makes the rows of gates and predictors in their types; `plan` draws the neurons of a layer."""

    channels: Channels
    pool: Pool
    gate_type: GGMLType
    predictor_type: GGMLType

    def plan(self, rng: np.random.Generator, hotness: Hotness, x: Floats, normed: Floats) -> Firing:
        """Draws a layer's neurons, in random order of hotness, and sets their offsets.

        x, normed: residual streams of sampled tokens at this layer before and after the norm (n_tokens, n_embd).
        """
        n_ff, c = len(hotness.deviations), self.channels
        order = rng.permutation(n_ff)
        deviations = hotness.deviations[order]
        features, rest = self.pool.places(rng, n_ff, c.n_feature), self.pool.places(rng, n_ff, c.n_rest)
        feature_norm = _norms(self.pool, features, c.n_feature) * c.feature_scale
        norm = np.hypot(feature_norm, _norms(self.pool, rest, c.n_rest) * c.rest_scale)
        # Every so many of the neurons by hotness, so that the sample has the whole distribution.
        step = max(1, n_ff // SAMPLED_NEURONS)
        sample = np.argsort(order)[step // 2 :: step]
        target = float(hotness.probabilities[step // 2 :: step].mean())
        first, last = c.n_constant, c.n_constant + c.n_feature
        rows = self.pool.decoded_rows(features[sample], c.n_feature, self.gate_type, c.feature_scale)
        scores = normed[:, first:last] @ rows.T
        rows = self.pool.decoded_rows(rest[sample], c.n_rest, self.gate_type, c.rest_scale)
        scores += normed[:, last:] @ rows.T
        gate = _shift(scores, normed[:, :1], norm[sample], deviations[sample], target)
        rows = self.pool.decoded_rows(features[sample], c.n_feature, self.predictor_type, c.feature_scale)
        scores = (x[:, first:last] / c.amplitude) @ rows.T
        predictor = _shift(scores, x[:, :1] / c.amplitude, feature_norm[sample], deviations[sample], target)
        return Firing(
            features,
            rest,
            (norm * (deviations + gate)).astype(np.float32),
            (feature_norm * (deviations + predictor)).astype(np.float32),
        )

    def gate_rows(self, firing: Firing, rows: slice) -> Bytes:
        """Rows of the matrix that decides which neurons fire: (n, bytes of a row)."""
        c = self.channels
        return np.concatenate(
            [
                constant_groups(firing.gate_offsets[rows] / c.n_constant, self.gate_type),
                self.pool.rows(firing.feature_places[rows], c.n_feature, self.gate_type, c.feature_scale),
                self.pool.rows(firing.rest_places[rows], c.n_rest, self.gate_type, c.rest_scale),
            ],
            axis=1,
        )

    def fc1(self, rank: int) -> Bytes:
        """Hidden units: the constant 32 times, every feature, every feature negated, and zeros up to the rank."""
        c = self.channels
        values = np.zeros((rank, c.n_embd), np.float32)
        values[:SMALLEST_GROUP, : c.n_constant] = 1 / (c.n_constant * c.amplitude)
        ids = np.arange(c.n_feature)
        values[SMALLEST_GROUP + ids, c.n_constant + ids] = 1 / c.amplitude
        values[SMALLEST_GROUP + c.n_feature + ids, c.n_constant + ids] = -1 / c.amplitude
        return encode(values, self.predictor_type)

    def fc2_rows(self, firing: Firing, rows: slice, rank: int) -> Bytes:
        """Rows (n, bytes of a row) that add offset and features up; hidden units beyond them weigh zero."""
        c, kind = self.channels, self.predictor_type
        places = firing.feature_places[rows]
        unused = (rank - SMALLEST_GROUP - 2 * c.n_feature) // SMALLEST_GROUP
        zeros = constant_groups(np.zeros(len(places), np.float32), kind)
        return np.concatenate(
            [
                constant_groups(firing.predictor_offsets[rows] / SMALLEST_GROUP, kind),
                self.pool.rows(places, c.n_feature, kind, c.feature_scale),
                self.pool.rows(places, c.n_feature, kind, -c.feature_scale),
                *[zeros] * unused,
            ],
            axis=1,
        )


def _norms(pool: Pool, places: Places, cols: int) -> npt.NDArray[np.float64]:
    """Euclidean norm of each row of `cols` values."""
    sums = np.concatenate([[0.0], np.cumsum(np.square(pool.values, dtype=np.float64))])
    return np.asarray(np.sqrt(sums[places + cols] - sums[places]))


def _shift(
    scores: npt.NDArray[np.floating],
    constant: Floats,
    norms: npt.NDArray[np.float64],
    deviations: npt.NDArray[np.float64],
    target: float,
) -> float:
    """What to add to all deviations so that a share `target` of (token, neuron) pairs fires."""
    if target >= 1:
        return 0.0
    # A score is positive where its deviation exceeds this one's.
    needed = np.sort((-scores / (constant * norms) - deviations).reshape(-1))
    return float(needed[min(len(needed) - 1, round(target * len(needed)))])
