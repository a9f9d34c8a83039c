"""Notebook: the pipeline of a run, a call for each step, with frames between them.

texts     write, score and compare: a run in memory, and its texts as a frame
runs      a run on disk with what one does with it; discover, which is the whole main job
"""
