"""Formats of data sets: a module or a package each, which finds the files and reads them."""
