"""A calculator for models: arithmetic, and the letters of words.

Small models are bad at arithmetic and can't see the letters of their own tokens. Both are easy for a program,
so a model may ask one (tools.py). What is computed is never given to Python's `eval`. The expression is
parsed into a syntax tree, and the tree is walked with a few known nodes; anything else is refused:

    numbers    + - * / // % **, parentheses, thousands commas       exact fractions, at most 256 bits
    strings    len(s)  s.count(t)  s.upper()  s.lower()  s[::-1]    quoted, within the expression

The length of the expression bounds the size of the tree, and the bits bound the work at each node, so
nothing takes longer than a millisecond or two.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable
from fractions import Fraction

LONGEST_EXPRESSION = 200  # characters
LARGEST_BITS = 256  # of a numerator or a denominator
DIGITS = 10  # of a number that isn't whole, as it is written

Value = Fraction | str

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}


class CannotCompute(ValueError):
    """An expression that the calculator refuses; its text is the reason, in a few words."""


def calculator(expression: str) -> str:
    """The value of `expression` as text, or "error: " and why there is none. Never raises."""
    try:
        return written(compute(expression))
    except CannotCompute as error:
        return f"error: {error}"


def compute(expression: str) -> Value:
    """The value of `expression`. Raises CannotCompute."""
    if len(expression) > LONGEST_EXPRESSION:
        raise CannotCompute(f"more than {LONGEST_EXPRESSION} characters")
    if not any(quote in expression for quote in "'\""):
        expression = _THOUSANDS.sub("", expression).replace("×", "*").replace("÷", "/")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a string such as "\d"
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, CannotCompute):
            raise
        raise CannotCompute("not an expression") from None


def written(value: Value) -> str:
    """A value for a reply: 18, 0.5, 3.333333333, strawberry."""
    if isinstance(value, str):
        return value
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.{DIGITS}g}"


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=str(text)):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise CannotCompute("half a character")  # no tokens could spell the answer
            return text
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return _bounded(Fraction(number))
        case ast.Constant(value=float(number)):
            return _bounded(_decimal(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_number(left), _number(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _number(left), _number(right)
            if b == 0 and isinstance(op, ast.Div | ast.FloorDiv | ast.Mod):
                raise CannotCompute("division by zero")
            return _bounded(_OPERATORS[type(op)](a, b))
        case ast.Call(func=ast.Name(id="len"), args=[text], keywords=[]):
            return Fraction(len(_text(text)))
        case ast.Call(func=ast.Attribute(value=text, attr="count"), args=[part], keywords=[]):
            return Fraction(_text(text).count(_text(part)))
        case ast.Call(func=ast.Attribute(value=text, attr="upper"), args=[], keywords=[]):
            return _text(text).upper()
        case ast.Call(func=ast.Attribute(value=text, attr="lower"), args=[], keywords=[]):
            return _text(text).lower()
        case ast.Subscript(
            value=text,
            slice=ast.Slice(lower=None, upper=None, step=ast.UnaryOp(op=ast.USub(), operand=one)),
        ) if isinstance(one, ast.Constant) and one.value == 1:
            return _text(text)[::-1]
    raise CannotCompute("only arithmetic, and len, count, upper, lower and [::-1] of quoted text")


def _number(node: ast.expr) -> Fraction:
    value = _value(node)
    if isinstance(value, str):
        raise CannotCompute("text where a number belongs")
    return value


def _text(node: ast.expr) -> str:
    value = _value(node)
    if not isinstance(value, str):
        raise CannotCompute("a number where text belongs")
    return value


def _decimal(number: float) -> Fraction:
    """0.1 as one tenth, which no float is: the shortest decimal that reads back to the same float."""
    try:
        return Fraction(repr(number))
    except ValueError:  # infinite: 1e999
        raise CannotCompute("too large a number") from None


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CannotCompute("an exponent that isn't whole")
    if base == 0 and exponent < 0:
        raise CannotCompute("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and (bits - 1) * abs(exponent.numerator) > LARGEST_BITS:
        raise CannotCompute("too large a number")
    return _bounded(Fraction(base ** int(exponent)))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST_BITS:
        raise CannotCompute("too large a number")
    return value
