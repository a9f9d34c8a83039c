"""Runs: what is asked of a model, what it writes, what is said of that, and the main job.

store       the folder and its five tables
settings    what was asked for; the model and the prompts that are meant
same_model  a run goes on only with the model that it began with
work        the run that is worked on, locked, with its model and prompts
fill        writes what was asked for and is missing, and scores it
asking      which texts the main job asks for
stages      the main job: preparing, searching, fill, judging, chosen
"""
