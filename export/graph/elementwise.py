"""The operators that work on each element alone."""

from __future__ import annotations

UNARY = {"Relu", "Tanh", "Sigmoid", "Elu", "Selu", "LeakyRelu", "Softplus", "Softsign", "Erf", "Exp", "Neg", "Abs"}
UNARY |= {"HardSigmoid", "HardSwish", "Sqrt", "Reciprocal", "Identity", "Cast", "Clip", "Gelu", "Mish", "Celu"}
UNARY |= {"Log", "Not", "Sign", "ThresholdedRelu", "Shrink"}
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow", "And", "Or"}
BINARY |= {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"}
ELEMENTWISE = UNARY | BINARY | {"Where"}
