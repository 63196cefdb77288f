"""What a layer keeps for its backward pass: one policy per preset, by the names of activations.

`layer_input` [B T D]; `qkv`, queries, keys and values [B T N H] as attention takes them; `context`,
attention's result, with splash also its log-sum; `mlp_up`, the products into the mlp [B T F].
"""

from collections.abc import Callable
from typing import Any

import jax

_policies = jax.checkpoint_policies
POLICIES: dict[str, Callable[..., Any] | None] = {
    # The scan over layers carries the input: it is kept anyway.
    "full": _policies.nothing_saveable,
    # Of a layer's products only the one out of attention is computed again.
    "minimal": _policies.save_only_these_names("qkv", "context", "mlp_up"),
    # Attention stays, in the host's memory; the mlp, as wide as all of it, is computed again.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input", "qkv", "context"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematerialize(body: Callable[..., Any], preset: str) -> Callable[..., Any]:
    """The body of a scan over layers, so that its backward pass keeps what the preset says."""
    if preset == "none":
        return body
    # Inside a scan nothing is shared with the forward pass, so no barrier against it is needed.
    return jax.checkpoint(body, policy=POLICIES[preset], prevent_cse=False)
