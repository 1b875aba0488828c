"""Pure maths on tensors, parameter dicts and callables."""
