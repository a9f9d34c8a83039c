"""A loaded model, its blocks, its prompts, and the proof that both are read right."""
