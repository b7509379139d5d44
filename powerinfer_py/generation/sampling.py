"""Picks the next token from the logits of one sequence. Not a decode loop, and it knows no text.

The chain is PowerInfer's: logit bias, penalties, mask, top-k, top-p, min-p, temperature, draw. top-p and min-p look at
probabilities before temperature, top-p at those renormalised over what top-k left.

Invariant: on one machine the same logits, parameters, history and seed give the same token; among equal logits the
lowest id comes first; NaN, +inf or nothing to choose from raises NumericalError.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import SamplingParams
from powerinfer_py.errors import NumericalError, OptionError

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# How many candidates are sorted first when only top-p limits them; most distributions have their mass in fewer.
FIRST_NUCLEUS = 256


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities under the model itself: no bias, penalty, filter or temperature.

    top: the most likely tokens with their log-probabilities, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As JSON: token_id, logprob, top (list of token_id and logprob); -inf, which JSON lacks, is null."""
        top = [{"token_id": token, "logprob": _json_number(logprob)} for token, logprob in self.top]
        return {"token_id": self.token_id, "logprob": _json_number(self.logprob), "top": top}


class Sampler:
    """Sampling state of one sequence: its random stream and the tokens that penalties look back on.

    banned: ids that are never picked, such as the end-of-text tokens under ignore_eos.
    Raises OptionError where `params.logit_bias` or `banned` names a token outside the vocabulary.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, seed: int, banned: Sequence[int] = ()) -> None:
        outside = [token for token in (*params.logit_bias, *banned) if not 0 <= token < n_vocab]
        if outside:
            raise OptionError(f"token {outside[0]} of the logit bias is not in the vocabulary of {n_vocab} tokens")
        self._params = params
        self._n_vocab = n_vocab
        self._random = np.random.Generator(np.random.PCG64(seed))
        bias = {**params.logit_bias, **dict.fromkeys(banned, -np.inf)}
        self._bias_ids = np.array(list(bias.keys()), dtype=np.int64)
        self._bias = np.array(list(bias.values()), dtype=np.float64)
        self._history: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def prime(self, prompt_ids: Sequence[int]) -> None:
        """Puts a prompt into the history that penalties look back on."""
        for token in prompt_ids:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Appends a token to the history; `sample` does not do so by itself."""
        window = self._params.repeat_last_n
        self._history.append(token)
        self._counts[token] += 1
        if 0 <= window < len(self._history):
            oldest = self._history.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def sample(self, logits: Logits, allowed: npt.NDArray[np.bool_] | None = None) -> int:
        """The next token id. logits: float32 (n_vocab,), left unchanged. allowed: bool (n_vocab,), None for all.

        Draws exactly one random number, none where temperature is 0 or less. Raises NumericalError where the logits
        hold NaN or +inf, or no token with a finite logit is left.
        """
        if logits.shape != (self._n_vocab,):
            raise ValueError(f"logits have shape {logits.shape}, expected ({self._n_vocab},)")
        require_usable(logits)
        adjusted = self._adjust(logits, allowed)
        if self._params.temperature <= 0:
            return int(adjusted.argmax())
        ids = self._candidates(adjusted)
        return self._draw(ids, adjusted[ids].astype(np.float64))

    def _adjust(self, logits: Logits, allowed: npt.NDArray[np.bool_] | None) -> Logits:
        """Logits after bias, penalties and mask: float32 (n_vocab,), `logits` itself where nothing changes."""
        params = self._params
        penalised = bool(self._counts) and (
            params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        if not (self._bias_ids.size or penalised or allowed is not None):
            return logits
        adjusted = logits.copy()
        with np.errstate(over="ignore"):  # beyond float32 is -inf, a ban, or +inf, refused below
            if self._bias_ids.size:
                adjusted[self._bias_ids] = adjusted[self._bias_ids] + self._bias
            if penalised:
                self._penalise(adjusted)
        if allowed is not None:
            adjusted[~allowed] = -np.inf
        require_usable(adjusted, "the logits after bias and penalties")
        return adjusted

    def _penalise(self, logits: Logits) -> None:
        params = self._params
        ids = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.float64, count=len(self._counts))
        values = logits[ids].astype(np.float64)
        values = np.where(values > 0, values / params.repeat_penalty, values * params.repeat_penalty)
        logits[ids] = values - counts * params.frequency_penalty - params.presence_penalty

    def _candidates(self, logits: Logits) -> Ids:
        """Ids that top-k, top-p and min-p leave, in an order that depends on nothing but logits and parameters.

        top-p and min-p each keep the beginning of the order by probability, so both together keep the shorter one, and
        min-p can go first: it needs no sorting, and what it leaves is small (at most 1 / min_p).
        """
        params = self._params
        ids = largest(logits, params.top_k) if 0 < params.top_k < logits.size else np.arange(logits.size)
        if params.top_p >= 1 and params.min_p <= 0:
            return ids
        values = logits[ids].astype(np.float64)
        values -= values.max()
        weights = np.exp(values)
        total = weights.sum()
        if params.min_p > 0:
            kept = weights >= params.min_p
            ids, weights = ids[kept], weights[kept]
        if params.top_p < 1:
            ids = ids[_nucleus(weights, params.top_p * total)]
        return ids

    def _draw(self, ids: Ids, values: npt.NDArray[np.float64]) -> int:
        """Inverse transform over softmax(values / temperature)."""
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, which is its meaning
            weights = np.exp((values - values.max()) / self._params.temperature)
        cumulative = weights.cumsum()
        total = cumulative[-1]
        index = int(cumulative.searchsorted(self._random.random() * total, side="right"))
        # The product may round up to the total; the first index that reaches it is the last with any weight.
        last = int(cumulative.searchsorted(total, side="left"))
        return int(ids[min(index, last)])


def require_usable(logits: Logits, what: str = "the model's logits") -> None:
    """Raises NumericalError unless the largest logit is finite, which NaN, +inf and all -inf each prevent."""
    top = float(logits.max()) if logits.size else -np.inf
    if np.isfinite(top):
        return
    if top == -np.inf:
        raise NumericalError(f"no token is left to pick: {what} are all -inf")
    raise NumericalError(f"no token can be picked: {what} hold {'NaN' if np.isnan(top) else '+inf'}")


def largest(values: npt.NDArray[np.floating], k: int) -> Ids:
    """Indices of the k largest of `values` (n,), largest first, equal values by ascending index. Takes 0 <= k <= n.

    One partition and one comparison over all, a sort of k: 128,000 float32 in under a millisecond.
    """
    n = values.size
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    if k < n:
        kth = np.partition(values, n - k)[n - k]
        above = np.flatnonzero(values > kth)
        equal = np.flatnonzero(values == kth)[: k - above.size]
        ids = np.sort(np.concatenate([above, equal]))
    else:
        ids = np.arange(n)
    return ids[np.argsort(-values[ids], kind="stable")]


def token_logprobs(logits: Logits, token: int, n_top: int = 0) -> TokenLogprobs:
    """Log-probability of `token` and of the `n_top` most likely tokens. logits: float32 (n_vocab,), unmodified."""
    require_usable(logits)
    values = logits.astype(np.float64)
    top = values.max()
    log_total = top + np.log(np.exp(values - top).sum())
    best = largest(values, min(n_top, values.size))
    pairs = tuple((int(i), float(values[i] - log_total)) for i in best)
    return TokenLogprobs(token, float(values[token] - log_total), pairs)


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _nucleus(weights: npt.NDArray[np.float64], target: float) -> Ids:
    """Indices of the fewest largest weights (n,) whose sum reaches `target`, at least one; largest first."""
    k = FIRST_NUCLEUS
    while True:
        k = min(k, weights.size)
        order = largest(weights, k)
        cumulative = weights[order].cumsum()
        if k == weights.size or cumulative[-1] >= target:
            return order[: int(cumulative.searchsorted(target, side="left")) + 1]
        k *= 8
