"""How good a detector is: average precision, kinds of mistakes, confidence intervals, cost."""
