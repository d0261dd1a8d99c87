"""`make demo`: from model files to numbers measured on a fleet, through the command line and the SDK only.

`__main__` tells the story. The other files are its parts: server, commands, models, rules, devices, and the check of figures.
"""
