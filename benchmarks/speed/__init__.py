"""Speed of training and distillation, compared with their limit and with other implementations."""
