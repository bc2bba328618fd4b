// A chat is a tree of messages, each with the number of the one before it (pilgrim/serve/history.py). What is on
// the screen is one branch: from the leaf back to the beginning.

export function branch(chat) {
  const byId = new Map(chat.messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(chat.leaf); at; at = byId.get(at.parent)) found.push(at);
  return found.reverse();
}

// The messages that follow the same one: other wordings, other replies.
export function siblings(chat, message) {
  return chat.messages.filter((other) => other.parent === message.parent && other.role === message.role);
}

// The newest message at the end of what follows `message`: where one arrives by changing to its branch.
export function newestLeaf(chat, message) {
  let at = message;
  for (;;) {
    const next = chat.messages.filter((other) => other.parent === at.id).at(-1);
    if (!next) return at;
    at = next;
  }
}

// Replies that were asked for together, of several models, stand side by side.
export function together(chat, message) {
  const group = message.about.group;
  if (!group) return [message];
  return siblings(chat, message).filter((other) => other.about.group === group);
}
