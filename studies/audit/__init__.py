"""What does each source of an audit find, and how often does an audit raise a false alarm?"""
