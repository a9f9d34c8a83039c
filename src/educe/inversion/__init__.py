"""Inversion: which text, put into a prompt, makes the model do what a perturbation does?

targets    what the text should do, as a loss that its tokens are to make small
places     where it is put: what stands before it runs once, gradients are exact
direction  of the change of the stream
said       of the change of what the model says
taught     what a perturbed model does
searches   greedy coordinate gradient, evolution with fluency, soft prompts
control    what texts make, and what no text was meant for
reach      the test: reachable, not reachable within this budget, or no power here
"""
