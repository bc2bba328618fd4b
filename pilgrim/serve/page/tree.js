// A chat is a tree of messages, each with the number of the one before it (pilgrim/serve/history.py). What is on
// the screen is one branch: from the leaf back to the beginning.

export function branch(chat) {
  const byId = new Map(chat.messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(chat.leaf); at; at = byId.get(at.parent)) found.push(at);
  return found.reverse();
}

// What else follows the same message: other wordings, other replies. Replies that stand side by side are one of them,
// for which `message` stands if it is among them, and else the last.
export function siblings(chat, message) {
  const all = chat.messages.filter((other) => other.parent === message.parent && other.role === message.role);
  const last = new Map(all.map((one) => [one.about.group ?? one.id, one]));
  last.set(message.about.group ?? message.id, message);
  return all.filter((one) => last.get(one.about.group ?? one.id) === one);
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
  return chat.messages.filter((other) => other.parent === message.parent && other.about.group === group);
}

// Which message the next one follows. Turns alternate, so one that got no reply is not followed: the next stands in its
// place, as another branch.
export function behindTheLastReply(chat) {
  const last = branch(chat).at(-1);
  return last?.role === "user" ? last.parent : chat.leaf;
}
