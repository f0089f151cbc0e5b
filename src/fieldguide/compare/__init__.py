"""Several recipes on the same photos and the same folds: which is better, and is it by chance?"""
