def add_arguments(add): pass
