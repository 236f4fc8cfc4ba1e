"""The PU head: multi-scale features -> squeeze-and-excitation gate -> logit, for any backbone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.layers import KERNEL_INIT, linear


class PUScorer(nn.Module):
    """One logit from the pooled features of all stages.

    Pooling comes before the gate, so the gate weighs channels of the joined vector, sample by sample. With
    `gate=True, hidden=0` this is the released head (its 960 features give 116,161 parameters).
    """

    reduction: int = 16
    gate: bool = True
    hidden: int = 0

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...]) -> jax.Array:
        """Return pu_logits float32 [B] from float32 features [B, C_i], shallow to deep."""
        x = jnp.concatenate(features, axis=-1)
        channels = x.shape[-1]
        if self.gate:
            squeeze = nn.Dense(
                max(channels // self.reduction, 1), use_bias=False, kernel_init=KERNEL_INIT, name="squeeze"
            )
            excite = nn.Dense(channels, use_bias=False, kernel_init=KERNEL_INIT, name="excite")
            x = x * nn.sigmoid(excite(nn.relu(squeeze(x))))
        if self.hidden:
            x = nn.relu(linear(self.hidden, channels, dtype=jnp.float32, name="hidden")(x))
        return linear(1, x.shape[-1], dtype=jnp.float32, name="linear")(x)[:, 0]
