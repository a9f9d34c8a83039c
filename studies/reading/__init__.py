"""Reading: on which line of the screen a person sees what a model hides."""
