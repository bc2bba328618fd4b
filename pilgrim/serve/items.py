"""What a client may send to /v1/responses, and the same as a chat.

OpenAI's newer shape of a conversation is a list of *items*: messages, calls of functions, and what these
returned, one behind the other. A chat has calls within the message that makes them. Nothing else differs, so
here items become messages, and chats.py does the rest. The system's words may stand in `instructions`, in
messages at the beginning, or in both; our models know one system's turn, so these become its paragraphs.

Nothing is kept between two requests: the whole conversation comes with each.
"""

from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pilgrim.serve.asked import (
    AskedChat,
    Body,
    CalledFunction,
    ChatMessage,
    Dials,
    FunctionDefinition,
    NamedFunction,
    NamedSchema,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
    Whole,
)
from pilgrim.serve.refusals import Refusal

Status = Literal["in_progress", "completed", "incomplete"]


class ItemText(Body):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[None] | None = None
    logprobs: list[None] | None = None


def _text(content: str | list[ItemText]) -> str:
    """Several parts are lines."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class MessageItem(Body):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ItemText]
    id: str | None = None
    status: Status | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class ResultItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ItemText]
    id: str | None = None
    status: Status | None = None


def _kind(item: Any) -> str:
    """Which of the three an item is; told as a message unless it says otherwise."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return {"function_call": "Call", "function_call_output": "Result"}.get(str(kind), "Message")


Item = Annotated[
    Annotated[MessageItem, Tag("Message")]
    | Annotated[CallItem, Tag("Call")]
    | Annotated[ResultItem, Tag("Result")],
    Discriminator(_kind),
]


class FunctionTool(FunctionDefinition):
    type: Literal["function"]


class ChosenFunction(NamedFunction):
    type: Literal["function"]


class PlainForm(Body):
    type: Literal["text", "json_object"]


class SchemaForm(NamedSchema):
    type: Literal["json_schema"]


class TextSettings(Body):
    format: PlainForm | SchemaForm | None = None


class AskedResponse(Dials):
    """/v1/responses: answer the last item."""

    input: str | list[Item] = Field(description="the whole conversation, or what the user says")
    instructions: str | None = None
    max_output_tokens: Whole | None = Field(None, ge=1, description="longest reply; never beyond the context")
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = Field(None, description="taken; a reply makes one call at a time")
    text: TextSettings | None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = Field(None, description="only false is served, and meant where it is left out")
    previous_response_id: str | None = Field(None, description="only null is served")

    @property
    def form(self) -> PlainForm | SchemaForm:
        return (self.text and self.text.format) or PlainForm(type="text")

    def as_chat(self) -> AskedChat:
        """The same, asked of /v1/chat/completions. Raises Refusal."""
        for name in ("store", "previous_response_id"):
            if getattr(self, name):
                raise Refusal(
                    f"{name}: this server keeps nothing of what is said; leave it out, and send the whole "
                    "conversation as input",
                    param=name,
                    code="unsupported_parameter",
                )
        form, chosen = self.form, self.tool_choice
        tools = [Tool(type="function", function=tool) for tool in self.tools or ()]
        return AskedChat(
            **{name: getattr(self, name) for name in Dials.model_fields},
            messages=_messages(self),
            max_completion_tokens=self.max_output_tokens,
            tools=tools or None,
            tool_choice=NamedTool(type="function", function=chosen)
            if isinstance(chosen, ChosenFunction)
            else chosen,
            response_format=ResponseFormat(
                type=form.type, json_schema=form if isinstance(form, SchemaForm) else None
            ),
        )


def _of_system(item: MessageItem | CallItem | ResultItem) -> bool:
    return isinstance(item, MessageItem) and item.role in ("system", "developer")


def _messages(asked: AskedResponse) -> list[ChatMessage]:
    if isinstance(asked.input, str):
        items: list[MessageItem | CallItem | ResultItem] = [MessageItem(role="user", content=asked.input)]
    elif asked.input:
        items = list(asked.input)
    else:
        raise Refusal("input: is an empty list; give a message of the user", param="input")
    words = [asked.instructions] if asked.instructions else []
    leading = list(takewhile(_of_system, items))
    words += [_text(item.content) for item in leading if isinstance(item, MessageItem)]
    found = [ChatMessage(role="system", content="\n\n".join(words))] if words else []
    for item in items[len(leading) :]:
        if isinstance(item, MessageItem):
            found.append(ChatMessage(role=item.role, content=_text(item.content)))
        elif isinstance(item, ResultItem):
            found.append(ChatMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        else:  # it belongs to the message before it, if that is the assistant's
            before = found.pop() if found and found[-1].role == "assistant" else ChatMessage(role="assistant")
            function = CalledFunction(name=item.name, arguments=item.arguments)
            calls = [
                *(before.tool_calls or ()),
                ToolCall(id=item.call_id, type="function", function=function),
            ]
            found.append(before.model_copy(update={"tool_calls": calls}))
    return found
