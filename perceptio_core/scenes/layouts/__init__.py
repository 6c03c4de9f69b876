"""Writers of the rendered world in the official layouts, one module a data set or benchmark (ours).

Each layout makes numbered items, one or a few pictures and a row each, independently of one another, so that what is
written depends neither on the number of workers nor on interruptions.
"""
