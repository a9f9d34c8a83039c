"""Sampling: search around what was found, with judges as the density.

    objective    the interface: settings in, estimates and their noise out; priors; the loop
    ensemble     emcee's moves and snooker, with noise taken for noise, and tempering
    elliptical   elliptical slice sampling for a Gaussian prior
    diversity    quality-diversity, by pyribs
    best         draws of the prior, CMA-ES, TPE, a walk around a find
    annealing    from hot to cold, at one norm after the other
    diagnostics  how well a chain has mixed, and what it says
    space        the directions that are searched in
    evaluating   settings as perturbations of a run, judged by what the model writes
    measures     of behaviour
    searching    the whole: search, control, finds, re-test

A new sampler is one file with a class whose ``walk`` yields settings and is sent what came of them.
"""
