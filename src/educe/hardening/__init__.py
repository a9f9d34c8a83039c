"""Hardening: an adapter that keeps answers as they are under perturbations; and distilling one.

    loss = mean over examples of  Σ_t KL( p(· | x, y_<t) ‖ q_θ(· | x, y_<t) )       under a vector θ
                                + Σ_t KL( p(· | x, y_<t) ‖ q(· | x, y_<t) )         without one

``p`` is the model as it was, ``q`` the model with the new adapter, ``x`` a prompt, and ``y`` what
``p`` answers when nothing perturbs it. A new ``θ`` is drawn at each step from a pool: vectors that
a search found, random ones after several layers, or those of new searches on the model as it is
then.

    pushes       vectors after layers, the KL under one, and what it makes the model write
    pools        where vectors come from
    adapter      the new adapter beside the model's own, and both written as one
    training     `harden`
    distilling   `distill`, the baseline: fine-tuning on what a perturbation made the model write
    records      settings and results
    card         what came out, as a table, a card and JSON
"""
