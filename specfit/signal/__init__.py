"""Signals on a background: what is looked for, fitted beside the background, and what the looking costs.

What to use when:

- `specfit.signal.hypotheses`: Gaussians on a grid of masses, or shapes of one's own.
- `specfit.signal.score_test`: the significance of every hypothesis from one fit of the background alone; microseconds.
- `specfit.signal.joint_fit`: background and signal fitted together; exact, for the hypotheses that matter.
- `specfit.signal.look_elsewhere`: the p-value of the largest significance of many.

The refit masks what these find; `specfit.search` makes limits and pseudo-experiments of them.
"""
