"""What later layers read of a layer, and which dimensions the output needs.

`parts` finds the matrices with which blocks read the stream, `ways` the independent ways in which
one layer affects the next, `backwards` carries importance from the unembedding down, `thinning`
keeps a few dimensions and measures what becomes of the output, `single` does so for one answer,
and `survey` is the whole job.
"""
