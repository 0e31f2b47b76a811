"""Generated pictures of coloured shapes (or handwritten digits) on a 3 x 3 grid, and everything one can ask of them.

They are the data of the tests, of the tiny recipes and of ``sightbridge quickstart``: small enough for a CPU, real
enough that a model must see to answer.
"""
