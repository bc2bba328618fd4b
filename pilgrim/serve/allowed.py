"""What a chat's reply may hold: calls of which tools, and in which form it must be.

What a model may call is what the client has defined, and of our own tools those that it asked the server to
run. Without any, and with `tool_choice` "none", the mark that begins a call is never drawn. Nor are the marks
of results ever: results come from whoever ran the call.

A reply in a form that was asked for (`response_format`), and a call that must be made (`tool_choice`), are
held to by the engine, which draws no other token (infer/constrained.py).
"""

from pilgrim.infer.constrained import json_object, json_schema, tool_call
from pilgrim.infer.grammar import Grammar
from pilgrim.infer.tools import ALWAYS
from pilgrim.serve.asked import AskedChat, NamedTool
from pilgrim.serve.refusals import Refusal, blamed_on
from pilgrim.serve.writing import Tools
from pilgrim.text.calls import BUILT_IN, CALL, END_OF_CALL, END_OF_RESPONSE, RESPONSE
from pilgrim.text.tokenizer import Tokenizer

NEVER = float("-inf")  # as a bias


def tools_of(asked: AskedChat) -> Tools:
    """What may be called. Raises Refusal."""
    theirs = {tool.function.name for tool in asked.tools or ()}
    for name in sorted(theirs & BUILT_IN.keys()):
        raise Refusal(
            f"tools: {name} is the name of a tool that is built in, and needs no definition; "
            "ask for it by run_tools, or give yours another name",
            param="tools",
        )
    if asked.tool_choice == "none":
        return Tools()
    return Tools(theirs, {name: ALWAYS[name] for name in asked.run_tools or ()})


def never_drawn(tools: Tools) -> dict[int, float]:
    """Marks that have no place in the reply, as biases."""
    marks = [RESPONSE, END_OF_RESPONSE, *([] if tools else [CALL, END_OF_CALL])]
    return dict.fromkeys(marks, NEVER)


def grammar_of(asked: AskedChat, tools: Tools, tokenizer: Tokenizer) -> Grammar | None:
    """What the reply must be like; each choice needs one of its own. Raises Refusal."""
    form = asked.response_format
    if form is None or form.type == "text":
        return _forced_call(asked, tools, tokenizer)
    if tools:
        raise Refusal(
            'response_format: a reply in JSON can\'t call tools; give tool_choice = "none", or leave one out',
            param="response_format",
        )
    with blamed_on("response_format"):
        if form.type == "json_object":
            return json_object(tokenizer)
        if form.json_schema is None:
            raise Refusal("response_format.json_schema is missing; give it", param="response_format")
        return json_schema(form.json_schema.definition, tokenizer)


def _forced_call(asked: AskedChat, tools: Tools, tokenizer: Tokenizer) -> Grammar | None:
    """A call and nothing else, where `tool_choice` wants that."""
    if asked.tool_choice in (None, "none", "auto"):
        return None
    wanted = asked.tool_choice.function.name if isinstance(asked.tool_choice, NamedTool) else None
    if not tools.theirs or wanted not in (None, *tools.theirs):
        what = f"{wanted} is no function of tools" if wanted else "there is no function in tools"
        raise Refusal(f"tool_choice: {what}; define it there", param="tool_choice")
    schemas = {
        tool.function.name: tool.function.parameters or {"type": "object"}
        for tool in asked.tools or ()
        if wanted in (None, tool.function.name)
    }
    with blamed_on("tools"):
        return tool_call(schemas, tokenizer)
