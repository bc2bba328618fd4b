// The page: one chat on the screen, the list of the others beside it.
//
// Nothing here holds a message twice. `chat` is what the server keeps (or, where it keeps none, the same shape with
// numbers of our own); whatever happens changes `chat`, and `draw` shows it. Only a reply that is being written is
// drawn by itself, piece by piece.

import { Refused, ask, download, keepKey } from "/page/api.js";
import { DEFAULTS, Dials, remembered } from "/page/dials.js";
import { copyButton, render } from "/page/markdown.js";
import { continues, reply } from "/page/replies.js";
import { tokenView } from "/page/tokens.js";
import { behindTheLastReply, branch, newestLeaf, siblings, together } from "/page/tree.js";

const $ = (id) => document.getElementById(id);
const log = $("log");

let models = [];
let keeps = true; // whether the server keeps chats
let chat = emptyChat();
let writing = null; // an AbortController while a reply is being written
let sending = null; // the chat in which a person has sent a message, until that is kept
let ownNumbers = 0;

function emptyChat() {
  return { id: null, title: "", leaf: null, messages: [], settings: { ...remembered() } };
}

function element(tag, about = {}, ...children) {
  const { aria, data, on, ...rest } = about;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria ?? {})) made.setAttribute(`aria-${name}`, value);
  Object.assign(made.dataset, data ?? {});
  for (const [name, listener] of Object.entries(on ?? {})) made.addEventListener(name, listener);
  made.append(...children);
  return made;
}

const button = (text, label, click, about = {}) =>
  element("button", { type: "button", textContent: text, title: label, aria: { label }, on: { click }, ...about });

function say(text) {
  $("status").textContent = text; // read aloud by screen readers
}

// Runs what a person asked for; what goes wrong is told, and nothing else is lost by it.
async function attempt(work) {
  $("problem").hidden = true;
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error instanceof Refused && error.status === 401) return askForKey(work);
    tellProblem(error);
  }
}

function tellProblem(error) {
  const follows = isAtEnd();
  let text = error instanceof Refused ? error.message : `This page made a mistake (${error.message}); load it again.`;
  if (error.code === "context_length_exceeded") text += ". Edit a message further up, or begin a new chat.";
  $("problem").textContent = text;
  $("problem").hidden = false;
  if (follows) log.scrollTop = log.scrollHeight; // the room for it was taken from the end of the chat
}

async function askForKey(work) {
  const dialog = $("key-dialog");
  dialog.returnValue = ""; // what the last one was closed by would be believed again
  dialog.showModal();
  await new Promise((over) => dialog.addEventListener("close", over, { once: true }));
  if (dialog.returnValue !== "ok" || !$("key").value) return;
  keepKey($("key").value);
  return attempt(work);
}

// Keeping -----------------------------------------------------------------------------------------------

// While the server works, a person may open another chat. So these two are told which one they are for.

// Whether a chat is kept is settled with its first message.
async function keepChat(mine) {
  if (mine.messages.length || !keeps || $("temporary").checked) return;
  mine.id ??= (await ask("POST", "/api/chats", { settings: mine.settings })).id;
}

async function keepMessage(mine, { role, content, parent, about }) {
  let kept;
  if (mine.id === null) {
    kept = { id: ++ownNumbers, role, content, parent, about };
  } else {
    kept = await ask("POST", `/api/chats/${mine.id}/messages`, { role, content, parent, about });
  }
  mine.messages.push(kept);
  mine.leaf = kept.id;
  mine.title ||= role === "user" ? content.slice(0, 80) : "";
  return kept;
}

async function goTo(message) {
  chat.leaf = newestLeaf(chat, message).id;
  draw();
  if (chat.id !== null) await ask("PATCH", `/api/chats/${chat.id}`, { leaf: chat.leaf });
}

async function keepSettings() {
  if (chat.id !== null) await ask("PATCH", `/api/chats/${chat.id}`, { settings: chat.settings });
}

// Asking ------------------------------------------------------------------------------------------------

const modelOf = (id) => models.find((model) => model.id === id);

function chosenModels() {
  const beside = $("compare").getAttribute("aria-pressed") === "true";
  return [modelOf($("model").value), beside && modelOf($("other").value)].filter(Boolean);
}

// Whether a message is being sent or answered: one at a time.
const busy = () => Boolean(writing) || sending === chat;

// Does `work`, unless another is being done, for the chat on the screen.
async function sendOnce(work) {
  if (busy()) return;
  const mine = chat;
  sending = mine;
  await attempt(work);
  if (sending === mine) sending = null;
}

async function send(text, parent = behindTheLastReply(chat)) {
  const mine = chat;
  if (!models.length) await listModels();
  await keepChat(mine);
  const message = await keepMessage(mine, { role: "user", content: text, parent, about: {} });
  sending = null;
  if ($("say").value.trim() === text) $("say").value = ""; // not before: what can't be kept isn't lost
  fit();
  if (mine.id !== null) attempt(list);
  if (mine === chat) {
    draw(true);
    await answer(message, chosenModels());
  }
  if (mine.id !== null) await list();
}

// Replies of `asked` models to a message of the user; several at the same time stand side by side.
async function answer(message, asked) {
  const mine = chat;
  writing = new AbortController();
  showWriting(true);
  const group = asked.length > 1 ? crypto.getRandomValues(new Uint32Array(2)).join("-") : undefined;
  const before = branch({ ...chat, leaf: message.id });
  const drafts = asked.map((model) => ({
    role: "assistant",
    content: "",
    parent: message.id,
    about: { model: model.id, tokens: [], ...(group ? { group } : {}) },
  }));
  const frames = drafts.map((draft) => drawMessage(draft, true));
  const place = group ? element("div", { className: "side-by-side" }, ...frames) : frames[0];
  log.querySelector(`[data-id="${message.id}"]`).after(place);
  say("The model is writing.");
  const written = await Promise.allSettled(
    asked.map((model, i) =>
      reply(drafts[i], model, before, chat.settings, $("probabilities").checked, writing.signal, () =>
        growMessage(frames[i], drafts[i]),
      ),
    ),
  );
  try {
    for (const draft of drafts.toReversed()) {
      if (draft.content) await keepMessage(mine, draft); // the first model's reply comes last: the chat goes on with it
    }
  } finally {
    writing = null; // not before: the next message has to follow this reply
    showWriting(false);
  }
  if (!drafts.some((draft) => draft.content)) mine.leaf = message.id;
  if (mine === chat) {
    draw();
    say("The reply is complete.");
  }
  const wrong = written.find((one) => one.status === "rejected" && one.reason.name !== "AbortError");
  if (wrong) throw wrong.reason;
}

async function regenerate(message) {
  const asked = message.about.group ? chosenModels() : chosenModels().slice(0, 1);
  const parent = chat.messages.find((other) => other.id === message.parent);
  chat.leaf = parent.id;
  draw();
  await answer(parent, asked);
}

function stop() {
  writing?.abort();
}

// The screen --------------------------------------------------------------------------------------------

function showWriting(is) {
  $("stop").hidden = !is;
  $("send").hidden = is;
  document.body.classList.toggle("writing", is);
}

// Shows the chat. Whoever was at its end stays there; for others nothing moves.
function draw(toTheEnd = isAtEnd()) {
  const place = log.scrollTop;
  const path = branch(chat);
  const parts = [];
  for (const message of path) {
    const beside = together(chat, message).toSorted((a, b) => b.id - a.id); // the first model's reply is kept last
    if (beside.length > 1) {
      parts.push(element("div", { className: "side-by-side" }, ...beside.map((one) => drawMessage(one, false, one.id === message.id))));
    } else {
      parts.push(drawMessage(message));
    }
  }
  log.replaceChildren(...(parts.length ? parts : [welcome()]));
  $("temporary").disabled = !keeps || chat.messages.length > 0;
  document.title = chat.title ? `${chat.title} · pilgrim` : "pilgrim";
  log.scrollTop = toTheEnd ? log.scrollHeight : place;
  markOpenChat();
}

function markOpenChat() {
  for (const entry of $("chats").querySelectorAll("[data-chat]")) {
    if (entry.dataset.chat === String(chat.id)) entry.setAttribute("aria-current", "true");
    else entry.removeAttribute("aria-current");
  }
}

function welcome() {
  const model = modelOf($("model").value);
  const what = model && continues(model) ? "This model only continues a text: begin one." : "Say something to begin.";
  return element("p", { className: "welcome", textContent: what });
}

function drawMessage(message, draft = false, active = true) {
  const isUser = message.role === "user";
  const who = isUser ? "You" : (message.about.model ?? "Assistant");
  const head = element("div", { className: "who" }, element("span", { textContent: who }));
  const text = element("div", { className: "text" });
  const frame = element(
    "article",
    { className: `message ${message.role}${active ? "" : " passive"}`, data: { id: message.id ?? "" }, aria: { label: who } },
    head,
    text,
  );
  fill(text, message);
  if (draft) frame.classList.add("draft");
  else frame.append(actions(message, frame, active));
  return frame;
}

function fill(text, message) {
  if (message.role === "user") text.textContent = message.content;
  else if (message.showTokens) text.replaceChildren(tokenView(message.about.tokens));
  else text.replaceChildren(render(message.content, message.about.calls));
}

let waitingForFrame = new Set();

function growMessage(frame, draft) {
  if (waitingForFrame.has(frame)) return; // once for each picture that the screen shows is enough
  waitingForFrame.add(frame);
  requestAnimationFrame(() => {
    waitingForFrame.delete(frame);
    if (!frame.classList.contains("draft")) return;
    const follows = isAtEnd();
    fill(frame.querySelector(".text"), draft);
    if (follows) log.scrollTop = log.scrollHeight;
  });
}

const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 160;

function actions(message, frame, active) {
  const box = element("div", { className: "actions" });
  const others = active ? siblings(chat, message) : [];
  if (others.length > 1) {
    const at = others.indexOf(message);
    const to = (other) => attempt(() => goTo(other));
    box.append(
      button("‹", "The one before", () => to(others[at - 1]), { disabled: at === 0 }),
      element("span", { textContent: `${at + 1}/${others.length}` }),
      button("›", "The next one", () => to(others[at + 1]), { disabled: at === others.length - 1 }),
    );
  }
  box.append(copyButton(() => message.content, "Copy the message"), button("Edit", "Write it anew: a branch of its own", () => edit(message, frame)));
  if (message.role === "assistant") {
    box.append(button("Again", "Ask for another reply", () => busy() || attempt(() => regenerate(message))));
    if (message.about.tokens?.length) {
      box.append(
        button("Tokens", "See how likely each token was", (event) => {
          message.showTokens = !message.showTokens;
          event.currentTarget.setAttribute("aria-pressed", message.showTokens);
          fill(frame.querySelector(".text"), message);
        }, { aria: { label: "See how likely each token was", pressed: Boolean(message.showTokens) } }),
      );
    }
    if (!active) box.append(button("Go on with this", "The chat goes on with this reply", () => attempt(() => goTo(message))));
    box.append(element("span", { className: "facts", textContent: facts(message.about) }));
  } else if (message.id === chat.leaf) {
    // Nobody has answered: it was stopped, or something went wrong.
    box.append(button("Ask", "Ask for a reply", () => busy() || attempt(() => answer(message, chosenModels())), { className: "ask" }));
  }
  return box;
}

function facts({ written, elapsed_s, first_s, finish, most }) {
  if (!written || !elapsed_s) return "";
  const writing_s = elapsed_s - (first_s ?? 0);
  // A short reply comes in one or two pieces of the network, between which no time passes: no speed can be told.
  const speed = writing_s > 0.5 ? `, ${((written - 1) / writing_s).toFixed(0)} tokens/s` : "";
  const limit = written < most ? "where the model's context ends" : "at the longest reply";
  const cut = finish === "length" ? `, cut off ${limit}` : finish ? "" : ", stopped";
  return `${written} tokens in ${elapsed_s.toFixed(1)} s${speed}${cut}`;
}

function edit(message, frame) {
  if (busy()) return;
  const field = element("textarea", { className: "edit", value: message.content, rows: Math.min(12, message.content.split("\n").length + 1), aria: { label: "The message" } });
  const done = async () => {
    const text = field.value.trim();
    if (!text || text === message.content) return draw();
    if (message.role === "user") return send(text, message.parent);
    await keepMessage(chat, { role: "assistant", content: text, parent: message.parent, about: { model: "edited" } });
    draw();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) sendOnce(done);
  });
  frame.querySelector(".text").replaceChildren(field);
  frame.querySelector(".actions").replaceChildren(
    button(message.role === "user" ? "Send" : "Keep", "Ctrl+Enter", () => sendOnce(done)),
    button("Cancel", "Esc", () => draw()),
  );
  field.focus();
}

// The list ----------------------------------------------------------------------------------------------

let listing = 0; // how often the list was asked for: answers may come in another order, and only the last counts

async function list() {
  if (!keeps) return;
  const search = $("search").value.trim();
  const mine = ++listing;
  const found = await ask("GET", `/api/chats?search=${encodeURIComponent(search)}`);
  if (mine !== listing) return;
  $("chats").replaceChildren(
    ...found.map((one) =>
      element(
        "div",
        { className: "entry", data: { chat: one.id } },
        element(
          "button",
          { type: "button", className: "open", on: { click: () => attempt(() => open(one.id)) } },
          element("span", { className: "title", textContent: one.title || "Untitled" }),
          ...(one.snippet ? [element("span", { className: "snippet", textContent: one.snippet })] : []),
        ),
        button("✎", `Rename ${one.title}`, () => attempt(() => rename(one))),
        button("🗑", `Delete ${one.title}`, () => attempt(() => remove(one))),
      ),
    ),
  );
  if (!found.length) $("chats").append(element("p", { className: "hint", textContent: search ? "Nothing found." : "No chats yet." }));
  markOpenChat();
}

let opening = null; // the chat that was clicked last

async function open(id) {
  opening = id;
  document.body.classList.remove("list-open");
  if (id === chat.id) return; // else what is being written in it would go on out of sight
  const found = await ask("GET", `/api/chats/${id}`);
  if (opening !== id) return;
  stop();
  chat = found;
  chat.settings = { ...DEFAULTS, ...chat.settings };
  $("temporary").checked = false;
  choose(chat.settings.model, chat.settings.other);
  dials.show(chat.settings);
  draw(true);
  $("say").focus();
}

async function rename(one) {
  const title = window.prompt("Title of the chat", one.title);
  if (title === null || !title.trim()) return;
  await ask("PATCH", `/api/chats/${one.id}`, { title });
  if (chat.id === one.id) chat.title = title;
  await list();
}

async function remove(one) {
  if (!window.confirm(`Delete “${one.title || "Untitled"}” for good?`)) return;
  await ask("DELETE", `/api/chats/${one.id}`);
  if (chat.id === one.id) {
    chat.id = null; // a reply that is being written has nowhere to be kept any more
    begin();
  }
  await list();
}

function begin() {
  stop();
  opening = null;
  const { model, other } = chat.settings;
  chat = emptyChat();
  Object.assign(chat.settings, { model, other });
  dials.show(chat.settings);
  document.body.classList.remove("list-open");
  draw();
  attempt(list);
  $("say").focus();
}

// Models ------------------------------------------------------------------------------------------------

async function listModels() {
  models = (await ask("GET", "/v1/models")).data;
  for (const select of [$("model"), $("other")]) {
    select.replaceChildren(...models.map((model) => element("option", { value: model.id, textContent: continues(model) ? `${model.id} (continues)` : model.id })));
  }
  choose(chat.settings.model, chat.settings.other);
  draw();
  if (!models.length) throw new Refused(404, "The server has no model to talk to; look whether its runs are still there.");
}

function choose(model, other) {
  if (modelOf(model)) $("model").value = model;
  if (modelOf(other)) $("other").value = other;
  else if (models.length > 1) $("other").value = models[1].id;
  compare(Boolean(modelOf(other)));
}

function compare(is) {
  $("compare").setAttribute("aria-pressed", is);
  $("other-label").hidden = !is;
}

function modelsChanged() {
  const beside = $("compare").getAttribute("aria-pressed") === "true";
  chat.settings.model = $("model").value;
  chat.settings.other = beside ? $("other").value : undefined;
  if (!chat.messages.length) draw();
  attempt(keepSettings);
}

// What people do ----------------------------------------------------------------------------------------

const dials = new Dials((changed) => {
  Object.assign(chat.settings, changed);
  attempt(keepSettings);
});

async function submit() {
  const text = $("say").value.trim();
  if (text) await sendOnce(() => send(text));
}

function fit() {
  $("say").style.height = "auto";
  $("say").style.height = `${Math.min($("say").scrollHeight + 2, 240)}px`;
}

function panel(is) {
  $("dials").hidden = !is;
  $("open-dials").setAttribute("aria-expanded", is);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("pilgrim-theme", name);
}

function otherTheme() {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme(now === "dark" ? "light" : "dark");
}

$("composer").addEventListener("submit", (event) => (event.preventDefault(), submit()));
$("say").addEventListener("input", fit);
$("say").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
$("stop").addEventListener("click", stop);
$("new-chat").addEventListener("click", begin);
$("search").addEventListener("input", () => attempt(list));
$("model").addEventListener("change", modelsChanged);
$("other").addEventListener("change", modelsChanged);
$("compare").addEventListener("click", () => {
  compare($("compare").getAttribute("aria-pressed") !== "true");
  modelsChanged();
});
$("theme").addEventListener("click", otherTheme);
$("open-dials").addEventListener("click", () => panel($("dials").hidden));
$("close-dials").addEventListener("click", () => panel(false));
$("open-sidebar").addEventListener("click", () => document.body.classList.add("list-open"));
$("close-sidebar").addEventListener("click", () => document.body.classList.remove("list-open"));
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  if (!file) return;
  await attempt(async () => {
    let data;
    try {
      data = JSON.parse(await file.text());
    } catch {
      throw new Refused(400, `${file.name} is no JSON; choose a file that was exported here.`);
    }
    const { chats } = await ask("POST", "/api/import", data);
    say(`${chats} chats were added.`);
    await list();
  });
});
for (const link of document.querySelectorAll(".foot a")) {
  link.addEventListener("click", (event) => {
    event.preventDefault(); // a plain link could not show the key
    attempt(() => download(link.getAttribute("href"), link.getAttribute("download")));
  });
}
document.addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && writing) stop();
  else if (command && event.key.toLowerCase() === "k") (event.preventDefault(), document.body.classList.add("list-open"), $("search").focus());
  else if (command && event.shiftKey && event.key.toLowerCase() === "o") (event.preventDefault(), begin());
});

const themed = localStorage.getItem("pilgrim-theme");
if (themed) theme(themed);
dials.show(chat.settings);
draw();
attempt(listModels);
attempt(async () => {
  try {
    await list();
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
    keeps = false;
    document.body.classList.add("keeps-nothing");
    $("temporary").checked = $("temporary").disabled = true;
  }
});
$("say").focus();
