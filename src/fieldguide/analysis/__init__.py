"""The worth of predictions: how sure, how often wrong, and which classes fit.

Knows nothing of training, of run folders or of how results are shown.
"""
