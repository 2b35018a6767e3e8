"""The stages of the table, one function each: options → the two formulations on the same inputs."""
