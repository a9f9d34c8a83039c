"""Inversion: which text, put into a prompt, makes the model do what a perturbation does?

targets    what the text should do, as a loss that its tokens are to make small
places     where it is put: what stands before it runs once, gradients are exact
searches   greedy coordinate gradient, evolution with fluency, soft prompts, nearest examples
control    vectors whose answer is known, and vectors of which nothing is known
reach      the test: reachable, not reachable within this budget, or no power here
"""
