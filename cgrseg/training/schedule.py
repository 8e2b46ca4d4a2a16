"""The learning rate as a function of the iteration alone.

Origin: the published recipe (160,000 iterations, polynomial decay of power 1 to 0,
linear warm-up over the first 1,500 from 1e-6 of the rate).  The warm-up multiplies
the decayed rate, so the two meet without a jump.  Nothing here keeps state: a
resumed run asks for the same iteration and gets the same rate.
"""

from __future__ import annotations

from cgrseg.config.schema import ScheduleConfig


def rate_factor(iteration: int, schedule: ScheduleConfig) -> float:
    """Share of the full rate at an iteration.

    Args:
        iteration: optimiser steps already done, 0 for the first one.
        schedule: length, warm-up and power.

    Returns:
        A factor in [0, 1]; 0 from `schedule.max_iters` on.
    """
    remaining = max(0.0, 1.0 - iteration / schedule.max_iters)
    factor = remaining**schedule.power
    if iteration < schedule.warmup_iters:
        missing = (1.0 - iteration / schedule.warmup_iters) * (1.0 - schedule.warmup_ratio)
        factor *= 1.0 - missing
    return float(factor)


def learning_rate(iteration: int, schedule: ScheduleConfig, base_lr: float) -> float:
    """Rate of a parameter group whose full rate is `base_lr`, at an iteration (from 0)."""
    return base_lr * rate_factor(iteration, schedule)
