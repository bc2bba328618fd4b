// What a model writes, as HTML that can do no harm. marked makes HTML of Markdown; HTML that the model wrote itself
// is shown as the text that it is. DOMPurify then takes out whatever is not harmless markup. Images are taken out,
// too: one from elsewhere would tell its server that somebody reads this, and what is in its address.

import { marked } from "/page/vendor/marked.js";
import DOMPurify from "/page/vendor/purify.js";

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
marked.use({ gfm: true, breaks: true, renderer: { html: ({ text }) => escaped(text) } });

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "input",
    "li", "ol", "p", "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["href", "title", "class", "align", "start", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.tagName === "INPUT") {
    if (node.getAttribute("type") !== "checkbox") node.remove();
    node.setAttribute("disabled", "");
  }
});

// `calls` of tools are shown where they stand in the text. Their places are marked by characters that no text has
// (Unicode's private ones), as Markdown leaves those alone.
export function render(text, calls = []) {
  const characters = Array.from(text.replace(/[\uE000\uE001]/g, "\uFFFD")); // one for one, as calls are placed by number
  for (const [number, { offset }] of [...calls.entries()].reverse()) characters.splice(offset, 0, `\uE000${number}\uE001`);
  const box = rendered(characters.join(""));
  const texts = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  const marked = [];
  while (texts.nextNode()) if (texts.currentNode.data.includes("\uE000")) marked.push(texts.currentNode);
  for (const node of marked) {
    const parts = node.data.split(/\uE000(\d+)\uE001/); // text, number, text, number, … text
    node.replaceWith(...parts.map((part, i) => (i % 2 ? callView(calls[part]) : part)));
  }
  return box;
}

function callView({ function: { name, arguments: json }, result }) {
  const box = document.createElement("span");
  box.className = "call";
  const what = document.createElement("code");
  try {
    what.textContent = Object.values(JSON.parse(json)).join(", ");
  } catch {
    what.textContent = json; // no JSON: as the model has written it
  }
  const answer = document.createElement("output");
  answer.textContent = result;
  box.title = `The model called ${name}; the result was put into its reply.`;
  box.append(`${name} `, what, " → ", answer);
  return box;
}

function rendered(text) {
  const box = document.createElement("div");
  box.className = "markdown";
  box.innerHTML = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const pre of box.querySelectorAll("pre")) pre.append(copyButton(() => pre.querySelector("code")?.textContent ?? ""));
  return box;
}

export function copyButton(text, label = "Copy the code") {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

// A page that comes over plain HTTP from another machine has no clipboard (https://w3c.github.io/clipboard-apis asks
// for a secure context); there the older way must do: select it, and have the browser copy what is selected.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
