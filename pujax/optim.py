"""Learning-rate schedules and the optimiser, from a `TrainingConfig`."""

import optax

from pujax.config import TrainingConfig


def make_schedule(config: TrainingConfig) -> optax.Schedule:
    """Return the learning rate as a function of the step: linear warm-up, then cosine, step or constant."""
    decay_steps = max(config.num_steps - config.warmup_steps, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, decay_steps)
    elif config.schedule == "step":
        drops = {round(share * decay_steps): 0.1 for share in config.milestones}
        main = optax.piecewise_constant_schedule(config.learning_rate, drops)
    else:
        main = optax.constant_schedule(config.learning_rate)
    if not config.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Return momentum SGD as PyTorch's: decay is added to the gradient before the momentum, on every parameter."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(make_schedule(config), momentum=config.momentum or None, nesterov=config.nesterov),
    )
