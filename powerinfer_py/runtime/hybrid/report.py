"""A plan as people and programs read it: the table of device memory, and what share of the model is there."""

from __future__ import annotations

from typing import Any

from powerinfer_py.placement.budget import gib_text
from powerinfer_py.runtime.hybrid.model import HybridPlan


def plan_dict(plan: HybridPlan) -> dict[str, Any]:
    """As JSON values: the ledger, the device, and shares; captured_share and expected_s are None where unknown."""
    placement, config, chosen = plan.placement, plan.sizes.config, plan.chosen
    n_neurons = config.n_layer * config.n_ff
    return {
        **plan.ledger.to_dict(),
        "device": plan.device.name,
        "blocks_on_gpu": sum(layer.block_on_gpu for layer in placement.layers),
        "blocks": config.n_layer,
        "head_on_gpu": placement.head_on_gpu,
        "neurons_on_gpu_share": placement.n_hot / n_neurons,
        "captured_share": None if chosen is None else chosen.captured,
        "expected_s": None if chosen is None else chosen.expected_s,
        "index_origin": None if chosen is None else chosen.origin,
        "index_path": None if chosen is None or chosen.path is None else str(chosen.path),
        "prompt_chunk": plan.fixed.n_tokens,
        "host_buffer_bytes": plan.device.host_bytes,
    }


def plan_lines(plan: HybridPlan) -> list[str]:
    """The table that is printed at load."""
    ledger, report = plan.ledger, plan_dict(plan)
    lines = [f"GPU memory on {plan.device.name}, budget {gib_text(ledger.budget_bytes)}:"]
    rows = [(line.name, line.reserved_bytes, line.used_bytes) for line in ledger.table()]
    rows.append(("total", ledger.reserved_bytes, ledger.used_bytes))
    lines += [f"  {name:<22}{_mib(reserved)} reserved{_mib(used)} used" for name, reserved, used in rows]
    lines.append(f"  {'free':<22}{_mib(ledger.free_bytes)}")
    captured = report["captured_share"]
    activations = "" if captured is None else f", {captured:.1%} of expected activations"
    head = "the head" if report["head_on_gpu"] else "no head"
    lines.append(
        f"on the GPU: {report['blocks_on_gpu']} of {report['blocks']} blocks, {head}, "
        f"{report['neurons_on_gpu_share']:.1%} of the neurons{activations}"
    )
    if report["expected_s"]:
        lines.append(f"expected (an estimate, not a measurement): {1 / report['expected_s']:.1f} tokens/s")
    lines.append(f"host memory locked for copies to and from the GPU: {_mib(plan.device.host_bytes).strip()}")
    if plan.fixed.n_tokens < plan.batch_size:
        lines.append(
            f"prompts run {plan.fixed.n_tokens} tokens at a time instead of {plan.batch_size}: longer chunks would "
            "take too much of the budget"
        )
    return lines


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):12.1f} MiB"
