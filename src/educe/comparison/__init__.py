"""Comparing: what was found beside its control, with what tells chance from more than chance.

stats     rates, intervals and tests; which points no other beats (Pareto)
cluster   completions that say the same are one behaviour
verdict   what a behaviour is, by thresholds that all stand there
summary   a run as frames, and every number that a table or page shows
halving   the best of many, cheaply: few prompts for all, more for the best
chance    what the best of as many would reach if all were alike
bandit    Thompson sampling over settings, where trying all of them is too dear
norm      what the norm tells: `points` of curves, their `spread`, `equal` effect and damage

All of it is read from the tables of runs; nothing here runs a model.
"""
