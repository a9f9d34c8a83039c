"""Studies with educe: each a folder with its question, command, table and answer."""
