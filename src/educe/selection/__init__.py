"""Selection: finding the good perturbations cheaply, without being fooled by luck.

    halving   many candidates on few prompts, the best of them on more (`halving`)
    chance    what the best of as many candidates would reach if all were alike (`chance`)
    bandit    Thompson sampling over settings, where trying all of them is too dear (`bandit`)
    proxy     a secret in the prompt, as a cheap task to choose settings by (`proxy`)

The best of many is lucky as well as good. So whatever is chosen is tested again on prompts and
samples that took no part, that number is the one shown, and the control goes through all of it with
the same budget.
"""
