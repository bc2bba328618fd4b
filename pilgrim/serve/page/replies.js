// Asking a model, and putting its reply together from the pieces that come.

import { events } from "/page/api.js";
import { asked } from "/page/dials.js";

const LIKELIEST = 5; // other tokens to be told of at each place

// A model that was not taught to chat only continues a text: it is shown the last message alone.
export const continues = (model) => model.chats === false;

// A message as the API wants it: before and behind each call of a tool a turn of its own. The places of calls are
// counted in characters, of which JavaScript's strings may take two for one.
function turns({ role, content, about }) {
  const characters = Array.from(content);
  const said = [];
  let at = 0;
  for (const { offset, result, ...call } of about.calls ?? []) {
    said.push({ role, content: characters.slice(at, offset).join(""), tool_calls: [call] });
    said.push({ role: "tool", tool_call_id: call.id, content: result });
    at = offset;
  }
  const rest = characters.slice(at).join("");
  return said.length && !rest.trim() ? said : [...said, { role, content: rest }];
}

function body(model, messages, dials, wantsTokens) {
  const common = { model: model.id, stream: true, stream_options: { include_usage: true }, ...asked(dials) };
  if (continues(model)) {
    return { ...common, prompt: messages.at(-1).content, ...(wantsTokens ? { logprobs: LIKELIEST } : {}) };
  }
  const system = dials.system.trim() ? [{ role: "system", content: dials.system }] : [];
  return {
    ...common,
    messages: [...system, ...messages.flatMap(turns)],
    ...(wantsTokens ? { logprobs: true, top_logprobs: LIKELIEST } : {}),
    ...(dials.tools ? { run_tools: ["calculator"] } : {}),
  };
}

// Tokens as [text, log-probability, [[text, log-probability], …]], from either endpoint's own shape.
function tokensOf(logprobs) {
  if (logprobs?.content) {
    return logprobs.content.map((one) => [
      one.token,
      one.logprob,
      (one.top_logprobs ?? []).map((other) => [other.token, other.logprob]),
    ]);
  }
  return (logprobs?.tokens ?? []).map((text, i) => [
    text,
    logprobs.token_logprobs[i],
    Object.entries(logprobs.top_logprobs?.[i] ?? {}),
  ]);
}

// Fills in `message` as the reply comes, and calls `grown` after each piece. Returns when it is over; raises what
// went wrong, an AbortError if `signal` stopped it. What has come until then stays in `message`.
export async function reply(message, model, messages, dials, wantsTokens, signal, grown) {
  const path = continues(model) ? "/v1/completions" : "/v1/chat/completions";
  const about = message.about;
  const began = performance.now();
  about.most = dials.max_tokens;
  try {
    for await (const event of events(path, body(model, messages, dials, wantsTokens), signal)) {
      if (event.usage) about.written = event.usage.completion_tokens;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const piece = choice.delta?.content ?? choice.text ?? "";
      if (piece && about.first_s === undefined) about.first_s = (performance.now() - began) / 1000;
      message.content += piece;
      if (choice.delta?.executed_calls) (about.calls ??= []).push(...choice.delta.executed_calls);
      about.tokens.push(...tokensOf(choice.logprobs));
      if (choice.finish_reason) about.finish = choice.finish_reason;
      about.elapsed_s = (performance.now() - began) / 1000;
      grown();
    }
  } finally {
    about.elapsed_s = (performance.now() - began) / 1000;
    about.written ??= about.tokens.length;
  }
}
