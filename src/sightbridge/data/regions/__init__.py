"""Data sets about parts of pictures: which marks their regions get, and what is said of them.

The data sets, their sentences and the odds of every choice are ViP-LLaVA's (https://arxiv.org/abs/2312.00784,
https://github.com/WisconsinAIVision/ViP-LLaVA). Choices are drawn in its order, so a plan that is realised with
``random.Random(n)`` gives the very text that the original gives after ``random.seed(n)``.
"""
