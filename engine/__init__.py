"""What the scripts share: command lines, devices, training runs, worker processes, evaluation, pictures."""
